"""A level of a TIFF in strips or tiles, of which only those needed are read and decoded."""

import math
import struct
from collections.abc import Sequence
from typing import Any

import imagecodecs
import numpy as np
import tifffile

from resunet_ray.data.raster.indexing import number_places, picked_shape, to_ranges
from resunet_ray.data.raster.tiff_checks import MINISBLACK
from resunet_ray.errors import ImageError

Box = Sequence[range]
"""Part of a page by separate sample, depth, row, column and sample of a pixel, as tifffile orders
them."""

_LZW, _DIFFERENCES = 5, 2  # Compression and Predictor (TIFF 6.0, sections 13 and 14)
_SHORT, _LONG = 3, 4  # types of tags
_MARKS = {"<": b"II", ">": b"MM"}
_HEADER_BYTES = 8 + 2 + 10 * 12 + 4  # of a TIFF whose only directory has ten tags (section 2)
_BUFFER = 2**24  # bytes of neighbouring strips or tiles that are read at once


class Segments:
    """An array that is indexed by numbers and ranges."""

    def __init__(self, level: tifffile.TiffPageSeries, *, fill: int) -> None:
        """Read nothing yet.

        Args:
            level: whose last axes are those of its pages.
            fill: the value where a scanner left a strip or tile out.

        Raises:
            ImageError: a page is not one of its planes.
        """
        self._pages, self._page, self._fill = level.pages, level.keyframe, fill
        first, shape = len(level.shape), level.shape
        while first and math.prod(shape[first:]) < self._page.size:
            first -= 1
        self._outer, self._inner = shape[:first], shape[first:]
        if _without_ones(self._inner) != _without_ones(self._page.shaped):
            raise ImageError(
                f"its planes of {shape} are stored in pages of {self._page.shape}: expected each "
                "plane in a page of its own. Save it again"
            )

    def __getitem__(self, index: tuple[int | slice, ...]) -> np.ndarray:
        """Return part of the array."""
        outer, inner = index[: len(self._outer)], index[len(self._outer) :]
        numbers = number_places(to_ranges(outer, self._outer), self._outer)
        sides = to_ranges(inner, self._inner)
        own = iter([side for side, size in zip(sides, self._inner, strict=True) if size > 1])
        box = [next(own) if size > 1 else range(1) for size in self._page.shaped]
        whole = np.stack([self._read_page(self._pages[number], box) for number in numbers])
        return whole.reshape(picked_shape(index, (*self._outer, *self._inner)))

    def _read_page(self, page: Any, box: Box) -> np.ndarray:
        values = np.full([len(side) for side in box], self._fill, self._page.dtype)
        numbers = self._find(box)
        tables: dict[str, Any] = {
            "jpegtables": page.jpegtables,
            "jpegheader": self._page.jpegheader,
        }
        tables = {name: table for name, table in tables.items() if table is not None}
        for content, number in page.parent.filehandle.read_segments(
            [page.dataoffsets[number] for number in numbers],
            [page.databytecounts[number] for number in numbers],
            indices=numbers,
            buffersize=_BUFFER,
        ):
            if content is None:
                continue
            known = None if self._is_lzw else content
            segment, place, shape = self._page.decode(known, number, **tables)
            if segment is None:
                segment = self._decode_lzw(content, shape)
            _paste(values, segment, box, place)
        return values

    def _find(self, box: Box) -> list[int]:
        """Return the numbers of the strips or tiles that a box touches."""
        page = self._page
        high, wide = page.rowsperstrip, page.imagewidth
        deep = 1
        if page.is_tiled:
            deep, high, wide = page.tiledepth, page.tilelength, page.tilewidth
        sides = (1, deep, high, wide)
        counts = [-(-length // side) for length, side in zip(page.shaped, sides, strict=False)]
        spans = [
            range(span.start // side, -(-span.stop // side))
            for span, side in zip(box, sides, strict=False)
        ]
        return number_places(spans, counts)

    @property
    def _is_lzw(self) -> bool:
        page = self._page
        return bool(
            page.compression == _LZW
            and page.bitspersample in (8, 16)
            and np.dtype(page.dtype).kind in "iu"
            and page.predictor in (1, _DIFFERENCES)
            and page.fillorder == 1
        )

    def _decode_lzw(self, content: bytes, shape: Sequence[int]) -> np.ndarray:
        """Decode a strip or tile as a TIFF of its own: libtiff is twice as fast as imagecodecs."""
        depth, height, width, samples = shape
        order = self._page.parent.byteorder
        tags = [
            (256, _LONG, width),
            (257, _LONG, depth * height),
            (258, _SHORT, self._page.bitspersample),
            (259, _SHORT, _LZW),
            (262, _SHORT, MINISBLACK),
            (273, _LONG, _HEADER_BYTES),
            (277, _SHORT, samples),
            (278, _LONG, depth * height),
            (279, _LONG, len(content)),
            (317, _SHORT, self._page.predictor),
        ]
        header = struct.pack(f"{order}2sHIH", _MARKS[order], 42, 8, len(tags))
        for code, kind, value in tags:
            form = "HHIHxx" if kind == _SHORT else "HHII"
            header += struct.pack(f"{order}{form}", code, kind, 1, value)
        values = imagecodecs.tiff_decode(header + bytes(4) + content)
        return np.asarray(values.view(np.dtype(self._page.dtype).newbyteorder("="))).reshape(shape)


def _without_ones(shape: Sequence[int]) -> list[int]:
    return [length for length in shape if length > 1]


def _paste(values: np.ndarray, segment: np.ndarray, box: Box, place: Sequence[int]) -> None:
    """Copy what of a strip or tile is in a box."""
    sources: list[slice] = []
    targets: list[int | slice] = [place[0] - box[0].start]
    for side, start, length in zip(box[1:], place[1:], segment.shape, strict=True):
        low, high = max(side.start, start), min(side.stop, start + length)
        sources.append(slice(low - start, high - start))
        targets.append(slice(low - side.start, high - side.start))
    values[tuple(targets)] = segment[tuple(sources)]
