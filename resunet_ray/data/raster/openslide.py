"""Slides of the formats that OpenSlide knows."""

import functools

import numpy as np
import openslide
from PIL import Image

from resunet_ray.data.raster.scene import Plane, Scene, Window
from resunet_ray.data.raster.tiff_checks import check_tables
from resunet_ray.errors import ImageError

_CACHE_BYTES = 2**27  # for decoded tiles of all slides that a process has open


class OpenSlideRaster:
    """A slide opened by OpenSlide."""

    def __init__(self, path: str) -> None:
        """Open a slide.

        Raises:
            ImageError: OpenSlide cannot read it, or its header is damaged.
        """
        self._path = path
        self._slide = self._open()
        properties = self._slide.properties
        self.format = properties.get("openslide.vendor", "unknown")
        if self.format == "aperio":
            check_tables(path)  # OpenSlide shows a tile missing from the header as empty glass
        self._background = f"#{properties.get('openslide.background-color', 'ffffff')}"
        stated = [properties.get(f"openslide.mpp-{axis}") for axis in "yx"]
        known = [float(value) for value in stated if value not in (None, "")]
        self.scenes = [
            Scene(
                levels=[(height, width) for width, height in self._slide.level_dimensions],
                channels=[None],
                dtype=np.dtype(np.uint8),
                rgb=True,
                mpp=(known[0], known[-1]) if known else None,
            )
        ]

    def read(self, _plane: Plane, level: int, window: Window) -> np.ndarray:
        """Read a window; see `Raster`."""
        top, left, height, width = window
        levels = self.scenes[0].levels
        rows, columns = levels[level]
        # OpenSlide takes the position in pixels of the largest level, for any level.
        place = round(left * levels[0][1] / columns), round(top * levels[0][0] / rows)
        try:
            found = self._slide.read_region(place, level, (width, height))
        except openslide.OpenSlideError:
            self._slide.close()  # after an error it refuses every further read
            self._slide = self._open()
            raise
        whole = Image.new("RGB", found.size, self._background)  # areas not scanned are transparent
        whole.paste(found, mask=found.getchannel("A"))
        return np.asarray(whole)

    def close(self) -> None:
        """Close the file."""
        self._slide.close()

    def _open(self) -> openslide.OpenSlide:
        try:
            slide = openslide.OpenSlide(self._path)
        except openslide.OpenSlideError as error:  # damaged, or of a kind that it does not know
            raise ImageError(f"OpenSlide refuses it: {error}") from None
        slide.set_cache(_shared_cache())
        return slide


@functools.lru_cache(maxsize=1)
def _shared_cache() -> openslide.OpenSlideCache:
    return openslide.OpenSlideCache(_CACHE_BYTES)
