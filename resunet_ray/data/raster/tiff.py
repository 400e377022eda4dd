"""TIFF, OME-TIFF and ImageJ's TIFF, in any number of planes and levels, read in parts.

tifffile shows what is left of a damaged file, fills what is missing with zeros, and leaves colours
as they are stored. Files in which that would give wrong pixels are refused here, so that what is
read is what was written.
"""

import math
import struct
import threading
from typing import IO, Any

import numpy as np
import tifffile

from resunet_ray.data.raster.contiguous import Contiguous
from resunet_ray.data.raster.copies import is_copy
from resunet_ray.data.raster.indexing import number_places, to_ranges
from resunet_ray.data.raster.scene import FIRST, Plane, Scene, Window
from resunet_ray.data.raster.segments import Segments
from resunet_ray.data.raster.tiff_checks import (
    MINISWHITE,
    PALETTE,
    RGB,
    YCBCR,
    breaks_off,
    check_kind,
    check_page,
    require_described,
)
from resunet_ray.data.raster.tiff_metadata import (
    attach_level,
    detach_levels,
    find_scenes,
    name_channels,
    read_mpp,
    read_palette,
)
from resunet_ray.data.raster.turning import turn, turned_size, turned_window
from resunet_ray.errors import ImageError

_ALPHA = 1, 2  # of ExtraSamples: associated, unassociated
_ORIENTATION = 274
_SPATIAL = "YX"
_BYTE = 8  # bits
_LOOKED_AT = 2**26  # pixels of an image whose last sample is looked at
_MOST_CHANNELS = 5  # as the last axis of an array whose axes have no names


class TiffRaster:
    """A TIFF opened by tifffile; threads may share it."""

    def __init__(self, file: str | IO[bytes]) -> None:
        """Open a TIFF.

        Args:
            file: a path, or an open file that is read where it has to be.

        Raises:
            ImageError: it is incomplete, or may be read as pixels in more than one way.
        """
        self._lock = threading.Lock()  # an open file has one position
        self._file = _open(file)
        if breaks_off(self._file):
            raise ImageError(
                "its last pages are missing: it was cut short or damaged. Copy it again"
            )
        require_described(self._file)
        first = self._file.pages.first
        if not (first.imagelength and first.imagewidth):
            raise ImageError(f"it claims {first.imagelength} x {first.imagewidth} pixels")
        levels = detach_levels(self._file)
        self._series = _list_series(self._file)
        copies = [(of, one) for of, one in levels if not any(s.shows(one) for s in self._series)]
        for series, level in copies:
            attach_level(self._file, series, level)
        self._series = _list_series(self._file) if copies else self._series
        self.scenes = [series.scene for series in self._series]
        self.format = "ome-tiff" if self._file.is_ome else "tiff"

    def read(self, plane: Plane, level: int, window: Window) -> np.ndarray:
        """Read a window of a plane; see `Raster`."""
        with self._lock:
            return self._series[plane.scene].read(plane, level, window)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _list_series(file: tifffile.TiffFile) -> "list[_Series]":
    """List the images, but no smaller copies of the largest, of which a file may not say it."""
    found = [_Series(file, number) for number in find_scenes(file)]
    large = max(found, key=lambda series: math.prod(series.scene.levels[0]))
    most = max(series.num_values for series in found)
    return [
        series
        for series in found
        if 2 * series.num_values > most
        or not is_copy(series.scene, series.read_first, large.scene, large.read_first)
    ]


class _Series:
    """One scene: where its planes are among the axes of the file, and what its values mean."""

    def __init__(self, file: tifffile.TiffFile, number: int) -> None:
        self._file, self._found = file, file.series[number]
        self._page = self._found.keyframe
        self._orientation = _orientation(self._page)
        self._axes = _name_axes(self._found)
        self._lengths = dict(zip(self._axes, self._found.shape, strict=True))
        self._arrays: dict[int, Any] = {}
        self._has_alpha = "S" in self._lengths and _has_alpha(self._page)
        self._rgb = check_kind(file, number, lengths=self._lengths, alpha=self._has_alpha)
        for page in (self._found.pages[0], self._found.pages[-1]):
            check_page(page, file_bytes=file.filehandle.size)
        axis = "S" if "S" in self._lengths else "C"
        count = 1 if self._rgb else self._lengths.get(axis, 1) - self._has_alpha
        pixel = read_mpp(file, scene=number)
        self.scene = Scene(
            levels=[
                turned_size((sizes["Y"], sizes["X"]), self._orientation)
                for sizes in (
                    dict(zip(self._axes, level.shape, strict=True)) for level in self._found.levels
                )
            ],
            channels=name_channels(file, scene=number, count=count),
            dtype=np.dtype(np.uint8 if self._found.dtype == bool else self._found.dtype),
            rgb=self._rgb or self._colours is not None,
            num_t=self._lengths.get("T", 1),
            num_z=self._lengths.get("Z", 1),
            mpp=None if pixel is None else turned_size(pixel, self._orientation),
            name=self._found.name or None,
        )

    def shows(self, series: tifffile.TiffPageSeries) -> bool:
        """Whether it is this one."""
        return self._found is series

    @property
    def num_values(self) -> int:
        """How many numbers its planes have."""
        return int(self._found.size)

    def read_first(self, window: Window) -> np.ndarray:
        """Read a window of the first plane."""
        return self.read(FIRST, 0, window)

    def read(self, plane: Plane, level: int, window: Window) -> np.ndarray:
        """Read a window as stored, upright."""
        size = self.scene.levels[level]
        top, left, height, width = turned_window(window, size, self._orientation)
        place = {"T": plane.t, "Z": plane.z, "C": plane.channel, "S": plane.channel}
        index: dict[str, int | slice] = {
            axis: place.get(axis, 0) for axis in self._axes if axis not in _SPATIAL
        }
        samples = "S" if "S" in index else "C"
        if self._rgb:
            index[samples] = slice(0, 3)
        for page in self._find_pages(index, level):
            check_page(page, file_bytes=self._file.filehandle.size)
            is_own = level == 0 and getattr(page, "tags", None)  # levels are turned like it
            if is_own and _orientation(page) != self._orientation:
                raise ImageError("its pages are turned in several ways. Save them one by one")
        index |= {"Y": slice(top, top + height), "X": slice(left, left + width)}
        if self._has_alpha:
            alpha = self._pick(level, index | {samples: self._lengths[samples] - 1})
            if (alpha != _full(self._page)).any():
                raise ImageError("it is partly transparent. Save it without transparency")
        return turn(self._show(self._pick(level, index)), self._orientation)

    def _pick(self, level: int, index: dict[str, int | slice]) -> np.ndarray:
        """Return values by axis: rows, columns and, if there are several, samples."""
        values = np.asarray(self._array(level)[tuple(index[axis] for axis in self._axes)])
        values = values.astype(values.dtype.newbyteorder("="), copy=False)
        kept = [axis for axis in self._axes if isinstance(index[axis], slice)]
        return values.transpose([kept.index(axis) for axis in (*_SPATIAL, *"SC") if axis in kept])

    def _show(self, values: np.ndarray) -> np.ndarray:
        if (colours := self._colours) is not None:
            return np.asarray(colours[values])
        kind = self.scene.dtype  # for a single bit, NumPy has no numbers
        if self._page.photometric == MINISWHITE:
            values = np.asarray(_full(self._page) - values.astype(kind)).astype(kind)
        if self._page.bitspersample < _BYTE:  # as tone is stored in any other format
            values = np.rint(values * (255 / _full(self._page))).astype(np.uint8)
        return values

    @property
    def _colours(self) -> np.ndarray | None:
        """The palette as (n, 3) uint8, None if there is none or it only tints the values."""
        if self._page.photometric != PALETTE:
            return None
        colours = read_palette(self._page)
        tint = np.linspace(0, colours[-1], len(colours))
        return None if abs(colours - tint).max() <= 1 else colours

    def _find_pages(self, index: dict[str, int | slice], level: int) -> list[Any]:
        """Return the pages that hold a plane, or the only page of all planes."""
        pages = self._found.levels[level].pages
        if len(pages) == 1:
            return list(pages)
        outer = self._axes[: len(self._axes) - len(self._page.axes)]
        if not set(outer).isdisjoint(_SPATIAL):
            return [pages[0], pages[-1]]
        lengths = [self._lengths[axis] for axis in outer]
        picked = to_ranges([index[axis] for axis in outer], lengths)
        return [pages[number] for number in number_places(picked, lengths)]

    def _array(self, level: int) -> Any:
        """Return a level as an array of which only what is indexed is read."""
        if level not in self._arrays:
            found = self._found.levels[level]
            if found.dataoffset is not None:  # uncompressed and in one piece
                self._arrays[level] = Contiguous(self._file, found, self._axes)
            else:
                # What a scanner leaves out is empty glass, or dark.
                fill = _full(self._page) if self._page.photometric in (RGB, YCBCR) else 0
                self._arrays[level] = Segments(found, fill=fill)
        return self._arrays[level]


def _open(file: str | IO[bytes]) -> tifffile.TiffFile:
    try:
        return tifffile.TiffFile(file)
    except struct.error:
        raise ImageError("it ends within its header: it was cut short. Copy it again") from None


def _name_axes(series: tifffile.TiffPageSeries) -> str:
    """Return one letter of TZCSYX for each axis, with axes of unknown meaning as planes."""
    axes, free = list(series.axes), [axis for axis in "ZT" if axis not in series.axes]
    if axes[-3:-2] == ["Q"] and series.shape[-1] <= _MOST_CHANNELS < min(series.shape[-3:-1]):
        axes[-3:] = "YXC"  # an array whose last axis is channels, of which nothing else tells
    for number, axis in enumerate(axes):
        if axis not in "TZCSYX":
            if not free:
                raise ImageError(
                    f"its axes are {series.axes} of {series.shape}: expected points in time, focal "
                    "planes, channels, rows and columns. Save the planes you need as separate files"
                )
            axes[number] = free.pop(0)
    return "".join(axes)


def _has_alpha(page: tifffile.TiffPage) -> bool:
    """Whether the last of the samples of a pixel is its opacity.

    Some programs do not say so (OpenCV), and tifffile says so of any fourth channel: for them it
    is, if it is opaque everywhere in a small image.
    """
    extra = tuple(page.extrasamples or ())
    if len(extra) > 1 or page.samplesperpixel not in (2, 4):
        return False
    is_said = bool(extra) and extra[0] in _ALPHA
    is_guess = is_said and page.software.startswith("tifffile")
    is_small = page.imagewidth * page.imagelength <= _LOOKED_AT
    if page.photometric == RGB and is_small and (is_guess or not extra):
        last = page.asarray()[..., -1] if page.axes.endswith("S") else page.asarray()[-1]
        return bool((last == _full(page)).all())
    return is_said


def _orientation(page: tifffile.TiffPage) -> int:
    """Return how a page is to be turned: 1 to 8."""
    return int(page.tags.valueof(_ORIENTATION, 1))


def _full(page: tifffile.TiffPage) -> int:
    """Return the largest value that the pixels could have, 1 for floating-point numbers."""
    kind = np.dtype(page.dtype).kind
    return 1 if kind == "f" else int(2 ** (page.bitspersample - (kind == "i")) - 1)
