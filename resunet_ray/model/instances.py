"""From probability to instances: a label image with one number for each nucleus."""

import cv2
import numpy as np
from jaxtyping import Float32, Int32, UInt8


def threshold_mask(probability: Float32[np.ndarray, "h w"], *, threshold: float) -> UInt8[np.ndarray, "h w"]:
    """1 where the probability is at least the threshold, else 0."""
    return (probability >= threshold).astype(np.uint8)


def label_components(mask: UInt8[np.ndarray, "h w"], *, min_area: int) -> Int32[np.ndarray, "h w"]:
    """Connected components, numbered from 1; nuclei that touch at a corner only stay apart.

    Args:
        mask: 0 or 1.
        min_area: components of fewer pixels are dropped.
    """
    count, labels, statistics, _ = cv2.connectedComponentsWithStats(mask, connectivity=4, ltype=cv2.CV_32S)
    kept = statistics[:, cv2.CC_STAT_AREA] >= min_area
    kept[0] = False
    numbers = np.zeros(count, np.int32)
    numbers[kept] = np.arange(1, kept.sum() + 1)
    kept_labels: Int32[np.ndarray, "h w"] = numbers[labels]
    return kept_labels
