"""A slide in regions: one grid of tiles for all of them, and one region that each object belongs to.

A pixel's probability comes from tiles whose place depends on the slide alone. A region looks at its own window and a margin
around it, as wide as its objects need: an object is measured whole, by the region that holds its centroid. So however a slide is
cut, the same objects come out.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, UInt8

from resunet_ray.config import InstanceConfig
from resunet_ray.model.instances import find_instances
from resunet_ray.model.tiling import Tile, blend_weight, plan_tiles

MARGIN = 64
"""Pixels around its window that a region looks at, at first; doubled while an object reaches beyond."""
LARGEST_MARGIN = 1024
"""An object that reaches still further is no nucleus: each region keeps the piece in its own window."""


BLOCK = 8192
"""Side of a block, pixels: its regions are segmented together, so that few tiles are computed for two of them."""


def block_of(top: int, left: int) -> tuple[int, int]:
    """The block that a window lies in, by its corner."""
    return top // BLOCK, left // BLOCK


@dataclass(frozen=True)
class Grid:
    """The tiles of a slide, at the scale at which it is segmented."""

    height: int
    width: int
    tile: int
    context: int

    def regions(self, side: int) -> list[Tile]:
        """The windows of the slide's regions, block by block; those at its end are cut off there."""
        windows = [
            Tile(top, min(top + side, self.height), left, min(left + side, self.width))
            for top in range(0, self.height, side)
            for left in range(0, self.width, side)
        ]
        return sorted(windows, key=lambda window: (block_of(window.top, window.left), window.top, window.left))

    def widen(self, window: Tile, margin: int) -> Tile:
        """A window with so many pixels more on each side, as far as the slide goes."""
        return Tile(
            max(0, window.top - margin),
            min(self.height, window.bottom + margin),
            max(0, window.left - margin),
            min(self.width, window.right + margin),
        )

    def tiles(self, window: Tile) -> list[Tile]:
        """Those that a window is made of, row by row."""
        return plan_tiles(self.height, self.width, tile=self.tile, context=self.context, window=window)

    def blend(self, window: Tile, probabilities: Mapping[Tile, Float32[np.ndarray, "_h _w"]]) -> Float32[np.ndarray, "h w"]:
        """The probability of a window out of its tiles'."""
        whole = np.zeros(window.shape, np.float32)
        for tile in self.tiles(window):
            inside, place = _overlap(tile, window)
            weight = blend_weight(tile, height=self.height, width=self.width, context=self.context, window=inside)
            whole[place] += probabilities[tile][inside] * weight
        return whole

    def paste(self, window: Tile, images: Mapping[Tile, UInt8[np.ndarray, "_h _w 3"]]) -> UInt8[np.ndarray, "h w 3"]:
        """The image of a window out of its tiles'."""
        whole = np.empty((*window.shape, 3), np.uint8)
        for tile in self.tiles(window):
            inside, place = _overlap(tile, window)
            whole[place] = images[tile][inside]
        return whole


Window = tuple[slice, slice]


def _overlap(tile: Tile, window: Tile) -> tuple[Window, Window]:
    """What two windows share, counted from the corner of the one and of the other."""
    top, bottom = max(tile.top, window.top), min(tile.bottom, window.bottom)
    left, right = max(tile.left, window.left), min(tile.right, window.right)
    inside, place = ((slice(top - one.top, bottom - one.top), slice(left - one.left, right - one.left)) for one in (tile, window))
    return inside, place


@dataclass(frozen=True)
class Objects:
    """What a region finds in its window and the margin around it."""

    labels: Int32[np.ndarray, "h w"]
    """All of it."""
    own: Int32[np.ndarray, "h w"]
    """What belongs to the region, numbered from 1."""
    neighbours: Float64[np.ndarray, "n 2"]
    """Centroids, y and x in pixels of the slide, of what lies in the margin and belongs to other regions, seen whole."""


def find_objects(
    probability: Float32[np.ndarray, "h w"], *, seen: Tile, region: Tile, grid: Grid, config: InstanceConfig, last: bool
) -> Objects | None:
    """Finds instances, and which of them belong to a region.

    Args:
        probability: of what the region sees.
        seen: its window and the margin.
        region: its window.
        grid: of the slide.
        config: threshold and instances.
        last: the margin will not be widened any more: what reaches beyond it is cut at the window.

    Returns:
        None: something that the window holds reaches beyond the margin.
    """
    labels = find_instances(probability, config=config)
    window = _overlap(seen, region)[0]
    cut = _cut_instances(labels, probability >= config.threshold, seen=seen, grid=grid)
    centroids = _centroids(labels) + np.array([seen.top, seen.left])
    inside = _contains(region, centroids)
    inside[0] = False
    here = np.bincount(labels[window].ravel(), minlength=len(inside)) > 0
    here[0] = False
    if (cut & (here | inside)).any() and not last:
        return None
    own = np.where((inside & ~cut)[labels], labels, 0)
    _keep_pieces(own, labels, np.flatnonzero(cut & here), window=window)
    seen_whole = ~cut & ~inside
    seen_whole[0] = False
    seen_whole &= _contains(grid.widen(region, MARGIN), centroids)
    return Objects(labels, _renumber(own), centroids[seen_whole])


def _cut_instances(labels: Int32[np.ndarray, "h w"], mask: Bool[np.ndarray, "h w"], *, seen: Tile, grid: Grid) -> np.ndarray:
    """For each instance whether its component reaches what is not seen, so that it may continue there."""
    _, components = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4, ltype=cv2.CV_32S)
    borders = [
        line
        for line, ends in (
            (components[0], seen.top > 0),
            (components[-1], seen.bottom < grid.height),
            (components[:, 0], seen.left > 0),
            (components[:, -1], seen.right < grid.width),
        )
        if ends
    ]
    open_components = np.zeros(components.max(initial=0) + 1, bool)
    for line in borders:
        open_components[line] = True
    open_components[0] = False
    cut = np.zeros(int(labels.max(initial=0)) + 1, bool)
    if open_components.any():
        cut = np.bincount(labels[open_components[components]], minlength=len(cut)) > 0
    cut[0] = False
    return cut


def _keep_pieces(own: Int32[np.ndarray, "h w"], labels: Int32[np.ndarray, "h w"], numbers: np.ndarray, *, window: Window) -> None:
    """Adds to a region's own what of some instances lies in its window; what falls apart there is counted apart."""
    new = int(labels.max(initial=0)) + 1
    for number in numbers:
        count, pieces = cv2.connectedComponents((labels[window] == number).astype(np.uint8), connectivity=4, ltype=cv2.CV_32S)
        own[window][pieces > 0] = new + pieces[pieces > 0]
        new += count


def _centroids(labels: Int32[np.ndarray, "h w"]) -> Float64[np.ndarray, "n 2"]:
    """Of each label, that of the background among them, y and x; the centre of the first pixel is 0.5."""
    count = int(labels.max(initial=0)) + 1
    rows, columns = np.nonzero(labels)
    numbers = labels[rows, columns]
    area = np.maximum(np.bincount(numbers, minlength=count), 1)
    y = np.bincount(numbers, weights=rows + 0.5, minlength=count) / area
    x = np.bincount(numbers, weights=columns + 0.5, minlength=count) / area
    return np.stack([y, x], axis=1)


def _contains(window: Tile, points: Float64[np.ndarray, "n 2"]) -> Bool[np.ndarray, " n"]:
    y, x = points.T
    return (y >= window.top) & (y < window.bottom) & (x >= window.left) & (x < window.right)  # type: ignore[no-any-return]


def _renumber(labels: Int32[np.ndarray, "h w"]) -> Int32[np.ndarray, "h w"]:
    """From 1, without gaps."""
    numbers = np.zeros(int(labels.max(initial=0)) + 1, np.int32)
    there = np.flatnonzero(np.bincount(labels.ravel()))
    there = there[there > 0]
    numbers[there] = np.arange(1, len(there) + 1)
    renumbered: Int32[np.ndarray, "h w"] = numbers[labels]
    return renumbered


def seam_disagreement(own: Float64[np.ndarray, "n 2"], neighbours: Float64[np.ndarray, "m 2"]) -> float:
    """Share of what regions saw whole in their neighbours' windows that no region has as its own; 0 where they agree.

    Args:
        own: centroids of what belongs to some region, pixels.
        neighbours: centroids of what a region saw and left to a neighbour, pixels.
    """
    there = {tuple(point) for point in np.rint(own).astype(np.int64).tolist()}
    missed = 0
    for y, x in np.floor(neighbours).astype(np.int64).tolist():
        missed += there.isdisjoint({(y, x), (y + 1, x), (y, x + 1), (y + 1, x + 1)})
    return missed / max(1, len(neighbours))
