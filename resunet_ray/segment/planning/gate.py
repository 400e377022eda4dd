"""The gate: on which cells of a slide there is tissue. An object counts if the cell that holds its centroid has some.

The cells lie on a grid of their own, so that what counts does not depend on how the slide is cut into regions.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64

from resunet_ray.model.tiling import Box

CELL = 512
"""Side of a cell, pixels of the slide at the scale at which it is segmented."""
REACH = 1024
"""Pixels around a region: an object that lies in it has its centroid no farther away."""


@dataclass(frozen=True)
class Gate:
    """The cells in and around one region."""

    top: int
    """Number of the first row of cells."""
    left: int
    has_tissue: Bool[np.ndarray, "rows columns"]

    @classmethod
    def of(cls, cells: Bool[np.ndarray, "_rows _columns"], *, region: Box) -> "Gate":
        """That of a region of a slide all of whose cells are known."""
        top, bottom, left, right = _near(region, *cells.shape)
        return cls(top, left, cells[top:bottom, left:right])

    @classmethod
    def unpack(cls, packed: bytes, *, region: Box, height: int, width: int) -> "Gate":
        """What `pack` wrote.

        Args:
            packed: of that region.
            region: its window.
            height: of the slide, pixels.
            width: of the slide.
        """
        top, bottom, left, right = _near(region, -(-height // CELL), -(-width // CELL))
        bits = np.unpackbits(np.frombuffer(packed, np.uint8), count=(bottom - top) * (right - left))
        return cls(top, left, bits.reshape(bottom - top, right - left).astype(bool))

    def pack(self) -> bytes:
        """The same in few bytes."""
        return np.packbits(self.has_tissue).tobytes()

    def lets_in(self, points: Float64[np.ndarray, "n 2"]) -> Bool[np.ndarray, " n"]:
        """Whether the cell of each point, y and x in pixels of the slide, has tissue. Points beyond go by the nearest cell."""
        rows, columns = (
            np.clip(points[:, axis] // CELL - first, 0, self.has_tissue.shape[axis] - 1).astype(int)
            for axis, first in enumerate((self.top, self.left))
        )
        let_in: Bool[np.ndarray, " n"] = self.has_tissue[rows, columns]
        return let_in


def cells_of(window: Box) -> tuple[slice, slice]:
    """The cells that a window lies in: what to index those of the slide with."""
    return slice(window.top // CELL, -(-window.bottom // CELL)), slice(
        window.left // CELL, -(-window.right // CELL)
    )


def _near(region: Box, rows: int, columns: int) -> tuple[int, int, int, int]:
    """First row of cells within reach, the one behind the last, and the same of columns."""
    return (
        max(0, region.top - REACH) // CELL,
        min(rows, -(-(region.bottom + REACH) // CELL)),
        max(0, region.left - REACH) // CELL,
        min(columns, -(-(region.right + REACH) // CELL)),
    )
