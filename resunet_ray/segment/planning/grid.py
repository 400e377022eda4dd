"""The grid of a slide: its tiles, its regions, and its squares, some of which have tissue.

The gate says which squares do. An object counts if the square with its centroid has tissue. The
squares are independent of the regions, so what counts does not depend on how the slide is cut.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, UInt8

from resunet_ray.model.prediction import Prediction
from resunet_ray.model.tiling import Box, Slices, blend_weights, plan_tiles

SQUARE = 512
"""Side of a square, pixels of the slide at the scale at which it is segmented."""
REACH = 1024
"""Pixels: an object that reaches into a region has its centroid within this distance of it."""


@dataclass(frozen=True)
class Gate:
    """The squares in and around one region."""

    top: int
    """Number of the first row of squares."""
    left: int
    has_tissue: Bool[np.ndarray, "rows columns"]

    @classmethod
    def of(cls, squares: Bool[np.ndarray, "_rows _columns"], *, region: Box) -> "Gate":
        """Return the gate of a region, given all squares of the slide."""
        top, bottom, left, right = _near(region, *squares.shape)
        return cls(top, left, squares[top:bottom, left:right])

    @classmethod
    def unpack(cls, packed: bytes, *, region: Box, height: int, width: int) -> "Gate":
        """Read what `pack` wrote.

        Args:
            packed: of this region.
            region: its window.
            height: of the slide, pixels.
            width: of the slide.
        """
        top, bottom, left, right = _near(region, -(-height // SQUARE), -(-width // SQUARE))
        bits = np.unpackbits(np.frombuffer(packed, np.uint8), count=(bottom - top) * (right - left))
        return cls(top, left, bits.reshape(bottom - top, right - left).astype(bool))

    def pack(self) -> bytes:
        """Pack the squares into bits."""
        return np.packbits(self.has_tissue).tobytes()

    def lets_in(self, points: Float64[np.ndarray, "n 2"]) -> Bool[np.ndarray, " n"]:
        """Whether the square of each point has tissue.

        Args:
            points: y and x, in pixels of the slide. The nearest square counts for a point beyond.
        """
        rows, columns = (
            np.clip(points[:, axis] // SQUARE - first, 0, self.has_tissue.shape[axis] - 1).astype(
                int
            )
            for axis, first in enumerate((self.top, self.left))
        )
        let_in: Bool[np.ndarray, " n"] = self.has_tissue[rows, columns]
        return let_in


def squares_of(window: Box) -> tuple[slice, slice]:
    """Return the slices that select a window's squares among those of the slide."""
    return slice(window.top // SQUARE, -(-window.bottom // SQUARE)), slice(
        window.left // SQUARE, -(-window.right // SQUARE)
    )


def _near(region: Box, rows: int, columns: int) -> tuple[int, int, int, int]:
    """Return the half-open ranges of rows and columns of squares within reach of a region."""
    return (
        max(0, region.top - REACH) // SQUARE,
        min(rows, -(-(region.bottom + REACH) // SQUARE)),
        max(0, region.left - REACH) // SQUARE,
        min(columns, -(-(region.right + REACH) // SQUARE)),
    )


BLOCK = 8192
"""Side of a block, pixels: its regions are segmented together, so few tiles are computed twice."""


def block_of(top: int, left: int) -> tuple[int, int]:
    """Return the block that a window's corner lies in."""
    return top // BLOCK, left // BLOCK


@dataclass(frozen=True)
class Grid:
    """A slide at the scale at which it is segmented. Its tiles depend on nothing else."""

    height: int
    width: int
    tile: int
    context: int

    def regions(self, side: int) -> list[Box]:
        """Return the windows of the regions, block by block, clipped to the slide."""
        windows = [
            Box(top, min(top + side, self.height), left, min(left + side, self.width))
            for top in range(0, self.height, side)
            for left in range(0, self.width, side)
        ]
        return sorted(
            windows, key=lambda window: (block_of(window.top, window.left), window.top, window.left)
        )

    def squares(self, window: Box) -> list[Box]:
        """Those of the fixed grid that a window lies in, row by row."""
        return [
            Box(top, min(top + SQUARE, self.height), left, min(left + SQUARE, self.width))
            for top in range(window.top // SQUARE * SQUARE, window.bottom, SQUARE)
            for left in range(window.left // SQUARE * SQUARE, window.right, SQUARE)
        ]

    def widen(self, window: Box, margin: int) -> Box:
        """Return a window with a margin on each side, clipped to the slide."""
        return Box(
            max(0, window.top - margin),
            min(self.height, window.bottom + margin),
            max(0, window.left - margin),
            min(self.width, window.right + margin),
        )

    def tiles(self, window: Box) -> list[Box]:
        """Return the tiles that cover a window, row by row."""
        return plan_tiles(
            self.height, self.width, tile=self.tile, context=self.context, window=window
        )

    def blend(self, window: Box, predictions: Mapping[Box, Prediction]) -> Prediction:
        """Blend the prediction of a window from those of its tiles."""
        tiles = self.tiles(window)
        first = predictions[tiles[0]]
        whole = np.zeros((len(first.maps), *window.shape), np.float32)
        for tile in tiles:
            inside, place = overlap(tile, window)
            rows, columns = blend_weights(
                tile, height=self.height, width=self.width, context=self.context
            )
            predictions[tile].add_to(
                whole, part=inside, place=place, rows=rows[inside[0]], columns=columns[inside[1]]
            )
        return Prediction(whole, first.heads)

    def paste(
        self, window: Box, images: Mapping[Box, UInt8[np.ndarray, "_h _w 3"]]
    ) -> UInt8[np.ndarray, "h w 3"]:
        """Assemble the image of a window from its tiles."""
        whole = np.empty((*window.shape, 3), np.uint8)
        for tile in self.tiles(window):
            inside, place = overlap(tile, window)
            whole[place] = images[tile][inside]
        return whole


def overlap(one: Box, other: Box) -> tuple[Slices, Slices]:
    """Return what two boxes share, relative to the corner of each."""
    shared = one.intersect(other)
    inside, place = (
        (
            slice(shared.top - box.top, shared.bottom - box.top),
            slice(shared.left - box.left, shared.right - box.left),
        )
        for box in (one, other)
    )
    return inside, place
