"""The outlines of instances along the edges of their pixels, as corners in order.

An outline keeps its instance on the left: a shell runs down first, a hole to the right. Each begins
at its topmost corner, of those the leftmost.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import shapely
from jaxtyping import Bool, Int32, Int64, Shaped


@dataclass(frozen=True)
class Outlines:
    """The rings of all instances, by their numbers; an instance's shell comes before its holes."""

    corners: Int64[np.ndarray, "n 2"]
    """Column and row of each corner, ring after ring; a ring's first is not repeated."""
    ring: Int64[np.ndarray, " n"]
    """The ring of each corner, from 0."""
    owner: Int64[np.ndarray, " rings"]
    """The instance of each ring, from 0: its number less 1."""

    @cached_property
    def instance(self) -> Int64[np.ndarray, " n"]:
        """The instance of each corner, from 0."""
        instance: Int64[np.ndarray, " n"] = self.owner[self.ring]
        return instance

    @cached_property
    def following(self) -> Int64[np.ndarray, "n 2"]:
        """The corner after each corner; after a ring's last comes its first."""
        first = np.flatnonzero(np.diff(self.ring, prepend=-1))
        after = np.arange(1, len(self.ring) + 1)
        after[np.append(first[1:], len(self.ring)) - 1] = first
        following: Int64[np.ndarray, "n 2"] = self.corners[after]
        return following

    def sum(self, values: Shaped[np.ndarray, " n"]) -> Shaped[np.ndarray, " instances"]:
        """Sum what each corner has over the corners of each instance."""
        return np.add.reduceat(values, self._first)

    @property
    def boxes(self) -> tuple[Int64[np.ndarray, "instances 2"], Int64[np.ndarray, "instances 2"]]:
        """The least and the greatest column and row of each instance's corners."""
        low, high = np.minimum, np.maximum
        return low.reduceat(self.corners, self._first), high.reduceat(self.corners, self._first)

    @cached_property
    def _first(self) -> Int64[np.ndarray, " instances"]:
        return np.flatnonzero(np.diff(self.instance, prepend=-1))

    def build_polygons(self, *, scale: float = 1.0) -> np.ndarray:
        """Build the polygon of each instance.

        Args:
            scale: what coordinates are multiplied by.
        """
        rings = shapely.linearrings(self.corners * scale, indices=self.ring)
        polygons: np.ndarray = shapely.polygons(rings, indices=self.owner)
        return polygons


def trace_outlines(
    labels: Int32[np.ndarray, "h w"], *, corner: tuple[int, int] = (0, 0)
) -> Outlines:
    """Trace each instance along the edges of its pixels, so that its area is their number.

    Pixels that touch only at a corner do not belong together: where an outline meets itself, one
    ring becomes two that share a corner. So no ring crosses or touches itself.

    Args:
        labels: numbers from 1 without gaps; the pixels of each are 4-connected.
        corner: row and column of the first pixel.
    """
    height, width = labels.shape[0] + 1, labels.shape[1] + 1
    label, row, column, arrives, leaves = _find_corners(labels)
    place = (label * height + row) * width + column
    by_row, by_column = np.argsort(place), np.argsort((label * width + column) * height + row)
    # Along each line of the grid, every edge of an instance begins at one corner and ends at the
    # next: the corners where edges of one direction begin, and those where they end, are pairs.
    following = np.empty_like(label)
    for direction, order in enumerate((by_row, by_column, by_row, by_column)):
        begins, ends = leaves[order] == direction, arrives[order] == direction
        following[order[begins]] = order[ends]
    path, starts = _walk(following.tolist(), by_row.tolist())
    ring = np.repeat(np.arange(len(starts)), np.diff([*starts, len(path)]))
    first = np.array(path, np.intp)[starts]
    _require_one_piece(label[first], leaves[first])
    places = np.stack([column + corner[1], row + corner[0]], axis=1)
    return Outlines(places[path], ring, label[first] - 1)


def _require_one_piece(
    label: Int64[np.ndarray, " rings"], leaves: Int64[np.ndarray, " rings"]
) -> None:
    """Check that each instance has one shell, given where its rings begin."""
    shells = label[leaves == _DOWN]
    twice = shells[1:][np.diff(shells) == 0]
    assert not len(twice), f"instance {twice[0]} is in two pieces"


_RIGHT, _UP, _LEFT, _DOWN = range(4)


def _find_corners(labels: Int32[np.ndarray, "h w"]) -> tuple[Int64[np.ndarray, " n"], ...]:
    """Find where outlines turn.

    Returns:
        Of each corner: the instance, row and column, and the directions in which its outline
        arrives and leaves. Where an outline meets itself, there are two corners.
    """
    padded = np.pad(labels, 1)
    down, across = padded[1:] != padded[:-1], padded[:, 1:] != padded[:, :-1]
    turns: Bool[np.ndarray, "h+1 w+1"]
    turns = (down[:, 1:] | down[:, :-1]) & (across[1:] | across[:-1])
    row, column = np.divmod(np.flatnonzero(turns), turns.shape[1])
    # Counterclockwise from the upper left. An outline that passes around one of the four pixels
    # arrives in the direction of the same number.
    around = [padded[row + y, column + x] for y, x in ((0, 0), (1, 0), (1, 1), (0, 1))]
    found = []
    for direction, pixel in enumerate(around):
        before, opposite, after = (around[(direction + turn) % 4] for turn in (3, 2, 1))
        convex = (pixel > 0) & (pixel != before) & (pixel != after) & (pixel != opposite)
        concave = (before > 0) & (before == after) & (before != pixel)
        for there, label, arrives, leaves in (
            (convex, pixel, direction, direction + 1),
            (concave, before, direction + 3, direction + 2),
        ):
            place = np.flatnonzero(there)
            found.append(
                (
                    label[place].astype(np.int64),
                    row[place],
                    column[place],
                    np.full(len(place), arrives % 4),
                    np.full(len(place), leaves % 4),
                )
            )
    return tuple(np.concatenate(parts) for parts in zip(*found, strict=True))


def _walk(following: list[int], order: list[int]) -> tuple[list[int], list[int]]:
    """Follow each ring from the first of its corners in an order.

    Returns:
        The corners, ring after ring, and where among them each ring starts.
    """
    path: list[int] = []
    starts: list[int] = []
    seen = bytearray(len(following))
    for corner in order:
        if seen[corner]:
            continue
        starts.append(len(path))
        while not seen[corner]:
            seen[corner] = True
            path.append(corner)
            corner = following[corner]
    return path, starts
