"""Blocks of a raster that are read whole and kept for a while, since windows share them."""

from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np

from resunet_ray.data.raster.scene import Plane, Raster, Scene, Window

_KEPT = 2**27  # bytes
_LEAST = 512  # pixels of a block's side: its chunks are fetched at a time
_LARGE = 2**22  # pixels of a window that is read at once and not kept


class BlockRaster:
    """A raster whose small windows are put together from blocks."""

    def __init__(self, raster: Raster, *, chunks: Callable[[int, int], tuple[int, int]]) -> None:
        """Read nothing yet.

        Args:
            raster: what is read; closing closes it.
            chunks: returns height and width of what is decoded at once, given scene and level.
        """
        self._raster, self._chunks = raster, chunks
        self._blocks: OrderedDict[tuple[Plane, int, int, int], np.ndarray] = OrderedDict()
        self._bytes = 0
        self.format = raster.format
        self.scenes: Sequence[Scene] = raster.scenes

    def read(self, plane: Plane, level: int, window: Window) -> np.ndarray:
        """Read a window; see `Raster`. Not thread-safe."""
        top, left, height, width = window
        if height * width > _LARGE:
            return self._raster.read(plane, level, window)
        high, wide = (-(-_LEAST // side) * side for side in self._chunks(plane.scene, level))
        first_y, first_x = top // high * high, left // wide * wide
        whole = np.concatenate(
            [
                np.concatenate(
                    [
                        self._read_block(plane, level, (y, x, high, wide))
                        for x in range(first_x, left + width, wide)
                    ],
                    axis=1,
                )
                for y in range(first_y, top + height, high)
            ]
        )
        return whole[top - first_y :, left - first_x :][:height, :width]

    def close(self) -> None:
        """Close the file, and forget the blocks."""
        self._blocks.clear()
        self._bytes = 0
        self._raster.close()

    def _read_block(self, plane: Plane, level: int, window: Window) -> np.ndarray:
        top, left, height, width = window
        key = plane, level, top, left
        if key in self._blocks:
            self._blocks.move_to_end(key)
            return self._blocks[key]
        rows, columns = self.scenes[plane.scene].levels[level]
        inside = top, left, min(height, rows - top), min(width, columns - left)
        block = self._raster.read(plane, level, inside)
        self._bytes += block.nbytes
        while self._blocks and self._bytes > _KEPT:
            self._bytes -= self._blocks.popitem(last=False)[1].nbytes
        self._blocks[key] = block
        return block
