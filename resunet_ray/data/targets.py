"""What the network's heads learn about a crop, computed from the numbers of its nuclei.

Targets are five bytes per pixel, so that Ray's object store and the shuffle buffer hold many:

| byte | meaning |
|---|---|
| `DISTANCE` | distance to the border of the pixel's nucleus over its maximum there, times 255 |
| `ROWS`, `COLUMNS` | from the pixel to the centroid of its nucleus, pixels, plus `ORIGIN` |
| `MARKS` | sum of `KNOWN`, `NEAR` and `WHOLE` |
| `DIAMETER` | `STEPS` times the logarithm to base 2 of the diameter of a whole nucleus, pixels |
"""

import cv2
import numpy as np
from jaxtyping import Bool, Int32, UInt8, UInt16

NUM_BYTES = 5
DISTANCE, ROWS, COLUMNS, MARKS, DIAMETER = range(NUM_BYTES)
STEPS = 16
"""Steps of the diameter's byte to a factor of 2."""
ORIGIN = 128
"""The byte of a step of 0 pixels."""
KNOWN, NEAR, WHOLE = 1, 2, 4
"""Marks of a pixel: its nucleus is known, or it is known to be background; two nuclei are within
`_REACH` of it; it belongs to a nucleus that is whole in the crop, so that its centroid is known."""

_REACH = 2  # pixels
_FARTHEST = 127  # pixels; one byte holds no longer way
_EMPTY = np.iinfo(np.uint16).max
_CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
_BESIDE = np.ones((3, 3), np.uint8)
_AROUND = np.ones((2 * _REACH + 1, 2 * _REACH + 1), np.uint8)


def compute_targets(labels: Int32[np.ndarray, "h w"]) -> UInt8[np.ndarray, "5 h w"]:
    """Compute the targets of a crop.

    Args:
        labels: numbers of the nuclei, up to 65,535. They are negative beyond the image's border,
            in its mirror image: see `data.augment`.
    """
    numbers = np.abs(labels).astype(np.uint16)
    targets = np.empty((NUM_BYTES, *labels.shape), np.uint8)
    targets[DISTANCE] = _measure_distance(numbers)
    targets[ROWS : COLUMNS + 1], whole = _find_centres(labels)
    targets[DIAMETER] = _measure_diameter(numbers)
    targets[MARKS] = KNOWN
    targets[MARKS][_find_near(numbers)] += NEAR
    targets[MARKS][whole] += WHOLE
    return targets


def leave_unknown(height: int, width: int) -> UInt8[np.ndarray, "5 h w"]:
    """Return the targets of a crop whose nuclei are not told apart: no mark, nothing to learn."""
    return np.zeros((NUM_BYTES, height, width), np.uint8)


def _measure_distance(numbers: UInt16[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """Measure the distance to the border of the own nucleus over its maximum in the crop.

    One distance transform serves all nuclei: the way from a pixel into another nucleus crosses the
    border of its own. The border of the crop is no border of a nucleus.

    Returns:
        0 for background, up to 255 where the distance is largest.
    """
    border = cv2.dilate(numbers, _CROSS) != cv2.erode(numbers, _CROSS)
    inner = ((numbers > 0) & ~border).view(np.uint8)
    depth = cv2.distanceTransform(inner, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    place = np.flatnonzero(numbers > 0)  # faster than of the numbers
    number = numbers.ravel()[place].astype(np.intp)
    # 1 at the border's own pixels. Without any border in the crop, OpenCV returns a huge number.
    depths = np.minimum(depth.ravel()[place], np.float32(sum(numbers.shape))) + 1
    most = np.ones(int(number.max(initial=0)) + 1, np.float32)
    np.maximum.at(most, number, depths)
    share = np.zeros(numbers.size, np.uint8)
    share[place] = np.rint(255 * depths / most[number])
    return share.reshape(numbers.shape)


def _find_near(numbers: UInt16[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Tell which pixels have two nuclei within reach."""
    lowest = cv2.erode(np.where(numbers > 0, numbers, np.uint16(_EMPTY)), _AROUND)
    near: Bool[np.ndarray, "h w"] = lowest < cv2.dilate(numbers, _AROUND)
    return near


def _find_centres(
    labels: Int32[np.ndarray, "h w"],
) -> tuple[UInt8[np.ndarray, "2 h w"], Bool[np.ndarray, "h w"]]:
    """Find the centroids of nuclei.

    Returns:
        Rows and columns from each pixel to the centroid of its nucleus, and which pixels belong to
        a nucleus that is whole. Mirrored nuclei are not, and neither are those that the border of
        the crop or of the image cuts.
    """
    own = np.maximum(labels, 0)
    place = np.flatnonzero(own > 0)
    number = own.ravel()[place]
    count = np.maximum(np.bincount(number, minlength=1), 1)
    usable = ~_find_cut(labels, own, count=len(count))[number]
    steps = np.full((2, own.size), ORIGIN, np.uint8)
    for step, at in zip(steps, np.divmod(place, own.shape[1]), strict=True):
        centroid = np.bincount(number, weights=at, minlength=1) / count
        way = np.rint(centroid[number] - at)
        usable &= np.abs(way) <= _FARTHEST
        step[place] = np.clip(way, -_FARTHEST, _FARTHEST) + ORIGIN
    whole = np.zeros(own.size, bool)
    whole[place] = usable
    return steps.reshape(2, *own.shape), whole.reshape(own.shape)


def _measure_diameter(numbers: UInt16[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """Measure the diameter of the disc with the area of the pixel's nucleus in the crop."""
    area = np.bincount(numbers.ravel(), minlength=1)
    area[0] = 0
    octaves = np.log2(np.maximum(2 * np.sqrt(area / np.pi), 1))
    diameter: UInt8[np.ndarray, "h w"] = np.rint(STEPS * octaves).astype(np.uint8)[numbers]
    return diameter


def _find_cut(
    labels: Int32[np.ndarray, "h w"], own: Int32[np.ndarray, "h w"], *, count: int
) -> Bool[np.ndarray, " count"]:
    """Tell for each number whether its nucleus touches the border of the crop or of the image."""
    cut = np.zeros(count, bool)
    for side in (own[0], own[-1], own[:, 0], own[:, -1]):
        cut[side] = True
    if labels.min() < 0:
        beside = cv2.dilate((labels < 0).view(np.uint8), _BESIDE) > 0
        cut[own[beside]] = True
    return cut
