"""Tissue: where a slide has anything to segment, judged from a low-power view."""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

from resunet_ray.data.slides import Slide

_VIEW_SIDE = 2048  # pixels of the low-power view's longer side
_BRIGHT, _DARK = 180, 75  # grey levels beyond which the most common colour is empty background
_LEAST_COLOUR = 25  # grey levels between the channels of a colour beyond which it is not glass
_NOISE_FACTOR = 4.0  # robust standard deviations by which tissue differs from the background
_LEAST_DIFFERENCE = 8.0  # grey levels, for a background without noise
_SMOOTHING = 4.0  # pixels of the view
# A piece smaller than both is a speck: dust or a single cell.
_SPECK_SIDE = 100  # level-0 pixels
_SPECK_SHARE = 0.02  # of the largest piece's area
_DUST = 0.2  # specks whose area is less than this share of the larger pieces' area are dust
_MARGIN = 7  # pixels of the view by which tissue is widened, for the nuclei at its edge


@dataclass(frozen=True)
class Tissue:
    """Where a low-power view shows tissue."""

    mask: Bool[np.ndarray, "h w"]
    fluorescence: bool
    """Whether the background is dark."""
    fraction: float
    """Share of the view that is tissue."""
    view: UInt8[np.ndarray, "h w 3"]

    def squares(self, height: int, width: int, *, side: int) -> Bool[np.ndarray, "rows columns"]:
        """Whether there is tissue in each square cell of the slide.

        Args:
            height: height of the slide, in pixels of any size.
            width: width of the slide, in the same pixels.
            side: side of a cell, in the same pixels.
        """
        sums = np.pad(self.mask.cumsum(axis=0, dtype=np.int64).cumsum(axis=1), ((1, 0), (1, 0)))
        (top, bottom), (left, right) = (
            (
                (starts * have / of).astype(int),
                np.ceil(np.minimum(starts + side, of) * have / of).astype(int),
            )
            for starts, have, of in (
                (np.arange(0, height, side), self.mask.shape[0], height),
                (np.arange(0, width, side), self.mask.shape[1], width),
            )
        )
        inside = (
            sums[bottom][:, right]
            - sums[top][:, right]
            - sums[bottom][:, left]
            + sums[top][:, left]
        )
        return inside > 0  # type: ignore[no-any-return]


def read_view(slide: Slide, *, side: int = _VIEW_SIDE) -> UInt8[np.ndarray, "h w 3"]:
    """Read the whole slide, scaled down.

    Args:
        slide: the slide to read.
        side: longer side of the view, pixels.
    """
    scale = max(1.0, max(slide.info.height, slide.info.width) / side)
    height, width = slide.size_at(scale)
    return slide.read(0, 0, height, width, scale=scale)


def find_tissue(view: UInt8[np.ndarray, "h w 3"], *, scale: float) -> Tissue:
    """Find what differs from the background, however pale and in any colour.

    The background is the most common colour of the view if that is bright (a lamp behind glass)
    or dark (fluorescence). If it is neither, tissue fills the view.

    Args:
        view: the whole slide, scaled down.
        scale: side of the view's pixels, in level-0 pixels.
    """
    background = np.array(
        [np.bincount(view[..., channel].ravel(), minlength=256).argmax() for channel in range(3)],
        np.float32,
    )
    grey, colour = float(background.mean()), float(np.ptp(background))
    if _DARK < grey < _BRIGHT or (grey >= _BRIGHT and colour > _LEAST_COLOUR):
        return Tissue(np.ones(view.shape[:2], bool), fluorescence=False, fraction=1.0, view=view)
    smooth = cv2.GaussianBlur(view, (0, 0), _SMOOTHING).astype(np.float32)
    difference = np.abs(smooth - background).max(axis=2)
    near = difference[difference <= np.median(difference)]
    noise = 1.4826 * float(np.median(near)) if near.size else 0.0
    mask = _without_dust(
        (difference > max(_LEAST_DIFFERENCE, _NOISE_FACTOR * noise)).astype(np.uint8), scale=scale
    )
    widened = cv2.dilate(mask, np.ones((_MARGIN, _MARGIN), np.uint8)) > 0
    return Tissue(widened, fluorescence=grey <= _DARK, fraction=float(mask.mean()), view=view)


def _without_dust(mask: UInt8[np.ndarray, "h w"], *, scale: float) -> UInt8[np.ndarray, "h w"]:
    """Remove specks beside large pieces of tissue.

    Without large pieces, or if there are many, specks are cells and stay.
    """
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    areas = statistics[:, cv2.CC_STAT_AREA]
    large = areas >= min((_SPECK_SIDE / scale) ** 2, _SPECK_SHARE * areas[1:].max(initial=0))
    large[0] = False
    specks = int(areas[1:][~large[1:]].sum())
    if specks >= _DUST * int(areas[large].sum()):
        return mask
    kept: UInt8[np.ndarray, "h w"] = large[labels].astype(np.uint8)
    return kept
