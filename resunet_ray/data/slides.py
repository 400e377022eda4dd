"""Whole slides: images of any size, read in parts and at any scale.

A part is given in pixels of the whole slide at the requested scale, so that a pixel does not depend
on how the slide is divided into parts.
"""

import functools
import math
import os
import threading
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from resunet_ray.data.images import range_of, to_rgb
from resunet_ray.data.raster.opening import naming, open_slide
from resunet_ray.data.raster.planes import EVERYTHING, Selection, choose_channel
from resunet_ray.data.raster.scene import FIRST, PixelSize, Plane
from resunet_ray.errors import ImageError, InputError
from resunet_ray.intensity import Range

_SCATTERED = (".vms", ".vmu", ".dcm")  # several files, listed only in the content of one of them
SUFFIXES = (".svs", ".ndpi", ".scn", ".mrxs", ".bif", ".svslide", ".czi", *_SCATTERED)
"""Files with these suffixes are slides, or damaged."""

_READ_PIXELS = 2**26  # pixels of any level that are in memory at a time
_SAMPLED = 2**25  # pixels of the level whose range is measured
_BAND, _LEAST_BAND = 256, 32  # rows of it that are read at a time; fewer where it is damaged


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
    ) -> None:
        """Open a slide.

        Args:
            path: the file on this machine.
            name: the slide's name in errors.
            plane: which of the file's planes; its channel does not count.
            selection: which channel and focal plane.
            stored: how counts become grey levels (see `range_of`).

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
            self._range = (
                None
                if scene.dtype == np.uint8
                else _measure(
                    path, Path(path).stat().st_mtime_ns, self._plane, selection, stored=stored
                )
            )
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
    path: str, _mtime_ns: int, plane: Plane, selection: Selection, *, stored: bool
) -> Range | None:
    """Return the range of a plane's counts, from the finest level that is quick to read.

    Coarser levels are averages, which hide what is small and bright.

    Raises:
        ImageError: no part of that level can be read.
    """
    raster = selection.apply(open_slide(path))
    scene = raster.scenes[plane.scene]
    sizes = list(scene.levels)
    level = next(
        (number for number, (height, width) in enumerate(sizes) if height * width <= _SAMPLED),
        len(sizes) - 1,
    )
    height, width = sizes[level]
    step = math.ceil(math.sqrt(height * width / _SAMPLED))
    found, reason = [], ""
    rows = [(top, min(_BAND, height - top)) for top in range(0, height, _BAND)]
    while rows:
        top, count = rows.pop()
        try:
            found.append(raster.read(plane, level, (top, 0, count, width))[::step, ::step])
        except Exception as error:  # noqa: BLE001 (regions with the damage will report it)
            reason = str(error)
            if count > _LEAST_BAND:
                half = count // 2
                rows += [(top, half), (top + half, count - half)]
    raster.close()
    if not found:
        raise ImageError(f"no part of its level of {height} x {width} can be read: {reason}")
    return range_of(np.concatenate(found), scene, stored=stored)


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
