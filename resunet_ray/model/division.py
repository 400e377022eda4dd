"""Components of a mask divided among the nuclei that the network sees in them.

A component's labels depend on nothing outside it, and numbers need not be consecutive. Most
components hold one nucleus; only the others are looked at again, each within its bounding box.
"""

import numpy as np
from jaxtyping import Float32, Int32

from resunet_ray.compiled import compiled
from resunet_ray.model.connected import label_components, renumber, survey

_FAR = 2**30
_OUTSIDE = -1
_STEPS = (
    (2, 1, 143976),
    (2, -1, 143976),
    (1, 2, 143976),
    (1, 1, 91750),
    (1, 0, 65536),
    (1, -1, 91750),
    (1, -2, 143976),
    (0, 1, 65536),
)
"""Rows back, columns back, and the length in 65536ths of a pixel: 1, 1.4 and 2.1969, for a distance
within 2% of the Euclidean (Borgefors, "Distance transformations in digital images", 1986)."""
_SIDES = (-1, 0), (0, -1), (0, 1), (1, 0)
_AROUND = (*_SIDES, (-1, -1), (-1, 1), (1, -1), (1, 1))


def divide_components(
    labels: Int32[np.ndarray, "h w"],
    count: int,
    distance: Float32[np.ndarray, "h w"],
    *,
    marker_distance: float,
    centre: Float32[np.ndarray, "2 h w"] | None,
    marker_area: int,
) -> None:
    """Divide each component that has several markers among them, in place.

    The inside of nuclei is the markers: the components of what is far enough from the border.
    A pixel belongs to the marker nearest to where it sees its centre, or to itself without a
    prediction of centres. What that leaves in a second piece goes to the neighbour. Holes within
    an instance are filled.

    Args:
        labels: components of the mask, numbered from 1.
        count: how many there are.
        distance: from the border, 0 to 1.
        marker_distance: pixels with a greater distance are the inside of nuclei.
        centre: rows and columns from each pixel to the centre of its nucleus.
        marker_area: markers with fewer pixels are dropped.
    """
    ways = np.zeros((2, 0, 0), np.float32) if centre is None else centre
    _divide(labels, count, distance, marker_distance, ways, marker_area)


@compiled
def _divide(
    labels: Int32[np.ndarray, "h w"],
    count: int,
    distance: Float32[np.ndarray, "h w"],
    marker_distance: float,
    centre: Float32[np.ndarray, "2 _h _w"],
    marker_area: int,
) -> None:
    """Divide components with several markers, and fill holes, in place."""
    boxes, holes = survey(labels, count)
    last = count
    for number in range(1, count + 1):
        top, left, bottom, right = boxes[number]
        window = labels[top:bottom, left:right]
        inner = np.zeros(window.shape, np.int32)
        _find_inner(inner, window, number, distance[top:bottom, left:right], marker_distance)
        markers, pieces = label_components(inner)
        if pieces > 1:
            pieces = _drop_small(markers, pieces, marker_area)
        if pieces > 1:
            _leave_out(markers, window, number)
            grown = _grow(markers, centre[:, top:bottom, left:right])
            _replace(window, grown, last)
            last += pieces
        if holes[number] > 0:
            _fill_holes(window)


@compiled
def _find_inner(
    inner: Int32[np.ndarray, "h w"],
    labels: Int32[np.ndarray, "h w"],
    number: int,
    distance: Float32[np.ndarray, "h w"],
    least: float,
) -> None:
    """Set the pixels of a component that are far from the border to 1, in place."""
    for y, x in np.ndindex(labels.shape):
        if labels[y, x] == number and distance[y, x] > least:
            inner[y, x] = 1


@compiled
def _drop_small(labels: Int32[np.ndarray, "h w"], count: int, least: int) -> int:
    """Remove labels with fewer pixels, in place, renumber the others, and return their number."""
    number = np.zeros(count + 1, np.int32)
    for y, x in np.ndindex(labels.shape):
        number[labels[y, x]] += 1
    kept = 0
    for label in range(1, count + 1):
        large = number[label] >= least
        kept += large
        number[label] = kept if large else 0
    renumber(labels, number)
    return kept


@compiled
def _leave_out(
    markers: Int32[np.ndarray, "h w"], labels: Int32[np.ndarray, "h w"], number: int
) -> None:
    """Set all that is not of the component to `_OUTSIDE`, in place."""
    for y, x in np.ndindex(labels.shape):
        if labels[y, x] != number:
            markers[y, x] = _OUTSIDE


@compiled
def _replace(labels: Int32[np.ndarray, "h w"], grown: Int32[np.ndarray, "h w"], last: int) -> None:
    """Put in place of a component what it is divided into, with numbers after the last."""
    for y, x in np.ndindex(labels.shape):
        if grown[y, x] > 0:
            labels[y, x] = last + grown[y, x]


@compiled
def _grow(
    markers: Int32[np.ndarray, "h w"], centre: Float32[np.ndarray, "2 _h _w"]
) -> Int32[np.ndarray, "h w"]:
    """Divide a component among its markers; each gets one piece.

    Args:
        markers: of the component, or `_OUTSIDE`, within its bounding box.
        centre: rows and columns from each pixel to the centre of its nucleus, or nothing.
    """
    height, width = markers.shape
    nearest = find_nearest(markers)
    grown = np.zeros((height, width), np.int32)
    for y, x in np.ndindex(markers.shape):
        row, column = float(y), float(x)
        if centre.size > 0:
            row = min(max(np.rint(y + centre[0, y, x]), 0), height - 1)
            column = min(max(np.rint(x + centre[1, y, x]), 0), width - 1)
        grown[y, x] = markers[y, x] if markers[y, x] != 0 else nearest[int(row), int(column)]
    if _free_pieces(grown, markers):
        _flood(grown)
    return grown


@compiled
def _free_pieces(grown: Int32[np.ndarray, "h w"], markers: Int32[np.ndarray, "h w"]) -> bool:
    """Set pieces that hold no marker to 0, in place, and return whether there are any."""
    pieces, count = label_components(grown)
    freed = False
    whole = np.zeros(count + 1, np.int32)
    for y, x in np.ndindex(grown.shape):
        if markers[y, x] != 0:
            whole[pieces[y, x]] = 1
    for y, x in np.ndindex(grown.shape):
        if whole[pieces[y, x]] == 0:
            grown[y, x] = 0
            freed = True
    return freed


@compiled
def find_nearest(markers: Int32[np.ndarray, "h w"]) -> Int32[np.ndarray, "h w"]:
    """Return the nearest marker of each pixel, by a chamfer distance.

    Args:
        markers: numbers from 1.
    """
    height, width = markers.shape
    far = np.full((height + 4, width + 4), _FAR, np.int32)
    nearest = np.zeros((height + 4, width + 4), np.int32)
    for y, x in np.ndindex(markers.shape):
        if markers[y, x] > 0:
            far[y + 2, x + 2], nearest[y + 2, x + 2] = 0, markers[y, x]
    _spread(far, nearest)
    _spread(far[::-1, ::-1], nearest[::-1, ::-1])
    return nearest[2 : height + 2, 2 : width + 2]


@compiled
def _spread(far: Int32[np.ndarray, "h w"], nearest: Int32[np.ndarray, "h w"]) -> None:
    """Let each pixel learn the nearest marker of those before it, in place."""
    for y in range(2, far.shape[0] - 2):
        for x in range(2, far.shape[1] - 2):
            least = far[y, x]
            for down, across, length in _STEPS:
                row, column = y - down, x - across
                if far[row, column] + length < least:
                    least = far[row, column] + length
                    nearest[y, x] = nearest[row, column]
            far[y, x] = least


@compiled
def _flood(labels: Int32[np.ndarray, "h w"]) -> None:
    """Give each pixel of 0 the label of the nearest other, in place, but never cross `_OUTSIDE`."""
    height, width = labels.shape
    queue = np.empty((labels.size, 2), np.int32)
    end = 0
    for y, x in np.ndindex(labels.shape):
        if labels[y, x] > 0:
            queue[end, 0], queue[end, 1] = y, x
            end += 1
    start = 0
    while start < end:
        y, x = queue[start, 0], queue[start, 1]
        start += 1
        for down, across in _SIDES:
            row, column = y + down, x + across
            if 0 <= row < height and 0 <= column < width and labels[row, column] == 0:
                labels[row, column] = labels[y, x]
                queue[end, 0], queue[end, 1] = row, column
                end += 1


@compiled
def _fill_holes(labels: Int32[np.ndarray, "h w"]) -> None:
    """Fill holes that lie within one instance, in place."""
    known = np.zeros((labels.shape[0] + 2, labels.shape[1] + 2), np.int32)
    for y, x in np.ndindex(labels.shape):
        known[y + 1, x + 1] = labels[y, x]
    queue = np.empty((known.size, 2), np.int32)
    # The first flood begins beside the labels and takes all that is outside; then come the holes.
    for y, x in np.ndindex(known.shape):
        if known[y, x] == 0:
            end, label = _flood_hole(known, queue, y, x)
            if y > 0 and label > 0:
                for row, column in queue[:end]:
                    labels[row - 1, column - 1] = label


@compiled
def _flood_hole(
    known: Int32[np.ndarray, "h w"], queue: Int32[np.ndarray, "n 2"], y: int, x: int
) -> tuple[int, int]:
    """Set connected pixels of 0 to `_OUTSIDE`, in place.

    Returns:
        How many of them the queue holds, and the label that surrounds them; 0 if there are several.
    """
    height, width = known.shape
    known[y, x] = _OUTSIDE
    queue[0, 0], queue[0, 1] = y, x
    start, end = 0, 1
    least, most = _FAR, 0
    while start < end:
        for down, across in _AROUND:
            row, column = queue[start, 0] + down, queue[start, 1] + across
            if not (0 <= row < height and 0 <= column < width):
                continue
            label = known[row, column]
            if label == 0:
                known[row, column] = _OUTSIDE
                queue[end, 0], queue[end, 1] = row, column
                end += 1
            elif label > 0 and (down == 0 or across == 0):
                least, most = min(least, label), max(most, label)
        start += 1
    return end, most if least == most else 0
