"""One intensity scale for images from any microscope: two percentiles become 0 and 255.

Training and segmentation use the same scale.
"""

import cv2
import numpy as np
from jaxtyping import UInt8

Range = tuple[float, float]
"""The intensities that become 0 and 255."""

_PERCENTILES = (1.0, 99.8)  # a few hot pixels must not darken all the others
# A smaller difference is noise and stays faint: levels, and a share of the upper one. Compression
# alone changes empty glass by 8 levels, 3% of white; the least in 664 labelled images is 32%.
_LEAST_EXTENT, _LEAST_CONTRAST = 8.0, 0.15


def measure_range(image: UInt8[np.ndarray, "h w c"]) -> Range:
    """Return the range of a whole image, over all of its channels so that colours are kept.

    If there is hardly any contrast, a bright image stays bright, and a dark one dark.
    """
    low, high = find_percentiles(image, _PERCENTILES)
    missing = max(0.0, max(_LEAST_EXTENT, _LEAST_CONTRAST * high) - (high - low))
    return low - missing * low / 255, high + missing * (1 - low / 255)


def find_percentiles(image: UInt8[np.ndarray, "h w c"], shares: Range) -> Range:
    """Return the levels at two percentiles, counted over all channels."""
    counts = np.bincount(image.ravel(), minlength=256).cumsum()
    low, high = (float(np.searchsorted(counts, share / 100 * counts[-1])) for share in shares)
    return low, high


def stretch(
    image: UInt8[np.ndarray, "h w c"], levels: Range | None = None
) -> UInt8[np.ndarray, "h w c"]:
    """Return the image with its range stretched to 0 to 255 and clipped there.

    Args:
        image: the image, or any part of it.
        levels: range of the whole image. None if `image` is the whole image.
    """
    low, high = levels or measure_range(image)
    table = np.clip(np.rint((np.arange(256) - low) * (255 / (high - low))), 0, 255).astype(np.uint8)
    return cv2.LUT(np.ascontiguousarray(image), table).reshape(image.shape)
