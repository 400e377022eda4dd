"""Objects of a slide in regions: however it is cut, the same objects come out, each in one region.

A pixel's probability comes from tiles whose place depends on the slide alone. A region looks at its
own window and a margin, as wide as the components of the mask that reach into it. So an object is
measured whole, by the region that holds its centroid.

A component longer than `LONGEST` (dense tissue, a fold, a pen mark) would need too wide a margin.
Its objects are found in each square of a fixed grid, with a halo around it, and belong to the
square that holds their centroid. An object longer than the halo is cut along the squares.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, UInt8

from resunet_ray.config import InstanceConfig
from resunet_ray.model.connected import label_components, mark_labels, renumber, sum_places, survey
from resunet_ray.model.instances import find_components, find_instances, keep_instances
from resunet_ray.model.prediction import Prediction
from resunet_ray.model.tiling import Box
from resunet_ray.segment.planning.grid import REACH, Gate, Grid, overlap

MARGIN = 64
"""Pixels around its window that a region looks at first; doubled while components reach beyond."""
LONGEST = REACH
"""Pixels in rows or columns: a longer component is processed square by square."""
HALO = 256
"""Pixels around a square in which its objects are found; longer objects are cut."""

Points = Float64[np.ndarray, "n 2"]
"""Places y and x in pixels of the slide; the centre of its first pixel is 0.5."""
Look = Callable[[Box], Prediction]
"""Window of the slide → what the network says about its pixels."""


@dataclass(frozen=True)
class WindowObjects:
    """Whole objects in a window of the slide."""

    window: Box
    labels: Int32[np.ndarray, "h w"]
    """Numbered from 1."""
    probability: Float32[np.ndarray, "h w"]


@dataclass(frozen=True)
class RegionObjects:
    """The objects of a region."""

    labels: Int32[np.ndarray, "h w"]
    """Everything in its window, including objects of its neighbours."""
    probability: Float32[np.ndarray, "h w"]
    """Of the region's window."""
    own: Sequence[WindowObjects]
    """The objects that belong to the region."""
    neighbours: Points
    """Centroids of whole objects in the margin that belong to other regions."""


@dataclass(frozen=True)
class _View(WindowObjects):
    """A window and all objects in it."""

    components: Int32[np.ndarray, "h w"]
    """Those of the mask, numbered from 1."""
    marks: UInt8[np.ndarray, " n"]
    """For each of them, `_CLOSE`, `_LONG`, both, or neither."""


_CLOSE = 1
"""At or near the window's border: pixels beyond may change how it is split."""
_LONG = 2
"""Touches the border, or is longer than `LONGEST`."""


def find_objects(
    look: Look, *, region: Box, grid: Grid, config: InstanceConfig, gate: Gate | None = None
) -> RegionObjects:
    """Find the objects in a region, and those that belong to it.

    Args:
        look: predicts any window.
        region: its window.
        grid: of the slide.
        config: threshold and instances.
        gate: where objects count, by their centroids; None: everywhere.
    """
    margin = MARGIN
    while True:
        view = _view(look, grid.widen(region, margin), grid=grid, config=config)
        shown = view.labels[overlap(view.window, region)[0]].copy()
        points = _centroids(view)
        count = len(points) - 1
        here = _contains(region, points)
        near = here | _list_present(shown, count)
        marks = mark_labels(view.labels, view.components, view.marks, count)
        if margin >= LONGEST or not (near & (marks & _CLOSE > 0)).any():
            break
        margin *= 2
    long = marks & _LONG > 0
    counted = ~long & _let_in(points, gate)
    renumber(shown, np.where(counted, np.arange(count + 1), 0).astype(np.int32))
    own, neighbours = [_keep(view, counted & here)], [points[counted & ~here]]
    if (near & long).any():
        is_long = (view.marks & _LONG > 0)[view.components]
        for square in grid.squares(region):
            if not is_long[overlap(view.window, grid.widen(square, HALO))[0]].any():
                continue
            found = _find_in_square(look, square, view=view, grid=grid, config=config)
            points = _centroids(found)
            counted, here = _let_in(points, gate), _contains(region, points)
            own.append(_keep(found, counted & here & _contains(square, points)))
            neighbours.append(points[counted & ~here])
            part = square.intersect(region)
            labels = found.labels[overlap(found.window, part)[0]]
            new = counted[labels] & is_long[overlap(view.window, part)[0]]
            place = overlap(region, part)[0]
            shown[place] = np.where(new, labels + shown.max(initial=0), shown[place])
    seen = np.concatenate(neighbours)
    return RegionObjects(
        shown,
        view.probability[overlap(view.window, region)[0]],
        own,
        seen[_contains(grid.widen(region, MARGIN), seen)],
    )


def _view(look: Look, window: Box, *, grid: Grid, config: InstanceConfig) -> _View:
    prediction = look(window)
    probability = prediction.probability
    components, count = find_components(prediction, config=config)
    boxes, _ = survey(components, count)
    top, left, bottom, right = boxes.T
    # Distance from each component to the nearest border that is not the slide's own.
    room = np.full(count + 1, LONGEST)
    for free, goes_on in (
        (top, window.top > 0),
        (left, window.left > 0),
        (probability.shape[0] - bottom, window.bottom < grid.height),
        (probability.shape[1] - right, window.right < grid.width),
    ):
        room = np.minimum(room, free) if goes_on else room
    is_long = (room == 0) | (right - left > LONGEST) | (bottom - top > LONGEST)
    marks = _CLOSE * (room < MARGIN // 4) + _LONG * is_long
    marks[0] = 0
    labels = find_instances(prediction, config=config, components=(components, count))
    return _View(window, labels, probability, components, marks.astype(np.uint8))


def _find_in_square(
    look: Look, square: Box, *, view: _View, grid: Grid, config: InstanceConfig
) -> WindowObjects:
    """Find the objects of long components in a square and its halo.

    An object longer than the halo is cut: its pieces within the square count. The window depends on
    the grid alone, so that every region that shares the square finds the same objects.
    """
    window = grid.widen(square, HALO)
    prediction = look(window)
    labels = find_instances(prediction, config=config)
    place, known = overlap(window, view.window)
    count = int(labels.max(initial=0))
    kept = mark_labels(labels[place], view.components[known], view.marks & _LONG, count) > 0
    pieces = np.zeros_like(labels)
    inside, last = overlap(window, square)[0], count
    boxes, _ = survey(labels, count)
    lengths = (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
    for number in np.flatnonzero(kept & (lengths > HALO)).tolist():
        kept[number] = False
        parts, added = label_components((labels[inside] == number).view(np.uint8))
        pieces[inside][parts > 0] = last + parts[parts > 0]
        last += added
    return WindowObjects(window, np.where(kept[labels], labels, pieces), prediction.probability)


def _list_present(labels: Int32[np.ndarray, "h w"], count: int) -> Bool[np.ndarray, " n"]:
    """Return, by number up to `count`, which labels occur; 0 never counts."""
    return mark_labels(labels, labels, np.ones(count + 1, np.uint8), count) > 0


def _keep(found: WindowObjects, wanted: Bool[np.ndarray, " n"]) -> WindowObjects:
    """Keep some of the objects that occur, renumbered from 1."""
    return WindowObjects(found.window, keep_instances(found.labels, wanted), found.probability)


def _centroids(found: WindowObjects) -> Points:
    """Return the centroid of each label; that of 0 means nothing."""
    areas, rows, columns = sum_places(found.labels, int(found.labels.max(initial=0)))
    sums: Points = np.stack([rows, columns], axis=1) + 0.5 * areas[:, None]
    points: Points = sums / np.maximum(areas, 1)[:, None] + [found.window.top, found.window.left]
    points[areas == 0] = -1  # outside every region
    return points


def _let_in(points: Points, gate: Gate | None) -> Bool[np.ndarray, " n"]:
    """Whether each object counts; the background never does."""
    counted: Bool[np.ndarray, " n"] = (
        np.ones(len(points), bool) if gate is None else gate.lets_in(points)
    )
    counted[0] = False
    return counted


def _contains(window: Box, points: Points) -> Bool[np.ndarray, " n"]:
    y, x = points.T
    return (y >= window.top) & (y < window.bottom) & (x >= window.left) & (x < window.right)  # type: ignore[no-any-return]


def seam_disagreement(
    own: Float64[np.ndarray, "n 2"], neighbours: Float64[np.ndarray, "m 2"]
) -> float:
    """Return the share of objects seen in a neighbour's window that no region owns.

    Args:
        own: centroids of the objects that belong to some region, pixels.
        neighbours: centroids of the objects that a region saw and left to a neighbour, pixels.
    """
    there = {tuple(point) for point in np.rint(own).astype(np.int64).tolist()}
    missed = 0
    for y, x in np.floor(neighbours).astype(np.int64).tolist():
        missed += there.isdisjoint({(y, x), (y + 1, x), (y, x + 1), (y + 1, x + 1)})
    return missed / max(1, len(neighbours))
