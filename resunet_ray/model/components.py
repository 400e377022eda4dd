"""The components of a mask, divided where they hold several nuclei.

A component's labels depend on nothing outside it, and numbers need not be consecutive. Most
components hold one nucleus; only the others are looked at again, each within its bounding box.
"""

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32, Int32, Int64, UInt8, UInt16
from skimage.measure import label
from skimage.segmentation import watershed

_STEPS = 64  # steps per pixel, to which a distance is rounded
_HIGHEST = 2**16 - 1
_CROSS = ((0, 1, 0), (1, 1, 1), (0, 1, 0))

Window = tuple[slice, slice]


def label_components(mask: UInt8[np.ndarray, "h w"]) -> Int32[np.ndarray, "h w"]:
    """Label the 4-connected components, numbered from 1.

    Nuclei that touch only at a corner stay separate.

    Args:
        mask: 0 or 1.
    """
    labels: Int32[np.ndarray, "h w"]
    _, labels = cv2.connectedComponents(mask, connectivity=4, ltype=cv2.CV_32S)
    return labels


def label_watershed(
    mask: UInt8[np.ndarray, "h w"], *, min_distance: int
) -> Int32[np.ndarray, "h w"]:
    """Label the components, split where they narrow.

    The split is a watershed of the distance to the background, flooded from its peaks.

    Args:
        mask: 0 or 1.
        min_distance: smallest distance between two peaks, in rows or columns; about the radius of a
            small nucleus.
    """
    labels = label_components(mask)
    place = np.flatnonzero(mask > 0)
    owner = labels.ravel()[place]
    height = _heights(mask)
    beside = cv2.dilate(height, np.array(_CROSS, np.uint8))
    tops = (height.ravel()[place] == beside.ravel()[place]) & (height.ravel()[place] > 0)
    count = int(owner.max(initial=0)) + 1
    several = np.bincount(owner[tops], minlength=count) > 1
    # One component at a time: the order in which equal peaks are flooded depends on all the peaks
    # of a call.
    for number, window in _boxes(labels.shape, place, owner, wanted=several):
        inside = labels[window] == number
        own = np.where(inside, height[window], 0)
        markers = _mark_peaks(own, min_distance=min_distance, first=count)
        if (peaks := int(np.count_nonzero(markers))) > 1:
            count += peaks
            labels[window][inside] = watershed(_HIGHEST - own, markers, mask=inside)[inside]
    return labels


def _heights(mask: UInt8[np.ndarray, "h w"]) -> UInt16[np.ndarray, "h w"]:
    """Return the distance to the background, smoothed, above the lowest of all, in steps.

    It is 0 outside of the mask.
    """
    # The image's border does not count as background: a nucleus cut off there keeps its distance.
    # Distances are integers, so that equal ones stay equal anywhere in the image: OpenCV's rounding
    # of floats depends on the column.
    steps = cv2.distanceTransform(mask, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    np.minimum(np.multiply(steps, _STEPS, out=steps), _HIGHEST, out=steps)
    height: UInt16[np.ndarray, "h w"]
    height = cv2.GaussianBlur(steps.astype(np.uint16), (0, 0), 1.0)
    height -= height.min(initial=_HIGHEST)
    height *= mask
    return height


def _mark_peaks(
    height: UInt16[np.ndarray, "h w"], *, min_distance: int, first: int
) -> Int32[np.ndarray, "h w"]:
    """Mark the pixels around which none is higher, with numbers from `first`.

    Of those that are too close to each other, the highest counts; of equal ones, the first.
    """
    square = np.ones((2 * min_distance + 1,) * 2, np.uint8)
    rows, columns = np.nonzero((height == cv2.dilate(height, square)) & (height > 0))
    order = np.argsort(-height[rows, columns].astype(np.int32), kind="stable")
    markers = np.zeros(height.shape, np.int32)
    free = np.ones(height.shape, bool)
    reach = min_distance - 1
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if free[row, column]:
            markers[row, column], first = first, first + 1
            top, left = max(0, row - reach), max(0, column - reach)
            free[top : row + reach + 1, left : column + reach + 1] = False
    return markers


def label_markers(
    mask: UInt8[np.ndarray, "h w"],
    distance: Float[np.ndarray, "h w"],
    *,
    marker_distance: float,
    centre: Float[np.ndarray, "2 h w"] | None,
    marker_area: int,
) -> Int32[np.ndarray, "h w"]:
    """Label components, dividing each that has several markers among them.

    The inside of nuclei is the markers: the components of what is far enough from the border.
    A pixel belongs to the marker nearest to where it sees its centre, or to itself without a
    prediction of centres. What that leaves in a second piece goes to the neighbour. Holes within
    an instance are filled.

    Args:
        mask: 0 or 1.
        distance: from the border, 0 to 1.
        marker_distance: pixels with a greater distance are the inside of nuclei.
        centre: rows and columns from each pixel to the centre of its nucleus.
        marker_area: markers with fewer pixels are dropped.
    """
    labels = label_components(mask)
    place = np.flatnonzero(mask > 0)
    owner = labels.ravel()[place]
    count = int(owner.max(initial=0)) + 1
    is_inner = distance.ravel()[place].astype(np.float32) > marker_distance
    inner = np.zeros_like(mask)
    inner.ravel()[place] = is_inner
    markers = label_components(inner)
    marker = markers.ravel()[place[is_inner]]
    kept = np.bincount(marker, minlength=1) >= marker_area
    kept[0] = False
    home = np.zeros(len(kept), np.int32)
    home[marker] = owner[is_inner]
    several = np.bincount(home[kept], minlength=count) > 1
    for number, window in _boxes(labels.shape, place, owner, wanted=several):
        inside = labels[window] == number
        own = np.where(kept[markers[window]] & inside, markers[window], 0)
        ways = None if centre is None else centre[:, *window][:, inside].astype(np.float32)
        labels[window][inside] = count + _grow(own, inside, ways)[inside]
        count += len(kept)
    _fill_holes(labels, mask)
    return labels


def _boxes(
    shape: tuple[int, ...],
    place: Int64[np.ndarray, " n"],
    owner: Int32[np.ndarray, " n"],
    *,
    wanted: Bool[np.ndarray, " count"],
) -> list[tuple[int, Window]]:
    """Return the numbers of some components, and their bounding boxes.

    Args:
        shape: of the image.
        place: pixels of the mask, as places in the flattened image.
        owner: the component of each.
        wanted: which components, by their numbers.
    """
    some = wanted[owner]
    owner, places = owner[some], np.divmod(place[some], shape[1])
    low = np.full((2, len(wanted)), max(shape))
    end = np.zeros((2, len(wanted)), np.int64)
    for axis, at in enumerate(places):
        np.minimum.at(low[axis], owner, at)
        np.maximum.at(end[axis], owner, at + 1)
    return [
        (number, (slice(top, bottom), slice(left, right)))
        for number, (top, left), (bottom, right) in zip(
            np.flatnonzero(wanted).tolist(),
            low.T[wanted].tolist(),
            end.T[wanted].tolist(),
            strict=True,
        )
    ]


def _grow(
    markers: Int32[np.ndarray, "h w"],
    inside: Bool[np.ndarray, "h w"],
    centre: Float32[np.ndarray, "2 n"] | None,
) -> Int32[np.ndarray, "h w"]:
    """Divide a component among its markers; each gets one piece.

    Args:
        markers: within the component.
        inside: the component.
        centre: rows and columns from each of its pixels to the centre of its nucleus.
    """
    _, nearest = cv2.distanceTransformWithLabels(
        (markers == 0).view(np.uint8),
        cv2.DIST_L2,
        cv2.DIST_MASK_5,
        labelType=cv2.DIST_LABEL_PIXEL,
    )
    seeds = np.flatnonzero(markers)
    number = np.zeros(len(seeds) + 1, np.int32)
    number[nearest.ravel()[seeds]] = markers.ravel()[seeds]
    seen = np.nonzero(inside)
    if centre is not None:
        seen = tuple(
            np.rint(at + way).clip(0, length - 1).astype(np.intp)
            for at, way, length in zip(seen, centre, inside.shape, strict=True)
        )
    grown = np.zeros_like(markers)
    grown[inside] = number[nearest[seen]]
    grown.ravel()[seeds] = markers.ravel()[seeds]
    if all(_is_one_piece(grown == one) for one in set(number[1:].tolist())):
        return grown
    pieces = label(grown, connectivity=1)
    whole = np.zeros(int(pieces.max()) + 1, bool)
    whole[pieces.ravel()[seeds]] = True
    kept = np.where(whole[pieces], grown, 0)
    flat = np.zeros(grown.shape, np.uint8)
    return watershed(flat, kept, mask=inside).astype(np.int32)  # type: ignore[no-any-return]


def _is_one_piece(pixels: Bool[np.ndarray, "h w"]) -> bool:
    count, _ = cv2.connectedComponents(pixels.view(np.uint8), connectivity=4)
    return count == 2  # the background is another


def _fill_holes(labels: Int32[np.ndarray, "h w"], mask: UInt8[np.ndarray, "h w"]) -> None:
    """Fill holes that lie within one instance, in place.

    Args:
        labels: where the mask is 1.
        mask: 0 or 1.
    """
    around = np.pad(mask, 1)
    cv2.floodFill(around, None, (0, 0), 1, flags=8)  # all that is not enclosed
    holes = around[1:-1, 1:-1] == 0
    if not holes.any():
        return
    count, numbered = cv2.connectedComponents(holes.view(np.uint8), connectivity=8)
    rows, columns = np.nonzero(holes)
    number = numbered[rows, columns]
    least = np.full(count, np.iinfo(np.int32).max, np.int32)
    most = np.zeros(count, np.int32)
    for down, across in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        beside = labels[rows + down, columns + across]
        known = beside > 0
        np.minimum.at(least, number[known], beside[known])
        np.maximum.at(most, number[known], beside[known])
    filled = least[number] == most[number]
    labels[rows[filled], columns[filled]] = most[number[filled]]
