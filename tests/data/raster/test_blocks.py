"""A window that is put together from blocks is what the raster would have given."""

from pathlib import Path

import numpy as np
import pytest
from zarr_files import draw_ome_zarr

from resunet_ray.data.raster import blocks
from resunet_ray.data.raster.blocks import BlockRaster
from resunet_ray.data.raster.ome_zarr import ZarrRaster
from resunet_ray.data.raster.scene import Plane, Window

VALUES = np.random.default_rng(0).integers(0, 2**16, (2, 2, 50, 70), np.uint16)


def test_windows_are_the_same_and_blocks_are_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "_LEAST", 20)  # pixels, and a chunk has 16
    image = ZarrRaster(str(draw_ome_zarr(tmp_path / "a.zarr", VALUES, "czyx", levels=2)))
    assert image.chunks(0, 1) == (16, 16)
    read: list[tuple[Plane, int, Window]] = []
    original = image.read

    def note(plane: Plane, level: int, window: Window) -> np.ndarray:
        read.append((plane, level, window))
        return original(plane, level, window)

    monkeypatch.setattr(image, "read", note)
    raster = BlockRaster(image, chunks=image.chunks)
    rng = np.random.default_rng(1)
    for _ in range(30):
        level, channel, z = (int(rng.integers(0, count)) for count in (2, 2, 2))
        height, width = raster.scenes[0].levels[level]
        top, left = int(rng.integers(0, height)), int(rng.integers(0, width))
        size = int(rng.integers(1, height - top + 1)), int(rng.integers(1, width - left + 1))
        found = raster.read(Plane(channel=channel, z=z), level, (top, left, *size))
        whole = VALUES[channel, z, :: 2**level, :: 2**level]
        np.testing.assert_array_equal(found, whole[top : top + size[0], left : left + size[1]])
    assert len(read) == len(set(read)) <= 8 * 6
    monkeypatch.setattr(blocks, "_KEPT", 32 * 32 * 2 * 3)
    raster = BlockRaster(image, chunks=image.chunks)
    for z, left in ((0, 0), (0, 32), (1, 0), (1, 32)):
        raster.read(Plane(z=z), 0, (0, left, 32, 32))
    assert len(raster._blocks) == 3, "the last ones"
