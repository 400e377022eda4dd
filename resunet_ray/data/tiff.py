"""TIFF and OME-TIFF as slides: one plane of grey or RGB in any number of levels, read in parts.

tifffile shows what is left of a damaged file, fills what is missing with zeros, and leaves
colours as they are stored. Files in which that would give wrong pixels are refused here, so that
what is read is what was written.
"""

import functools
import math
import struct
from pathlib import Path
from typing import IO, Any

import numpy as np
import tifffile
import zarr
from jaxtyping import UInt8, UInt16

from resunet_ray.data.images import to_uint8
from resunet_ray.data.tiff_metadata import is_fluorescence, read_mpp
from resunet_ray.errors import ImageError

_LARGEST_PIECE = 2**28  # pixels of a tile or strip, which is decoded whole
_SAMPLED = 2**25  # pixels of the level that is searched for the largest value
_BAND = 2**22  # pixels of that level in memory at a time, if it is not in tiles or strips
# Photometric interpretations (TIFF 6.0, sections 3 to 6 and 21).
_MINISBLACK, _RGB, _YCBCR = 1, 2, 6
# Compressions whose decoder turns YCbCr into RGB (TIFF 6.0, section 22, and its Technical Note 2).
_JPEG = 6, 7


def is_slide(file: IO[bytes], *, max_pixels: int) -> bool:
    """Whether a TIFF must be read in parts: it has smaller copies of itself, or is too large.

    A file that was cut short may have lost its copies, and one without pixels is damaged: both
    count as slides and are refused when they are opened.

    Args:
        file: the open TIFF.
        max_pixels: largest image that is decoded as a whole.
    """
    try:
        with tifffile.TiffFile(file) as tiff:
            if breaks_off(tiff):
                return True
            first = tiff.series[0]
            is_plane = first.axes.startswith("YX")
            pixels = math.prod(first.shape[:2] if is_plane else first.shape)
            return len(first.levels) > 1 or not 0 < pixels <= max_pixels
    except Exception:  # noqa: BLE001 (decoding the image will report whatever is wrong)
        return False


def check_tables(path: str) -> None:
    """Refuse a TIFF that claims more tiles than it gives the offsets of.

    Raises:
        ImageError: it does.
    """
    with tifffile.TiffFile(path) as file:
        for page in file.pages:
            _check_table(page)


class TiffReader:
    """A slide opened by tifffile."""

    def __init__(self, path: str) -> None:
        """Open a slide.

        Raises:
            ImageError: it is incomplete, or is not a single plane of grey or RGB with 8 or 16 bit.
        """
        self._file = _open_file(path)
        if breaks_off(self._file):
            raise ImageError(
                "its last pages are missing: it was cut short or damaged. Copy it again"
            )
        series = self._file.series[0]
        _check_kind(self._file)
        for page in (page for level in series.levels for page in level.pages):
            check_page(page, file_bytes=self._file.filehandle.size)
        self._channels_first = _axes(series).startswith("C")
        self._levels = _open_levels(self._file, path)
        rows = 1 if self._channels_first else 0
        shapes = [level.shape[rows : rows + 2] for level in self._levels]
        self.levels = [(height, width) for height, width in shapes]
        # One scale for the whole slide, so that equal counts give equal grey in every window.
        self._largest = (
            _largest_value(path, Path(path).stat().st_mtime_ns) if series.dtype == np.uint16 else 0
        )
        self.read(len(self.levels) - 1, 0, 0, 1, 1)  # a header alone is no slide
        self.mpp = read_mpp(self._file)
        self.format = "ome-tiff" if self._file.is_ome else "tiff"

    def read(
        self, level: int, top: int, left: int, height: int, width: int
    ) -> UInt8[np.ndarray, "_h _w 3"]:
        """Read a window in pixels of the level, entirely within it."""
        array, first = self._levels[level], self._channels_first
        values = _window(array, top, left, height, width, channels_first=first)
        if values.dtype == np.uint16:
            values = to_uint8(values, largest=self._largest)
        return np.ascontiguousarray(np.broadcast_to(values, (*values.shape[:2], 3)))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _open_file(path: str) -> tifffile.TiffFile:
    try:
        return tifffile.TiffFile(path)
    except struct.error:
        raise ImageError("it ends within its header: it was cut short. Copy it again") from None


def breaks_off(file: tifffile.TiffFile) -> bool:
    """Whether pages are missing: smaller copies of the first, or one after tifffile's last."""
    if not len(file.pages):
        return True
    if any(offset >= file.filehandle.size for offset in file.pages.first.subifds or ()):
        return True
    file.filehandle.seek(file.pages.next_page_offset or 0)
    return bool(file.filehandle.read(file.tiff.offsetsize) != bytes(file.tiff.offsetsize))


def _axes(series: tifffile.TiffPageSeries) -> str:
    return series.axes.replace("S", "C")


def _check_kind(file: tifffile.TiffFile) -> None:
    """Refuse what can be read as RGB in more than one way."""
    series = file.series[0]
    axes = _axes(series)
    if (
        axes.strip("C") != "YX"
        or series.ndim not in (2, 3)
        or series.dtype not in (np.uint8, np.uint16)
    ):
        raise ImageError(
            f"its axes are {series.axes} of {series.shape}, its values {series.dtype}: "
            "expected one plane of grey or colour, 8 or 16 bit. "
            "Save the plane you need as a separate file"
        )
    channels = series.shape[axes.index("C")] if "C" in axes else 1
    if channels not in (1, 3):
        raise ImageError(f"it has {channels} channels: expected grey or RGB")
    page = series.keyframe
    if page.photometric not in (_MINISBLACK, _RGB) and not (
        page.photometric == _YCBCR and page.compression in _JPEG
    ):
        colours = getattr(page.photometric, "name", page.photometric)
        raise ImageError(
            f"its colours are stored as {colours}: expected RGB, or grey with 0 for black"
        )
    if "C" in series.axes and channels == 3 and is_fluorescence(file):
        raise ImageError(
            "its three channels are not marked as red, green and blue: "
            "save the one that shows nuclei as a separate file"
        )
    # Labels, macro images and levels stored as separate images are smaller.
    least = math.prod(series.shape) / 2
    others = [other.shape for other in file.series[1:] if math.prod(other.shape) > least]
    if others:
        raise ImageError(
            f"besides {series.shape} it has an image of {others[0]}: "
            "save the one you need as a separate file"
        )


def check_page(page: Any, *, file_bytes: int) -> None:
    """Refuse a page that lacks pixels, or whose tiles or strips are too large for memory.

    Raises:
        ImageError: it does, or they are.
    """
    if page is None:
        raise ImageError(
            "some of its planes are missing or in other files: expected one file with all planes"
        )
    _check_table(page)
    end = max(
        offset + size for offset, size in zip(page.dataoffsets, page.databytecounts, strict=True)
    )
    end = max(end, page.dataoffsets[0] + page.keyframe.nbytes) if page.is_contiguous else end
    if end > file_bytes:
        raise ImageError(
            f"its pixels extend to byte {end} but it ends at {file_bytes}: "
            "it was cut short. Copy it again"
        )
    keyframe = page.keyframe
    if math.prod(keyframe.chunks[:2]) > _LARGEST_PIECE and not page.is_contiguous:
        raise ImageError(
            f"its pixels are compressed in pieces of {keyframe.chunks}: "
            "expected smaller ones. Save it tiled"
        )


def _check_table(page: Any) -> None:
    wanted, found = math.prod(page.keyframe.chunked), len(page.dataoffsets)
    if found < wanted:
        shape = " x ".join(map(str, page.keyframe.shape))
        raise ImageError(
            f"it claims {shape} in {wanted} tiles or strips but lists {found}: "
            "its header is damaged"
        )


def _open_levels(file: tifffile.TiffFile, path: str) -> list[Any]:
    """Open the levels as arrays that read a window only when it is indexed."""
    levels: list[Any] = []
    for number, level in enumerate(file.series[0].levels):
        if level.dataoffset is None:
            levels.append(zarr.open_array(file.series[0].aszarr(level=number), mode="r"))
        else:  # uncompressed and in one piece, which zarr would read whole
            dtype = np.dtype(level.dtype).newbyteorder(file.byteorder)
            levels.append(
                np.memmap(path, dtype, mode="r", offset=level.dataoffset, shape=level.shape)
            )
    return levels


def _window(
    array: Any, top: int, left: int, height: int, width: int, *, channels_first: bool
) -> UInt8[np.ndarray, "_h _w _c"] | UInt16[np.ndarray, "_h _w _c"]:
    rows, columns = slice(top, top + height), slice(left, left + width)
    values = np.asarray(array[:, rows, columns] if channels_first else array[rows, columns])
    values = np.moveaxis(values, 0, -1) if channels_first else values
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    return values[..., None] if values.ndim == 2 else values


@functools.lru_cache(maxsize=64)
def _largest_value(path: str, _mtime_ns: int) -> int:
    """Return the largest value of the finest level that is quick to read.

    Coarser levels are averages, which hide what is small and bright.

    Raises:
        ImageError: no part of that level can be read.
    """
    with tifffile.TiffFile(path) as file:
        levels, first = file.series[0].levels, _axes(file.series[0]).startswith("C")
        sizes = [level.shape[1:3] if first else level.shape[:2] for level in levels]
        number = next(
            (n for n, (height, width) in enumerate(sizes) if height * width <= _SAMPLED),
            len(sizes) - 1,
        )
        array, (height, width) = _open_levels(file, path)[number], sizes[number]
        # One row of tiles at a time, so that each is decoded once and damage affects no others.
        rows = (
            levels[number].keyframe.chunks[0]
            if levels[number].dataoffset is None
            else max(1, _BAND // width)
        )
        found = []
        for top in range(0, height, rows):
            try:
                size = min(rows, height - top), width
                found.append(int(_window(array, top, 0, *size, channels_first=first).max()))
            except Exception as error:  # noqa: BLE001 (regions with the damage will report it)
                reason = error
    if not found:
        raise ImageError(f"no part of its level of {height} x {width} can be read: {reason}")
    return max(found)
