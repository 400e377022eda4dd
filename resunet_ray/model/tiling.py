"""Tiles: split an image of any size for the network, and merge the results.

Tiles lie on one grid anchored at the origin and overlap by twice the context. In the overlap, two
tiles are blended linearly, so that no seam shows and the weights of each pixel sum to one.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

Slices = tuple[slice, slice]
"""Rows and columns."""


@dataclass(frozen=True)
class Box:
    """A rectangle of an image, in pixels: half-open ranges of rows and columns."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        return self.bottom - self.top, self.right - self.left

    def intersect(self, other: "Box") -> "Box":
        """Return what two boxes that overlap share."""
        return Box(
            max(self.top, other.top),
            min(self.bottom, other.bottom),
            max(self.left, other.left),
            min(self.right, other.right),
        )

    @property
    def window(self) -> Slices:
        """Slices that cut the box out of an array (h, w, …)."""
        return slice(self.top, self.bottom), slice(self.left, self.right)


def plan_tiles(
    height: int, width: int, *, tile: int, context: int, window: Box | None = None
) -> list[Box]:
    """Return the tiles that cover an image, row by row, cropped to the image.

    Args:
        height: height of the image, pixels.
        width: width of the image, pixels.
        tile: side of a tile, pixels. An image that is not larger is one tile.
        context: half the overlap of neighbouring tiles, pixels.
        window: part of the image to cover; all of it by default.
    """
    wanted = window or Box(0, height, 0, width)
    columns = list(_intervals(width, wanted.left, wanted.right, tile=tile, context=context))
    return [
        Box(top, bottom, left, right)
        for top, bottom in _intervals(height, wanted.top, wanted.bottom, tile=tile, context=context)
        for left, right in columns
    ]


def _intervals(
    length: int, first: int, end: int, *, tile: int, context: int
) -> Iterator[tuple[int, int]]:
    """Yield start and end, along one axis, of the tiles that overlap `first` to `end`."""
    for start in range(0, length - 2 * context, tile - 2 * context) if length > tile else range(1):
        if start < end and start + tile > first:
            yield start, min(start + tile, length)


def blend_weights(
    tile: Box, *, height: int, width: int, context: int
) -> tuple[Float32[np.ndarray, " h"], Float32[np.ndarray, " w"]]:
    """Return the weight of each row and of each column of a tile; a pixel's is their product.

    It is 1 inside and at the image's border, and a linear ramp where a neighbouring tile overlaps.

    Args:
        tile: the tile.
        height: height of the image, pixels.
        width: width of the image, pixels.
        context: half the overlap of neighbouring tiles, pixels.
    """
    rows = _ramp(tile.top, tile.bottom, length=height, overlap=2 * context)
    columns = _ramp(tile.left, tile.right, length=width, overlap=2 * context)
    return rows, columns


def _ramp(start: int, end: int, *, length: int, overlap: int) -> Float32[np.ndarray, " n"]:
    weight = np.ones(end - start, np.float32)
    rising = (np.arange(overlap, dtype=np.float32) + 0.5) / max(overlap, 1)
    if start > 0:
        weight[:overlap] *= rising
    if end < length:
        weight[len(weight) - overlap :] *= rising[::-1]
    return weight
