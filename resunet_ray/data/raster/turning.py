"""Turning images upright, and windows of them back (EXIF 2.32, 4.6.4; TIFF 6.0, section 8)."""

from typing import TypeVar

import numpy as np

from resunet_ray.data.raster.scene import Window

Size = TypeVar("Size", tuple[int, int], tuple[float, float])

_SWAPPED, _COLUMNS, _ROWS = (5, 6, 7, 8), (2, 3, 6, 7), (3, 4, 7, 8)


def turn(array: np.ndarray, orientation: int) -> np.ndarray:
    """Turn the array upright; orientations 5 to 8 also swap height and width."""
    if orientation in _SWAPPED:
        array = array.swapaxes(0, 1)
    if orientation in _COLUMNS:
        array = array[:, ::-1]
    if orientation in _ROWS:
        array = array[::-1]
    return array


def turned_size(size: Size, orientation: int) -> Size:
    """Return height and width, of the image or a pixel, once it is upright."""
    return (size[1], size[0]) if orientation in _SWAPPED else size


def turned_window(window: Window, size: tuple[int, int], orientation: int) -> Window:
    """Return where a window of the upright image lies before it is turned.

    Args:
        window: within the upright image.
        size: height and width of the upright image.
        orientation: 1 to 8.
    """
    top, left, height, width = window
    if orientation in _ROWS:
        top = size[0] - top - height
    if orientation in _COLUMNS:
        left = size[1] - left - width
    return (left, top, width, height) if orientation in _SWAPPED else (top, left, height, width)
