"""Outlines of nuclei, drawn on their image."""

import cv2
import numpy as np
from jaxtyping import Integer, UInt8
from skimage.segmentation import find_boundaries

_GREEN = (0, 255, 0)


def draw_outlines(
    image: UInt8[np.ndarray, "h w 3"],
    labels: Integer[np.ndarray, "h w"],
    *,
    colour: tuple[int, int, int] = _GREEN,
) -> UInt8[np.ndarray, "h w 3"]:
    """Return a copy of the image with the outermost pixels of each nucleus coloured.

    Args:
        image: RGB image.
        labels: the number of the nucleus at each pixel, or a mask; 0 is background.
        colour: of the outlines, RGB.
    """
    # Outside the image is background, so that nuclei at its edge get a closed outline.
    outlines = find_boundaries(np.pad(labels, 1), mode="inner")[1:-1, 1:-1]
    marked = image.copy()
    marked[outlines] = colour
    return marked


def draw_beside(
    image: UInt8[np.ndarray, "h w 3"], mask: UInt8[np.ndarray, "h w"], *, side: int
) -> UInt8[np.ndarray, "i j 3"]:
    """Return the image, and beside it the image with the outlines of the nuclei found.

    Args:
        image: RGB image.
        mask: 0 is background.
        side: most pixels of the image's longer side; a larger image is scaled down.
    """
    factor = min(1.0, side / max(image.shape[:2]))
    size = max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    marked = draw_outlines(small, cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST))
    return np.hstack([small, np.full((small.shape[0], 4, 3), 255, np.uint8), marked])
