"""The gate: which squares of a slide have tissue.

An object counts if the square with its centroid has tissue. The squares are independent of the
regions, so what counts does not depend on how the slide is cut.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64

from resunet_ray.model.tiling import Box

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
