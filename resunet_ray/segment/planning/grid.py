"""The grid of a slide: its tiles, its regions, and the squares on which objects are decided."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from resunet_ray.model.heads import Prediction
from resunet_ray.model.tiling import Box, blend_weight, plan_tiles
from resunet_ray.segment.planning.gate import SQUARE

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
            weight = blend_weight(
                tile, height=self.height, width=self.width, context=self.context, window=inside
            )
            whole[:, *place] += predictions[tile].maps[:, *inside] * weight
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


Slices = tuple[slice, slice]


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
