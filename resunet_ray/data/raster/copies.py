"""Whether one image of a file is only a smaller copy of another, as a level or thumbnail is."""

from collections.abc import Callable

import cv2
import numpy as np

from resunet_ray.data.raster.libraries import as_image_error
from resunet_ray.data.raster.scene import Scene, Window
from resunet_ray.errors import ImageError

Read = Callable[[Window], np.ndarray]
"""Reads a window of an image, (h, w) or (h, w, c)."""

_WHOLE = 2**24  # pixels of an image that is compared, or looked at, as a whole
_PLACES = 36  # at which larger ones are compared
_SIDE = 128  # pixels of the large image that are read at each
_LEAST_SIDE = 8  # pixels of the smaller one
_ROUNDED = 1.5  # pixels by which a smaller copy may be higher or lower
_ALIKE = 0.9  # least correlation of a copy; of two fields of one sample it is below 0.5
_FLAT = 0.01  # of the range of values, within which the two may differ where nothing is to be seen


def is_copy(small: Scene, read_small: Read, large: Scene, read_large: Read) -> bool:
    """Whether an image shows the same as a larger one: the same shape, and the same content.

    Content is compared averaged or sampled down, and of very large images at some places. What
    cannot be read is no copy.
    """
    (height, width), (rows, columns) = small.levels[0], large.levels[0]
    if 2 * height * width >= rows * columns or (small.dtype, small.rgb) != (large.dtype, large.rgb):
        return False
    if abs(height - width * rows / columns) > _ROUNDED:
        return False
    factor = rows / height
    try:
        with as_image_error():
            windows = [(0, 0, height, width)]
            if rows * columns > _WHOLE:
                windows = _choose_windows(read_small, height, width, side=int(_SIDE / factor))
            pairs = [
                (
                    _to_grey(read_small(window)),
                    _to_grey(read_large(_enlarge(window, factor, (rows, columns)))),
                )
                for window in windows
            ]
    except ImageError:
        return False
    ours = np.concatenate([one.ravel() for one, _ in pairs])
    for way in (cv2.INTER_AREA, cv2.INTER_NEAREST):
        theirs = np.concatenate(
            [cv2.resize(two, one.shape[::-1], interpolation=way).ravel() for one, two in pairs]
        )
        if _are_alike(ours, theirs):
            return True
    return False


def _choose_windows(read: Read, height: int, width: int, *, side: int) -> list[Window]:
    """Choose where an image shows most or, if it is large itself, places at equal distances."""
    side = max(_LEAST_SIDE, side)
    windows = [
        (top, left, min(side, height - top), min(side, width - left))
        for top in range(0, height, side)
        for left in range(0, width, side)
    ]
    if height * width > _WHOLE:
        return windows[:: -(-len(windows) // _PLACES)]
    whole = _to_grey(read((0, 0, height, width)))
    shown = [whole[t : t + h, w : w + n].std() for t, w, h, n in windows]
    return [windows[number] for number in np.argsort(shown)[::-1][:_PLACES]]


def _enlarge(window: Window, factor: float, size: tuple[int, int]) -> Window:
    top, left, height, width = (round(value * factor) for value in window)
    return top, left, min(height, size[0] - top), min(width, size[1] - left)


def _to_grey(values: np.ndarray) -> np.ndarray:
    grey = np.nan_to_num(values.astype(np.float32))
    return grey.mean(axis=-1) if grey.ndim > len("yx") else grey


def _are_alike(ours: np.ndarray, theirs: np.ndarray) -> bool:
    extent = max(float(np.ptp(ours)), float(np.ptp(theirs)))
    most = max(float(np.abs(ours).max()), float(np.abs(theirs).max()), 1e-12)
    if extent <= _FLAT * most:  # nothing to be seen in either
        return abs(float(ours.mean() - theirs.mean())) <= _FLAT * most
    spread = float(ours.std() * theirs.std())
    covariance = float(((ours - ours.mean()) * (theirs - theirs.mean())).mean())
    return spread > 0 and covariance / spread >= _ALIKE
