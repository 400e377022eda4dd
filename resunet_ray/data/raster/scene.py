"""What every file of images is, whichever library reads it: scenes of planes at several levels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

Window = tuple[int, int, int, int]
"""Top, left, height and width, in pixels of a level."""


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
    mpp: tuple[float, float] | None = None
    """Microns per pixel of the largest level: height and width of a pixel. None if unknown."""
    name: str | None = None


@dataclass(frozen=True, kw_only=True)
class Plane:
    """Which plane of a file, each counted from 0."""

    scene: int = 0
    channel: int = 0
    z: int = 0
    t: int = 0


class Raster(Protocol):
    """An open file of images."""

    scenes: Sequence[Scene]
    format: str
    """As in the column `format`: png, jpeg, tiff, ome-tiff, ome-zarr, aperio …"""

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
