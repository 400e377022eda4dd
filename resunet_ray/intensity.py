"""One intensity scale for images of every microscope: between two percentiles of the image, the same in training and after."""

import cv2
import numpy as np
from jaxtyping import UInt8

Range = tuple[float, float]
"""The levels that become 0 and 255."""

_PERCENTILES = (1.0, 99.8)  # a few hot pixels do not darken all others
_LEAST_EXTENT = 8.0  # levels; what differs by less is noise, and stays faint


def measure_range(image: UInt8[np.ndarray, "h w c"]) -> Range:
    """The range of a whole image, over all of its channels, so that its colours stay."""
    counts = np.bincount(image.ravel(), minlength=256).cumsum()
    low, high = (float(np.searchsorted(counts, share / 100 * counts[-1])) for share in _PERCENTILES)
    return low, max(high, low + _LEAST_EXTENT)


def stretch(
    image: UInt8[np.ndarray, "h w c"], levels: Range | None = None
) -> UInt8[np.ndarray, "h w c"]:
    """The image with its range spread over 0 to 255; what lies beyond is cut off.

    Args:
        image: or any part of it.
        levels: of the whole image; None: this is all of it.
    """
    low, high = levels or measure_range(image)
    table = np.clip(np.rint((np.arange(256) - low) * (255 / (high - low))), 0, 255).astype(np.uint8)
    return cv2.LUT(np.ascontiguousarray(image), table).reshape(image.shape)
