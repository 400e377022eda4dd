"""From a probability to instances: a label image with one number per nucleus."""

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Int32, UInt8
from skimage.feature import peak_local_max
from skimage.segmentation import watershed

from resunet_ray.config import InstanceConfig

_STEPS = 64  # steps per pixel, to which a distance is rounded


def find_instances(
    probability: Float32[np.ndarray, "h w"], *, config: InstanceConfig
) -> Int32[np.ndarray, "h w"]:
    """Label the instances with a bundle's own parameters, numbered from 1."""
    mask = threshold_mask(probability, threshold=config.threshold)
    if config.method == "components":
        return label_components(mask, min_area=config.min_area)
    return label_watershed(mask, min_distance=config.min_distance, min_area=config.min_area)


def threshold_mask(
    probability: Float32[np.ndarray, "h w"], *, threshold: float
) -> UInt8[np.ndarray, "h w"]:
    """Return 1 where the probability is at least the threshold, else 0."""
    return (probability >= threshold).astype(np.uint8)


def label_components(mask: UInt8[np.ndarray, "h w"], *, min_area: int) -> Int32[np.ndarray, "h w"]:
    """Label the 4-connected components, numbered from 1.

    Nuclei that touch only at a corner stay separate.

    Args:
        mask: 0 or 1.
        min_area: Components of fewer pixels are dropped.
    """
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(
        mask, connectivity=4, ltype=cv2.CV_32S
    )
    return _drop_small(labels, statistics[:, cv2.CC_STAT_AREA], min_area=min_area)


def label_watershed(
    mask: UInt8[np.ndarray, "h w"], *, min_distance: int, min_area: int
) -> Int32[np.ndarray, "h w"]:
    """Label the components, split where they narrow, numbered from 1.

    The split is a watershed of the distance to the background, flooded from its peaks.

    Args:
        mask: 0 or 1.
        min_distance: Smallest distance between two peaks, pixels; about the radius of a small
            nucleus.
        min_area: Instances of fewer pixels are dropped.
    """
    count, components, statistics, _ = cv2.connectedComponentsWithStats(
        mask, connectivity=4, ltype=cv2.CV_32S
    )
    # The image's border does not count as background: a nucleus cut off there keeps its distance.
    # Distances are integers, so that equal ones stay equal anywhere in the image: OpenCV's rounding
    # of floats depends on the column.
    steps = cv2.distanceTransform(mask, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) * _STEPS
    steps = np.minimum(steps, 2**16 - 1).astype(np.uint16)
    distance = cv2.GaussianBlur(steps, (0, 0), 1.0).astype(np.int32)
    peaks = peak_local_max(
        distance, min_distance=min_distance, labels=components, exclude_border=False
    )
    owners = components[tuple(peaks.T)]
    labels = components.copy()
    # One component at a time: the order in which equal peaks are flooded depends on all the peaks
    # of a call.
    for number in np.flatnonzero(np.bincount(owners, minlength=count) > 1):
        left, top, width, height = statistics[number, : cv2.CC_STAT_AREA]
        window = slice(top, top + height), slice(left, left + width)
        inside = components[window] == number
        own = peaks[owners == number] - (top, left)
        markers = np.zeros(inside.shape, np.int32)
        markers[tuple(own.T)] = np.arange(count, count + len(own))
        labels[window][inside] = watershed(-distance[window], markers, mask=inside)[inside]
        count += len(own)
    return _drop_small(labels, np.bincount(labels.ravel(), minlength=1), min_area=min_area)


def _drop_small(
    labels: Int32[np.ndarray, "h w"], areas: np.ndarray, *, min_area: int
) -> Int32[np.ndarray, "h w"]:
    return keep_instances(labels, (areas >= min_area) & (areas > 0))


def keep_instances(
    labels: Int32[np.ndarray, "h w"], wanted: Bool[np.ndarray, " n"]
) -> Int32[np.ndarray, "h w"]:
    """Keep some of the instances, renumbered from 1; 0 stays background.

    Args:
        labels: Label image.
        wanted: Whether to keep each number, from 0 to the largest. Every number to keep must occur
            in `labels`.
    """
    kept = wanted.copy()
    kept[0] = False
    numbers = np.zeros(len(kept), np.int32)
    numbers[kept] = np.arange(1, kept.sum() + 1)
    kept_labels: Int32[np.ndarray, "h w"] = numbers[labels]
    return kept_labels
