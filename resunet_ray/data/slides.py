"""Whole slides: images of any size, read in parts and at any scale.

OpenSlide reads them or, for other formats, tifffile. A part is given in pixels of the whole slide
at the requested scale, so that a pixel does not depend on how the slide is divided into parts.
"""

import functools
import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import openslide
from jaxtyping import UInt8
from PIL import Image

from resunet_ray.data.tiff import TiffReader, check_tables
from resunet_ray.errors import ImageError, InputError

_SCATTERED = (".vms", ".vmu", ".dcm")  # several files, listed only in the content of one of them
SUFFIXES = (".svs", ".ndpi", ".scn", ".mrxs", ".bif", ".svslide", ".czi", *_SCATTERED)
"""Files with these suffixes are slides, or damaged."""
TIFF_SUFFIXES = (".tif", ".tiff")
"""Files with these suffixes may be slides."""
MPP_RANGE = (0.05, 20.0)
"""Plausible microns per pixel of a microscope; a screen's 264.58 (96 dots per inch) is outside."""

_MAX_SIDE = 2**21  # pixels; a header that claims more is damaged
_READ_PIXELS = 2**26  # pixels of any level that are in memory at a time
_CACHE_BYTES = 2**27  # for decoded tiles of all slides that a process has open


class _Reader(Protocol):
    """A slide opened by either library."""

    levels: list[tuple[int, int]]
    """Height and width of each level, the largest first."""
    mpp: float | None
    format: str

    def read(
        self, level: int, top: int, left: int, height: int, width: int
    ) -> UInt8[np.ndarray, "_h _w 3"]:
        """Read a window in pixels of the level, entirely within it."""

    def close(self) -> None:
        """Close the file."""


@dataclass(frozen=True)
class SlideInfo:
    """What a slide's header says."""

    height: int
    width: int
    mpp: float | None
    """Microns per pixel of the largest level; None if unknown or outside `MPP_RANGE`."""
    stated_mpp: float | None
    """Microns per pixel in the header, plausible or not."""
    format: str


class Slide:
    """An open slide; threads may share it."""

    def __init__(self, path: str, *, name: str) -> None:
        """Open a slide.

        Args:
            path: the file on this machine.
            name: the slide's name in errors.

        Raises:
            ImageError: neither library can read it, or its header makes no sense.
        """
        self._path, self._name = path, name
        self._lock = threading.Lock()
        with self._naming("opened"):
            self._reader = _open_reader(path)
        height, width = self._reader.levels[0]
        if not (0 < height <= _MAX_SIDE and 0 < width <= _MAX_SIDE):
            raise ImageError(
                f"{name} claims {height} x {width} pixels: expected 1 to {_MAX_SIDE} per side"
            )
        stated = self._reader.mpp
        mpp = stated if stated is not None and MPP_RANGE[0] <= stated <= MPP_RANGE[1] else None
        self.info = SlideInfo(height, width, mpp, stated, self._reader.format)

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
        rows, columns = self._reader.levels[level]
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
        with self._lock, self._naming("read"):
            try:
                pixels = self._reader.read(level, *window)
            except Exception:
                self._reader.close()  # after an error OpenSlide refuses every further read
                self._reader = _open_reader(self._path)
                raise
        if pixels.shape[:2] == (height, width) and factor_x == factor_y == 1:
            return pixels
        inside = box[0] - first_x, box[1] - first_y, box[2] - first_x, box[3] - first_y
        small = Image.fromarray(pixels).resize(
            (width, height), Image.Resampling.BILINEAR, box=inside
        )
        return np.asarray(small)

    def close(self) -> None:
        """Close the file."""
        self._reader.close()

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
        height, width = self._reader.levels[0]
        best = 0
        for level, (rows, _) in enumerate(self._reader.levels):
            if height / rows <= scale * 1.01:
                best = level
        rows, columns = self._reader.levels[best]
        return best, _snap(scale * rows / height, rows), _snap(scale * columns / width, columns)

    @contextmanager
    def _naming(self, done: str) -> Iterator[None]:
        """Turn any error of the libraries into one that names the slide."""
        try:
            yield
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 (on damaged bytes both libraries raise anything)
            raise ImageError(
                f"{self._name} cannot be {done} as a slide: {str(error) or type(error).__name__}"
            ) from None


def _snap(factor: float, length: int) -> float:
    """Round a factor that is whole except for the rounded size of its level.

    Over the length of the level the two then differ by less than a pixel.
    """
    whole = float(max(1, round(factor)))
    return whole if abs(factor - whole) * length < factor else factor


def _open_reader(path: str) -> _Reader:
    # OpenSlide takes any tiled TIFF for a pyramid of 8-bit RGB pages: it does not support 16 bits
    # or OME's planes and levels.
    if openslide.OpenSlide.detect_format(path) not in (None, "generic-tiff"):
        return _OpenSlideReader(path)
    return TiffReader(path)


class _OpenSlideReader:
    def __init__(self, path: str) -> None:
        self._slide = openslide.OpenSlide(path)
        self._slide.set_cache(_shared_cache())
        self.levels = [(height, width) for width, height in self._slide.level_dimensions]
        self.mpp = _mean_mpp(
            *(self._slide.properties.get(f"openslide.mpp-{axis}") for axis in "xy")
        )
        self.format = self._slide.properties.get("openslide.vendor", "unknown")
        if self.format == "aperio":
            check_tables(path)  # OpenSlide shows a tile missing from the header as empty glass
        self._background = f"#{self._slide.properties.get('openslide.background-color', 'ffffff')}"
        self._slide.read_region((0, 0), len(self.levels) - 1, (1, 1))  # a header alone is no slide

    def read(
        self, level: int, top: int, left: int, height: int, width: int
    ) -> UInt8[np.ndarray, "_h _w 3"]:
        rows, columns = self.levels[level]
        # OpenSlide takes the position in pixels of the largest level, for any level.
        place = round(left * self.levels[0][1] / columns), round(top * self.levels[0][0] / rows)
        window = self._slide.read_region(place, level, (width, height))
        whole = Image.new("RGB", window.size, self._background)  # areas not scanned are transparent
        whole.paste(window, mask=window.getchannel("A"))
        return np.asarray(whole)

    def close(self) -> None:
        self._slide.close()


@functools.lru_cache(maxsize=1)
def _shared_cache() -> openslide.OpenSlideCache:
    return openslide.OpenSlideCache(_CACHE_BYTES)


def _mean_mpp(x: Any, y: Any) -> float | None:
    values = [float(value) for value in (x, y) if value not in (None, "")]
    return float(np.mean(values)) if values else None


def companions(path: str) -> list[str]:
    """List what belongs to a slide besides its file: of MIRAX, the folder with its pixels.

    Raises:
        InputError: the slide consists of several files, listed only in the content of one of them.
    """
    stem, suffix = os.path.splitext(path)  # noqa: PTH122 (may be a URI)
    if suffix.lower() in _SCATTERED:
        raise InputError(
            f"{path}: {suffix} slides are not supported. Convert the slide to one tiled TIFF and "
            "remove its files from the input, or each JPEG among them is segmented as an image"
        )
    return [stem] if suffix.lower() == ".mrxs" else []
