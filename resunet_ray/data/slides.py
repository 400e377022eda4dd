"""Whole slides: images of any size, of which a part is read at a scale, by OpenSlide or, for its other formats, by tifffile.

A part is named in pixels of the slide's whole at the scale that is asked for, so that what is read does not depend on where the
parts were cut.
"""

import functools
import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, Protocol

import numpy as np
import openslide
import tifffile
import zarr
from jaxtyping import UInt8
from PIL import Image

from resunet_ray.data.images import to_uint8
from resunet_ray.errors import ImageError, InputError

SUFFIXES = (".svs", ".ndpi", ".scn", ".mrxs", ".vms", ".vmu", ".bif", ".svslide", ".czi")
"""Files of these names are slides, or damaged."""
TIFF_SUFFIXES = (".tif", ".tiff")
"""Files of these names may be."""
MPP_RANGE = (0.05, 20.0)
"""Microns per pixel that a microscope's scan may have; a screen's 264.58 (96 dots per inch) is not among them."""

_MAX_SIDE = 2**21  # pixels; a header that claims more is damaged
_CACHE_BYTES = 2**27  # of decoded pieces, for all slides that a process has open


class _Reader(Protocol):
    """What either library gives."""

    levels: list[tuple[int, int]]
    """Height and width of each, the largest first."""
    mpp: float | None
    format: str

    def read(self, level: int, top: int, left: int, height: int, width: int) -> UInt8[np.ndarray, "_h _w 3"]:
        """A window of a level, in its own pixels, wholly within it."""

    def close(self) -> None:
        """Gives the file back."""


@dataclass(frozen=True)
class SlideInfo:
    """What a slide's header says."""

    height: int
    width: int
    mpp: float | None
    """Microns per pixel of the largest level; None where the file does not say, or what it says makes no sense."""
    stated_mpp: float | None
    """What it says."""
    format: str


class Slide:
    """An open slide; threads may share it."""

    def __init__(self, path: str, *, name: str) -> None:
        """Opens a slide.

        Args:
            path: of the file on this machine.
            name: what errors call it.

        Raises:
            ImageError: neither library reads it, or its header makes no sense.
        """
        self._path, self._name = path, name
        self._lock = threading.Lock()
        with self._naming("opened"):
            self._reader = _open_reader(path)
        height, width = self._reader.levels[0]
        if not (0 < height <= _MAX_SIDE and 0 < width <= _MAX_SIDE):
            raise ImageError(f"{name} claims {height} x {width} pixels: expected at most {_MAX_SIDE} a side")
        stated = self._reader.mpp
        believed = stated if stated is not None and MPP_RANGE[0] <= stated <= MPP_RANGE[1] else None
        self.info = SlideInfo(height, width, believed, stated, self._reader.format)

    def size_at(self, scale: float) -> tuple[int, int]:
        """Height and width of the whole slide, in pixels that are `scale` pixels of its largest level wide."""
        return max(1, int(self.info.height / scale)), max(1, int(self.info.width / scale))

    def read(self, top: int, left: int, height: int, width: int, *, scale: float) -> UInt8[np.ndarray, "_h _w 3"]:
        """A window of the slide as RGB, averaged down from the best level.

        Args:
            top: first row, in pixels of the slide at `scale`.
            left: first column.
            height: of the window, which lies within the slide.
            width: of the window.
            scale: side of a pixel, in those of the largest level.

        Raises:
            ImageError: the slide is damaged there.
        """
        level, factor_y, factor_x = self._best_level(scale)
        rows, columns = self._reader.levels[level]
        box = left * factor_x, top * factor_y, min((left + width) * factor_x, columns), min((top + height) * factor_y, rows)
        first_x, first_y = math.floor(box[0]), math.floor(box[1])
        window = first_y, first_x, math.ceil(box[3]) - first_y, math.ceil(box[2]) - first_x
        with self._lock, self._naming("read"):
            try:
                pixels = self._reader.read(level, *window)
            except Exception:
                self._reader.close()  # after an error OpenSlide reads nothing any more
                self._reader = _open_reader(self._path)
                raise
        if pixels.shape[:2] == (height, width) and factor_x == factor_y == 1:
            return pixels
        inside = box[0] - first_x, box[1] - first_y, box[2] - first_x, box[3] - first_y
        small = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR, box=inside)
        return np.asarray(small)

    def close(self) -> None:
        """Gives the file back."""
        self._reader.close()

    def _best_level(self, scale: float) -> tuple[int, float, float]:
        """The smallest level that is fine enough, and how many of its rows and columns a pixel spans."""
        height, width = self._reader.levels[0]
        best = 0
        for level, (rows, _) in enumerate(self._reader.levels):
            if height / rows <= scale * 1.01:
                best = level
        rows, columns = self._reader.levels[best]
        return best, _snap(scale * rows / height), _snap(scale * columns / width)

    @contextmanager
    def _naming(self, done: str) -> Iterator[None]:
        """What goes wrong with the file becomes an error that names it."""
        try:
            yield
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 (both libraries raise what they like on bad bytes)
            raise ImageError(f"{self._name} cannot be {done} as a slide: {str(error) or type(error).__name__}") from None


def _snap(factor: float) -> float:
    """The nearest whole number where it is that but for a level's rounded size."""
    return float(round(factor)) if abs(factor - round(factor)) < 0.005 * factor else factor


def is_slide(file: IO[bytes], *, max_pixels: int) -> bool:
    """Whether a TIFF is to be read in parts: it has smaller copies of itself, or is too large for one piece.

    Args:
        file: the TIFF, open.
        max_pixels: that are still decoded in one piece.
    """
    try:
        with tifffile.TiffFile(file) as tiff:
            first = tiff.series[0]
            pixels = math.prod(first.shape[:2]) if first.axes.startswith("YX") else math.prod(first.shape)
            return len(first.levels) > 1 or pixels > max_pixels
    except Exception:  # noqa: BLE001 (whatever is wrong, decoding it says so)
        return False


def _open_reader(path: str) -> _Reader:
    # OpenSlide takes any tiled TIFF for a pyramid of 8-bit RGB pages: of 16 bits, of OME's planes and levels it knows nothing.
    if openslide.OpenSlide.detect_format(path) not in (None, "generic-tiff"):
        return _OpenSlideReader(path)
    return _TiffReader(path)


class _OpenSlideReader:
    def __init__(self, path: str) -> None:
        self._slide = openslide.OpenSlide(path)
        self._slide.set_cache(_shared_cache())
        self.levels = [(height, width) for width, height in self._slide.level_dimensions]
        self.mpp = _mean_mpp(*(self._slide.properties.get(f"openslide.mpp-{axis}") for axis in "xy"))
        self.format = self._slide.properties.get("openslide.vendor", "unknown")
        self._background = f"#{self._slide.properties.get('openslide.background-color', 'ffffff')}"
        self._slide.read_region((0, 0), len(self.levels) - 1, (1, 1))  # a header alone is no slide

    def read(self, level: int, top: int, left: int, height: int, width: int) -> UInt8[np.ndarray, "_h _w 3"]:
        rows, columns = self.levels[level]
        # Named in pixels of the largest level, whatever the level.
        place = round(left * self.levels[0][1] / columns), round(top * self.levels[0][0] / rows)
        window = self._slide.read_region(place, level, (width, height))
        whole = Image.new("RGB", window.size, self._background)  # what was not scanned is clear
        whole.paste(window, mask=window.getchannel("A"))
        return np.asarray(whole)

    def close(self) -> None:
        self._slide.close()


@functools.lru_cache(maxsize=1)
def _shared_cache() -> openslide.OpenSlideCache:
    return openslide.OpenSlideCache(_CACHE_BYTES)


class _TiffReader:
    def __init__(self, path: str) -> None:
        self._file = tifffile.TiffFile(path)
        series = self._file.series[0]
        axes = series.axes.replace("S", "C")
        if series.ndim not in (2, 3) or axes.strip("C") != "YX" or series.dtype not in (np.uint8, np.uint16):
            raise ImageError(
                f"its axes are {series.axes} of {series.shape}, its values {series.dtype}: expected one plane of grey or colour, "
                "of 8 or 16 bit. Save the plane that is meant as a file of its own"
            )
        channels = series.shape[axes.index("C")] if "C" in axes else 1
        if channels not in (1, 3):
            raise ImageError(f"it has {channels} channels: expected grey or RGB")
        self._first = axes.startswith("C")  # channels stand before rows and columns
        self._levels = [zarr.open_array(series.aszarr(level=level), mode="r") for level in range(len(series.levels))]
        shapes = [level.shape[1:3] if self._first else level.shape[:2] for level in self._levels]
        self.levels = [(height, width) for height, width in shapes]
        # Whatever a window holds, the same counts give the same grey everywhere in the slide.
        self._largest = int(np.asarray(self._levels[-1]).max()) if series.dtype == np.uint16 else 0
        self.read(len(self.levels) - 1, 0, 0, 1, 1)  # a header alone is no slide
        self.mpp = _tiff_mpp(self._file)
        self.format = "ome-tiff" if self._file.is_ome else "tiff"

    def read(self, level: int, top: int, left: int, height: int, width: int) -> UInt8[np.ndarray, "_h _w 3"]:
        window = slice(top, top + height), slice(left, left + width)
        selected: Any = (slice(None), *window) if self._first else window
        values = np.asarray(self._levels[level][selected])
        if self._first:
            values = np.moveaxis(values, 0, -1)
        values = values[..., None] if values.ndim == 2 else values
        if values.dtype == np.uint16:
            values = to_uint8(values, largest=self._largest)
        return np.ascontiguousarray(np.broadcast_to(values, (*values.shape[:2], 3)))

    def close(self) -> None:
        self._file.close()


def _mean_mpp(x: Any, y: Any) -> float | None:
    values = [float(value) for value in (x, y) if value not in (None, "")]
    return float(np.mean(values)) if values else None


def _tiff_mpp(file: tifffile.TiffFile) -> float | None:
    """Microns per pixel: of OME's metadata, or of the resolution tags (TIFF 6.0, section 8)."""
    if file.is_ome and file.ome_metadata:
        pixels = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]
        pixels = (pixels[0] if isinstance(pixels, list) else pixels)["Pixels"]
        to_microns = {"µm": 1.0, "nm": 1e-3, "mm": 1e3}
        known = [
            axis for axis in "XY" if f"PhysicalSize{axis}" in pixels and pixels.get(f"PhysicalSize{axis}Unit", "µm") in to_microns
        ]
        sizes = [float(pixels[f"PhysicalSize{axis}"]) * to_microns[pixels.get(f"PhysicalSize{axis}Unit", "µm")] for axis in known]
        return float(np.mean(sizes)) if sizes else None
    tags = file.pages.first.tags
    microns = {2: 25400.0, 3: 10000.0}.get(int(tags["ResolutionUnit"].value)) if "ResolutionUnit" in tags else None
    if microns is None or "XResolution" not in tags:
        return None
    numerator, denominator = tags["XResolution"].value
    return microns * denominator / numerator if numerator else None


def companions(path: str) -> list[str]:
    """What belongs to a slide beside its file: MIRAX keeps its pixels in a folder of the same name."""
    stem, suffix = os.path.splitext(path)  # noqa: PTH122 (of a URI as well)
    if suffix.lower() in (".vms", ".vmu"):
        raise InputError(f"{path} names other files: segment it from a folder on this machine's disk")
    return [stem] if suffix.lower() == ".mrxs" else []
