"""Pictures of an image, its true nuclei and those found: outlined, and side by side."""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Int32, Integer, UInt8
from skimage.segmentation import find_boundaries

from resunet_ray.model.matching import Outcome, Outcomes

OUTCOME_COLOURS: dict[Outcome, str] = {
    "found": "#009e73",
    "missed": "#d55e00",
    "merged": "#cc79a7",
    "split": "#56b4e9",
    "inexact": "#f0e442",
    "invented": "#e69f00",
}
"""Okabe and Ito's, which colour-blind readers can tell apart."""

_SIDE = 512  # pixels, longer side of each part
_GAP = 4  # white columns between the parts
_GREEN = (0, 255, 0)
_OUTLINE = 2  # pixels, width of an outline
_BRIGHTEST = 144  # of 255, the brightest grey below the outlines, so that they stand out
_GREY_STEP = 8  # between shades of grey: a PNG of few shades takes a third of the bytes


def side_by_side(
    image: UInt8[np.ndarray, "h w 3"],
    mask: UInt8[np.ndarray, "h w"],
    found: UInt8[np.ndarray, "h w"],
) -> UInt8[np.ndarray, "i j 3"]:
    """Draw image | mask | prediction, as the baseline does; masks hold 0 or 1.

    Images larger than 512 pixels are shrunk.
    """
    parts = [
        image,
        *(np.repeat(part[..., None] * np.uint8(255), 3, axis=2) for part in (mask, found)),
    ]
    factor = min(1.0, _SIDE / max(image.shape[:2]))
    if factor < 1:
        parts = [
            cv2.resize(part, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
            for part in parts
        ]
    return _join(parts)


def draw_outcomes(
    image: UInt8[np.ndarray, "h w 3"],
    true: Int32[np.ndarray, "h w"],
    found: Int32[np.ndarray, "h w"],
    outcomes: Outcomes,
) -> UInt8[np.ndarray, "i j 3"]:
    """Draw image | outlines of the true instances | outlines of those found, 512 pixels each.

    Outlines have the colour of the instance's outcome. They lie over the image in dim grey, on the
    inside of each instance, so that those of neighbours do not cover each other.

    Args:
        image: RGB image.
        true: label image of the true instances.
        found: label image of those found.
        outcomes: what happened to each of them.
    """
    factor = _SIDE / max(image.shape[:2])
    size = max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor))
    way = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    shown = cv2.resize(image, size, interpolation=way)
    grey = cv2.cvtColor(shown, cv2.COLOR_RGB2GRAY)
    dim = cv2.normalize(grey, None, 0, _BRIGHTEST, cv2.NORM_MINMAX)  # type: ignore[call-overload]
    ground = np.repeat((dim // _GREY_STEP * _GREY_STEP)[..., None], 3, axis=2)
    return _join(
        [
            shown,
            _draw_coloured(ground, true, outcomes.true),
            _draw_coloured(ground, found, outcomes.found),
        ]
    )


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
    return _join([small, marked])


def _draw_coloured(
    ground: UInt8[np.ndarray, "i j 3"], labels: Int32[np.ndarray, "h w"], kinds: Sequence[Outcome]
) -> UInt8[np.ndarray, "i j 3"]:
    """Draw outlines over a picture.

    Args:
        ground: the picture.
        labels: label image, which is scaled to the picture.
        kinds: the outcome of each of its numbers, in ascending order.
    """
    numbers = np.unique(labels)
    colours = np.zeros((int(numbers[-1]) + 1, 3), np.uint8)
    for number, kind in zip(numbers[numbers > 0], kinds, strict=True):
        colours[number] = list(bytes.fromhex(OUTCOME_COLOURS[kind][1:]))
    # OpenCV resizes and erodes no int32; float32 holds labels up to 2**24 exactly.
    scaled = cv2.resize(
        labels.astype(np.float32), ground.shape[1::-1], interpolation=cv2.INTER_NEAREST
    )
    kernel = np.ones((2 * _OUTLINE + 1, 2 * _OUTLINE + 1), np.uint8)
    inside = (cv2.erode(scaled, kernel) == scaled) & (cv2.dilate(scaled, kernel) == scaled)
    drawn = ground.copy()
    outline = (scaled > 0) & ~inside
    drawn[outline] = colours[scaled[outline].astype(np.int32)]
    return drawn


def _join(parts: Sequence[UInt8[np.ndarray, "h w 3"]]) -> UInt8[np.ndarray, "h j 3"]:
    gap = np.full((parts[0].shape[0], _GAP, 3), 255, np.uint8)
    between = [piece for part in parts[1:] for piece in (gap, part)]
    return np.hstack([parts[0], *between])
