"""The components of a mask, divided where they narrow.

A component's labels depend on nothing outside it, and numbers need not be consecutive. Most
components hold one nucleus; only the others are looked at again, each within its bounding box.
"""

import cv2
import numpy as np
from jaxtyping import Int32, UInt8, UInt16
from skimage.segmentation import watershed

from resunet_ray.model.connected import label_components, survey

_STEPS = 64  # steps per pixel, to which a distance is rounded
_HIGHEST = 2**16 - 1
_CROSS = ((0, 1, 0), (1, 1, 1), (0, 1, 0))


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
    labels, count = label_components(mask)
    place = np.flatnonzero(mask > 0)
    owner = labels.ravel()[place]
    height = _heights(mask)
    beside = cv2.dilate(height, np.array(_CROSS, np.uint8))
    tops = (height.ravel()[place] == beside.ravel()[place]) & (height.ravel()[place] > 0)
    several = np.bincount(owner[tops], minlength=count + 1) > 1
    boxes, _ = survey(labels, count)
    # One component at a time: the order in which equal peaks are flooded depends on all the peaks
    # of a call.
    for number in np.flatnonzero(several).tolist():
        top, left, bottom, right = boxes[number]
        window = slice(top, bottom), slice(left, right)
        inside = labels[window] == number
        own = np.where(inside, height[window], 0)
        markers = _mark_peaks(own, min_distance=min_distance, first=count + 1)
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
