"""From probability to instances: a label image with one number for each nucleus."""

import cv2
import numpy as np
from jaxtyping import Float32, Int32, UInt8
from skimage.feature import peak_local_max
from skimage.segmentation import watershed

from resunet_ray.config import InstanceConfig


def find_instances(probability: Float32[np.ndarray, "h w"], *, config: InstanceConfig) -> Int32[np.ndarray, "h w"]:
    """The instances that a bundle's own parameters find, numbered from 1."""
    mask = threshold_mask(probability, threshold=config.threshold)
    if config.method == "components":
        return label_components(mask, min_area=config.min_area)
    return label_watershed(mask, min_distance=config.min_distance, min_area=config.min_area)


def threshold_mask(probability: Float32[np.ndarray, "h w"], *, threshold: float) -> UInt8[np.ndarray, "h w"]:
    """1 where the probability is at least the threshold, else 0."""
    return (probability >= threshold).astype(np.uint8)


def label_components(mask: UInt8[np.ndarray, "h w"], *, min_area: int) -> Int32[np.ndarray, "h w"]:
    """Connected components, numbered from 1; nuclei that touch at a corner only stay apart.

    Args:
        mask: 0 or 1.
        min_area: components of fewer pixels are dropped.
    """
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(mask, connectivity=4, ltype=cv2.CV_32S)
    return _drop_small(labels, statistics[:, cv2.CC_STAT_AREA], min_area=min_area)


def label_watershed(mask: UInt8[np.ndarray, "h w"], *, min_distance: int, min_area: int) -> Int32[np.ndarray, "h w"]:
    """Components, each cut where it narrows: a watershed of the distance to the background, flooded from its peaks.

    Args:
        mask: 0 or 1.
        min_distance: two peaks are at least so far apart, pixels; about the radius of a small nucleus.
        min_area: instances of fewer pixels are dropped.
    """
    _, components = cv2.connectedComponents(mask, connectivity=4, ltype=cv2.CV_32S)
    # The image's own border is no background: a nucleus that is cut there keeps its distance.
    distance = cv2.GaussianBlur(cv2.distanceTransform(mask, cv2.DIST_L2, cv2.DIST_MASK_PRECISE), (0, 0), 1.0)
    peaks = peak_local_max(distance, min_distance=min_distance, labels=components, exclude_border=False)
    markers = np.zeros(mask.shape, np.int32)
    markers[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    labels = watershed(-distance, markers, mask=mask.astype(bool)).astype(np.int32)
    missed = (labels == 0) & (mask > 0)  # a component without a peak stays whole
    labels[missed] = components[missed] + len(peaks)
    return _drop_small(labels, np.bincount(labels.ravel(), minlength=1), min_area=min_area)


def _drop_small(labels: Int32[np.ndarray, "h w"], areas: np.ndarray, *, min_area: int) -> Int32[np.ndarray, "h w"]:
    kept = (areas >= min_area) & (areas > 0)
    kept[0] = False
    numbers = np.zeros(len(areas), np.int32)
    numbers[kept] = np.arange(1, kept.sum() + 1)
    kept_labels: Int32[np.ndarray, "h w"] = numbers[labels]
    return kept_labels
