"""Augmentation: a random view of an image and its truth, which the same seed repeats.

The truth is a mask (uint8, 0 or 1) or the numbers of the nuclei (int32, 0 for background). A view
that shows more than the image continues it in its mirror image, where numbers are negative: a
mirrored nucleus is another nucleus. A seed gives the same view with either truth, but OpenCV rounds
the edges of a turned mask and those of turned numbers differently in a few pixels.

All geometry (crop, flip, rotation, scale) is a single affine map, so that each pixel is
interpolated only once.
"""

import cv2
import numpy as np
from jaxtyping import Int32, UInt8

from resunet_ray.config import AugmentConfig
from resunet_ray.data.recolour import is_grey, recolour

_BRIGHT, _BRIGHTEST = 100, 255  # levels: the median of a bright-field image is above the first


def crop_at_random(
    image: UInt8[np.ndarray, "h w c"],
    truth: UInt8[np.ndarray, "h w"] | Int32[np.ndarray, "h w"],
    *,
    size: int,
    rng: np.random.Generator,
) -> tuple[UInt8[np.ndarray, "s s c"], UInt8[np.ndarray, "s s"] | Int32[np.ndarray, "s s"]]:
    """Cut a random window of `size` × `size`; a smaller image is first padded by reflection."""
    height, width = truth.shape
    image, truth = pad_to(image, size=size), pad_to(truth, size=size)
    if truth.dtype == np.int32:
        truth[height:] *= -1
        truth[:height, width:] *= -1
    top = int(rng.integers(image.shape[0] - size + 1))
    left = int(rng.integers(image.shape[1] - size + 1))
    window = np.s_[top : top + size, left : left + size]
    return image[window], truth[window]


def pad_to(array: np.ndarray, *, size: int) -> np.ndarray:
    """Pad an array by reflection at bottom and right until both sides are at least `size`."""
    height, width = array.shape[:2]
    padding = [(0, max(0, size - height)), (0, max(0, size - width))] + [(0, 0)] * (array.ndim - 2)
    return np.pad(array, padding, mode="symmetric")


def augment(
    image: UInt8[np.ndarray, "h w c"],
    truth: UInt8[np.ndarray, "h w"] | Int32[np.ndarray, "h w"],
    *,
    size: int,
    config: AugmentConfig,
    rng: np.random.Generator,
) -> tuple[UInt8[np.ndarray, "s s c"], UInt8[np.ndarray, "s s"] | Int32[np.ndarray, "s s"]]:
    """Return a random crop of `size` × `size`, moved and recoloured, and its truth, moved alike.

    Args:
        image: the whole image, any size.
        truth: mask or numbers, same height and width as the image.
        size: side of the crop, pixels.
        config: how far each change may go.
        rng: source of all randomness.
    """
    matrix = _draw_affine(truth, size=size, config=config, rng=rng)
    image = cv2.warpAffine(
        image, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
    )
    if image.ndim == 2:  # OpenCV drops a single channel
        image = image[..., None]
    truth = _move_truth(truth, matrix, size=size)
    image = recolour(image, config=config, rng=rng)
    if rng.random() < config.gap_probability:
        image, truth = _tear(image, truth, rng=rng)
    return image, truth


def _move_truth(
    truth: UInt8[np.ndarray, "h w"] | Int32[np.ndarray, "h w"], matrix: np.ndarray, *, size: int
) -> UInt8[np.ndarray, "s s"] | Int32[np.ndarray, "s s"]:
    nearest = cv2.INTER_NEAREST
    moved = cv2.warpAffine(
        truth, matrix, (size, size), flags=nearest, borderMode=cv2.BORDER_REFLECT
    )
    if truth.dtype == np.int32:
        own = cv2.warpAffine(
            truth, matrix, (size, size), flags=nearest, borderMode=cv2.BORDER_CONSTANT
        )
        moved = 2 * own - moved  # own where they are equal, else the negative mirror image
    return moved


def _draw_affine(
    truth: np.ndarray, *, size: int, config: AugmentConfig, rng: np.random.Generator
) -> np.ndarray:
    """Draw the 2×3 matrix that maps image coordinates (x, y) to those of the crop."""
    scale = float(np.exp(rng.uniform(-1, 1) * np.log(config.scale)))
    angle = float(rng.integers(4)) * np.pi / 2 if config.flip else 0.0
    if rng.random() < config.rotation_probability:
        angle += float(rng.uniform(-np.pi / 4, np.pi / 4))
    linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    if config.flip and rng.random() < 0.5:
        linear = linear @ np.diag([-1.0, 1.0])
    # The crop shows size / scale pixels of the image; its centre stays where they all lie inside.
    margin = size / scale / 2
    nucleus = (
        _draw_nucleus(truth, rng=rng) if rng.random() < config.foreground_probability else None
    )
    row, column = (
        _draw_centre(length, near=near, margin=margin, rng=rng)
        for length, near in zip(truth.shape, nucleus or (None, None), strict=True)
    )
    centre = np.array([column, row])
    # Pixel centres are whole numbers, so the middle of n pixels is at (n - 1) / 2.
    return np.column_stack((linear, (size - 1) / 2 - linear @ centre))


def _draw_nucleus(truth: np.ndarray, *, rng: np.random.Generator) -> tuple[int, int] | None:
    """Draw row and column of a nucleus pixel; None if the image has no nucleus."""
    places = np.flatnonzero(truth != 0)  # faster than of the numbers
    return divmod(int(places[rng.integers(len(places))]), truth.shape[1]) if len(places) else None


def _draw_centre(
    length: int, *, near: int | None, margin: float, rng: np.random.Generator
) -> float:
    """Draw the window's centre along one side: anywhere, or so that `near` is well inside."""
    low, high = margin - 0.5, length - margin - 0.5
    if low >= high:
        return (length - 1) / 2
    if near is None:
        return float(rng.uniform(low, high))
    return float(np.clip(near + rng.uniform(-0.5, 0.5) * margin, low, high))


def _tear(
    image: UInt8[np.ndarray, "s s c"],
    truth: UInt8[np.ndarray, "s s"] | Int32[np.ndarray, "s s"],
    *,
    rng: np.random.Generator,
) -> tuple[UInt8[np.ndarray, "s s c"], UInt8[np.ndarray, "s s"] | Int32[np.ndarray, "s s"]]:
    """Open white gaps in stained tissue, such as vessels, fat and tears; other images stay whole.

    A white spot on darker tissue looks like a bright nucleus on a dark background.
    """
    if is_grey(image) or np.median(image) < _BRIGHT:
        return image, truth
    size = len(truth)
    coarse = rng.standard_normal([int(rng.integers(3, 12))] * 2).astype(np.float32)
    height = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    gap = (height > np.quantile(height, rng.uniform(0.7, 0.97))).astype(np.uint8)
    cover = cv2.GaussianBlur(gap.astype(np.float32), (0, 0), float(rng.uniform(0.5, 2)))[..., None]
    white = rng.uniform(_BRIGHTEST - 25, _BRIGHTEST)
    return (
        np.rint(image * (1 - cover) + white * cover).astype(np.uint8),
        np.where(gap > 0, 0, truth).astype(truth.dtype),
    )
