"""What every file of images is, whichever library reads it: scenes of planes at several levels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from resunet_ray.errors import ImageError

Window = tuple[int, int, int, int]
"""Top, left, height and width, in pixels of a level."""
PixelSize = tuple[float, float]
"""Height and width of a pixel, microns."""
MPP_RANGE = (0.05, 20.0)
"""Plausible microns per pixel of a microscope; a screen's 264.58 (96 dots per inch) is outside."""

_SQUARE = 0.02  # by how much height and width of a pixel may differ


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One image of a file, upright: a field of view or a slide, in any number of planes."""

    levels: Sequence[tuple[int, int]]
    """Height and width of each level, the largest first."""
    channels: Sequence[str | None]
    """Names of the channels, None where the file has no name. An RGB image has one channel."""
    dtype: np.dtype
    """Of the values as they are stored."""
    rgb: bool = False
    """Whether a channel is red, green and blue."""
    num_t: int = 1
    """Points in time."""
    num_z: int = 1
    """Focal planes."""
    mpp: PixelSize | None = None
    """Of the largest level; None if unknown."""
    name: str | None = None


@dataclass(frozen=True, kw_only=True)
class Plane:
    """Which plane of a file, each counted from 0."""

    scene: int = 0
    channel: int = 0
    z: int = 0
    t: int = 0


FIRST = Plane()


@runtime_checkable
class Raster(Protocol):
    """An open file of images."""

    format: str
    """As in the column `format`: PNG, JPEG, tiff, ome-tiff, ome-zarr, aperio …"""

    @property
    def scenes(self) -> Sequence[Scene]:
        """The images of the file."""

    def read(self, plane: Plane, level: int, window: Window) -> np.ndarray:
        """Read a window, which lies within the level.

        Returns:
            Values as stored, (h, w), or (h, w, 3) if the scene is RGB. Only what the window needs
            is read and decoded.

        Raises:
            ImageError: the file is damaged there. Libraries may raise anything else over damaged
                bytes; whoever opened the raster turns that into an ImageError.
        """

    def close(self) -> None:
        """Close the file."""


def believe(pixel: PixelSize | None) -> float | None:
    """Return microns per pixel, None if it is unknown or not that of a microscope.

    Raises:
        ImageError: a pixel is not square.
    """
    if pixel is None or not all(MPP_RANGE[0] <= side <= MPP_RANGE[1] for side in pixel):
        return None
    if abs(pixel[0] / pixel[1] - 1) > _SQUARE:
        raise ImageError(
            f"its pixels are {pixel[0]:g} microns high and {pixel[1]:g} wide: expected square "
            "ones. Resample it, or pass --mpp if its metadata are wrong"
        )
    return sum(pixel) / 2
