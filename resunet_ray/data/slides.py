"""Whole slides: images of any size, read in parts and at any scale.

A part is given in pixels of the whole slide at the requested scale, so that a pixel does not depend
on how the slide is divided into parts.
"""

import functools
import math
import os
import threading
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from resunet_ray.data.images import range_of, to_rgb
from resunet_ray.data.ranges import SharedRange, find_alike, sample_plane, share_range
from resunet_ray.data.raster import dicom
from resunet_ray.data.raster.ome_zarr_metadata import is_zarr_name
from resunet_ray.data.raster.opening import naming, open_slide
from resunet_ray.data.raster.planes import EVERYTHING, Selection, choose_channel
from resunet_ray.data.raster.scene import FIRST, PixelSize, Plane
from resunet_ray.errors import InputError
from resunet_ray.intensity import Range

_SCATTERED = (".vms", ".vmu")  # several files, listed only in the content of one of them
SUFFIXES = (".svs", ".ndpi", ".scn", ".mrxs", ".bif", ".svslide", ".czi", dicom.SUFFIX, *_SCATTERED)
"""Files with these suffixes are slides, or damaged."""

_READ_PIXELS = 2**26  # pixels of any level that are in memory at a time
_SAMPLED = 2**25  # pixels of the level whose range is measured


@dataclass(frozen=True)
class SlideInfo:
    """What a slide's header says."""

    height: int
    width: int
    pixel: PixelSize | None
    """Of the largest level, as stated; None if unknown."""
    stated_mpp: float | None
    """Microns per pixel in the header, plausible or not."""
    format: str


class Slide:
    """An open slide; threads may share it."""

    def __init__(
        self,
        path: str,
        *,
        name: str,
        plane: Plane = FIRST,
        selection: Selection = EVERYTHING,
        stored: bool = False,
        shared: bool = False,
    ) -> None:
        """Open a slide.

        Args:
            path: the file on this machine, of DICOM any one of a series, or OME-Zarr anywhere.
            name: the slide's name in errors.
            plane: which of the file's planes; its channel does not count.
            selection: which channel and focal plane.
            stored: how counts become grey levels (see `range_of`).
            shared: all planes of the file have one range.

        Raises:
            ImageError: no library can read it, or its header makes no sense.
        """
        self._name, self._lock = name, threading.Lock()
        with naming(name, done="opened as a slide"):
            self._raster = selection.apply(open_slide(path))
            scene = self._raster.scenes[plane.scene]
            self._plane = replace(plane, channel=choose_channel(scene, wanted=selection.channel))
            self._levels = scene.levels
            # One range for the whole slide, so that equal counts give equal grey in every window.
            found: Range | SharedRange | None = None
            if shared or scene.dtype != np.uint8:
                # OME-Zarr is not compared with what was listed.
                changed = 0 if is_zarr_name(path) else Path(path).stat().st_mtime_ns
                place = next(find_alike(self._raster, self._plane)) if shared else self._plane
                found = _measure(path, changed, place, selection, stored=stored, shared=shared)
            self._range = found.counts if isinstance(found, SharedRange) else found
            self.levels = found.levels if isinstance(found, SharedRange) else None
        height, width = scene.levels[0]
        stated = None if scene.mpp is None else sum(scene.mpp) / 2
        self.info = SlideInfo(height, width, scene.mpp, stated, self._raster.format)

    def size_at(self, scale: float) -> tuple[int, int]:
        """Return height and width of the slide in pixels whose side is `scale` level-0 pixels."""
        return max(1, int(self.info.height / scale)), max(1, int(self.info.width / scale))

    def read(
        self, top: int, left: int, height: int, width: int, *, scale: float
    ) -> UInt8[np.ndarray, "_h _w 3"]:
        """Read a window of the slide as RGB, averaged down from the best level.

        Args:
            top: first row, in pixels of the slide at `scale`.
            left: first column, likewise.
            height: height of the window, which lies within the slide.
            width: width of the window.
            scale: side of a pixel, in pixels of the largest level.

        Raises:
            ImageError: the slide is damaged in the window.
        """
        level, factor_y, factor_x = self._best_level(scale)
        rows, columns = self._levels[level]
        box = (
            left * factor_x,
            top * factor_y,
            min((left + width) * factor_x, columns),
            min((top + height) * factor_y, rows),
        )
        # Averaging reaches a little beyond the window, so that a pixel is the same in every window.
        beyond_x, beyond_y = (
            0 if factor == 1 else math.ceil(max(factor, 1)) for factor in (factor_x, factor_y)
        )
        first_x = max(0, math.floor(box[0]) - beyond_x)
        first_y = max(0, math.floor(box[1]) - beyond_y)
        last_x = min(columns, math.ceil(box[2]) + beyond_x)
        last_y = min(rows, math.ceil(box[3]) + beyond_y)
        window = first_y, first_x, last_y - first_y, last_x - first_x
        # So that a slide without small levels fits into memory, too.
        if window[2] * window[3] > _READ_PIXELS and max(height, width) > 1:
            return self._read_halves(top, left, height, width, scale=scale)
        with self._lock, naming(self._name, done="read as a slide"):
            values = self._raster.read(self._plane, level, window)
        pixels = to_rgb(values, self._range)
        if pixels.shape[:2] == (height, width) and factor_x == factor_y == 1:
            return pixels
        inside = box[0] - first_x, box[1] - first_y, box[2] - first_x, box[3] - first_y
        small = Image.fromarray(pixels).resize(
            (width, height), Image.Resampling.BILINEAR, box=inside
        )
        return np.asarray(small)

    def close(self) -> None:
        """Close the file."""
        self._raster.close()

    def _read_halves(
        self, top: int, left: int, height: int, width: int, *, scale: float
    ) -> UInt8[np.ndarray, "_h _w 3"]:
        if height >= width:
            half = height // 2
            parts = (top, left, half, width), (top + half, left, height - half, width)
        else:
            half = width // 2
            parts = (top, left, height, half), (top, left + half, height, width - half)
        return np.concatenate(
            [self.read(*part, scale=scale) for part in parts], axis=0 if height >= width else 1
        )

    def _best_level(self, scale: float) -> tuple[int, float, float]:
        """Find the smallest level that is fine enough, and a pixel's height and width in it."""
        height, width = self._levels[0]
        best = 0
        for level, (rows, _) in enumerate(self._levels):
            if height / rows <= scale * 1.01:
                best = level
        rows, columns = self._levels[best]
        return best, _snap(scale * rows / height, rows), _snap(scale * columns / width, columns)


def _snap(factor: float, length: int) -> float:
    """Round a factor that is whole except for the rounded size of its level.

    Over the length of the level the two then differ by less than a pixel.
    """
    whole = float(max(1, round(factor)))
    return whole if abs(factor - whole) * length < factor else factor


@functools.lru_cache(maxsize=64)
def _measure(
    path: str, _mtime_ns: int, plane: Plane, selection: Selection, *, stored: bool, shared: bool
) -> Range | SharedRange | None:
    """Return the range of a plane's counts, or that of all planes.

    Raises:
        ImageError: nothing of what is looked at can be read.
    """
    with closing(selection.apply(open_slide(path))) as raster:
        if shared:
            return share_range(raster, plane, stored=stored)
        values = sample_plane(raster, plane, most=_SAMPLED)
        return range_of(values, raster.scenes[plane.scene], stored=stored)


def companions(path: str) -> list[str]:
    """List what belongs to a slide besides its file: of MIRAX, the folder with its pixels.

    Raises:
        InputError: the slide consists of several files, listed only in the content of one of them;
            or the path is one file of a folder that is a slide.
    """
    stem, suffix = os.path.splitext(path)  # noqa: PTH122 (may be a URI)
    if suffix.lower() in _SCATTERED:
        raise InputError(
            f"{path}: {suffix} slides are not supported. Convert the slide to one tiled TIFF and "
            "remove its files from the input, or each JPEG among them is segmented as an image"
        )
    if suffix.lower() == dicom.SUFFIX:
        raise InputError(
            f"{path} may be one of several files of a slide: pass the folder with them"
        )
    return [stem] if suffix.lower() == ".mrxs" else []
