"""The outlines of instances along the edges of their pixels, as corners in order.

An outline keeps its instance on the left: a shell runs down first, a hole to the right. Each begins
at its topmost corner, of those the leftmost.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import shapely
from jaxtyping import Bool, Int32, Int64, Shaped, UInt8

from resunet_ray.compiled import compiled


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
    corners, start, owner, is_shell = _trace(labels)
    order = np.argsort(owner, kind="stable")
    _require_one_piece(owner[order][is_shell[order]])
    length = np.diff(start, append=len(corners))[order]
    ring = np.repeat(np.arange(len(order)), length)
    moved = start[order] - (np.cumsum(length) - length)
    path = np.arange(len(corners)) + moved[ring]
    return Outlines(corners[path] + np.array(corner[::-1]), ring, owner[order])


def _require_one_piece(owner: Int64[np.ndarray, " shells"]) -> None:
    """Check that each instance has one shell, given the instances of all shells."""
    twice = owner[1:][np.diff(owner) == 0]
    assert not len(twice), f"instance {twice[0] + 1} is in two pieces"


_DOWN, _RIGHT = 1, 2


@compiled
def _trace(
    labels: Int32[np.ndarray, "h w"],
) -> tuple[
    Int64[np.ndarray, "n 2"],
    Int64[np.ndarray, " rings"],
    Int64[np.ndarray, " rings"],
    Bool[np.ndarray, " rings"],
]:
    """Trace rings in the order of the pixels where they begin.

    Returns:
        The column and row of each corner, where among them each ring begins, and of each ring the
        instance, from 0, and whether it is a shell.
    """
    height, width = labels.shape
    seen = np.zeros((height + 1, width + 1), np.uint8)  # the edges that rings have run along
    corners = np.empty((1024, 2), np.int64)
    rings = np.empty((64, 3), np.int64)
    count, end = 0, 0
    for y in range(height):
        for x in range(width):
            own = labels[y, x]
            left = labels[y, x - 1] if x > 0 else 0
            if own == left:
                continue
            above = labels[y - 1, x] if y > 0 else 0
            for begins in (_DOWN, _RIGHT):
                # A shell begins above and to the left of a pixel of its own, a hole below and to
                # the right of two.
                label = own if begins == _DOWN else left
                is_corner = above != label if begins == _DOWN else above == label
                if label == 0 or not is_corner or seen[y, x] & begins:
                    continue
                if count == len(rings):
                    rings = np.concatenate((rings, np.empty_like(rings)))
                rings[count, 0], rings[count, 1], rings[count, 2] = end, label - 1, begins
                count += 1
                corners, end = _follow(labels, label, begins, y, x, seen, corners, end)
    return corners[:end], rings[:count, 0], rings[:count, 1], rings[:count, 2] == _DOWN


@compiled
def _follow(
    labels: Int32[np.ndarray, "h w"],
    label: int,
    begins: int,
    y: int,
    x: int,
    seen: UInt8[np.ndarray, "h+1 w+1"],
    corners: Int64[np.ndarray, "m 2"],
    end: int,
) -> tuple[Int64[np.ndarray, "m 2"], int]:
    """Follow a ring of an instance from its first corner, and return its corners after the others.

    Args:
        labels: label image.
        label: the instance.
        begins: direction of the first edge.
        y: row of the first corner.
        x: its column.
        seen: where edges that run down or to the right are marked.
        corners: those of the rings before, with room for more.
        end: how many they are.
    """
    row, column = y, x
    down, across = (1, 0) if begins == _DOWN else (0, 1)
    turns = True
    while True:
        if turns:
            if end == len(corners):
                corners = np.concatenate((corners, np.empty_like(corners)))
            corners[end, 0], corners[end, 1] = column, row
            end += 1
        if down + across > 0:
            seen[row, column] |= _DOWN if down > 0 else _RIGHT
        row, column = row + down, column + across
        # The pixels ahead, to the right and to the left.
        on_right = _look(labels, 2 * row + down + across, 2 * column + across - down)
        on_left = _look(labels, 2 * row + down - across, 2 * column + across + down)
        turns = on_right == label or on_left != label
        if on_right == label:
            down, across = across, -down
        elif turns:
            down, across = -across, down
        if row == y and column == x and (down if begins == _DOWN else across) == 1:
            return corners, end


@compiled
def _look(labels: Int32[np.ndarray, "h w"], y: int, x: int) -> int:
    """Return the label of the pixel whose middle is at half of y and x; outside, there is none."""
    row, column = y // 2, x // 2
    if 0 <= row < labels.shape[0] and 0 <= column < labels.shape[1]:
        return labels[row, column]  # type: ignore[no-any-return]
    return 0
