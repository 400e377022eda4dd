"""Each object of a slide belongs to one region, however far it reaches."""

import numpy as np
import pytest

from resunet_ray.config import InstanceConfig
from resunet_ray.model.tiling import Tile
from resunet_ray.segment.mosaic import BLOCK, MARGIN, Grid, find_objects, seam_disagreement

GRID = Grid(height=900, width=1300, tile=192, context=16)
CONFIG = InstanceConfig(threshold=0.5)


def paint(*boxes: tuple[int, int, int, int]) -> np.ndarray:
    """A probability of 1 in boxes (top, bottom, left, right), else 0."""
    probability = np.zeros((GRID.height, GRID.width), np.float32)
    for top, bottom, left, right in boxes:
        probability[top:bottom, left:right] = 1
    return probability


def areas(probability: np.ndarray, *, side: int, margin: int, last: bool) -> list[list[int] | None]:
    """The areas of what each region has as its own; None where it wants to see more."""
    found: list[list[int] | None] = []
    for region in GRID.regions(side):
        seen = GRID.widen(region, margin)
        objects = find_objects(probability[seen.window], seen=seen, region=region, grid=GRID, config=CONFIG, last=last)
        found.append(None if objects is None else np.bincount(objects.own.ravel())[1:].tolist())
    return found


def test_an_object_on_a_border_is_measured_whole_by_one_region() -> None:
    probability = paint((250, 270, 240, 300), (255, 257, 600, 640), (10, 20, 10, 30))
    owned = [area for region in areas(probability, side=256, margin=MARGIN, last=False) for area in region or ()]
    assert sorted(owned) == [80, 200, 1200]


def test_what_reaches_beyond_the_margin_is_looked_at_again_in_a_wider_one() -> None:
    probability = paint((100, 110, 50, 700))
    assert None in areas(probability, side=256, margin=MARGIN, last=False)
    wide = areas(probability, side=256, margin=8 * MARGIN, last=False)
    assert sorted(area for region in wide for area in region or ()) == [6500]


def test_what_reaches_beyond_the_widest_is_shared_without_loss() -> None:
    """A comb, which falls into pieces where it is cut: each pixel is in one piece of one region."""
    comb = paint((300, 310, 20, 1280), *((250, 300, left, left + 10) for left in range(30, 1270, 60)))
    cut = areas(comb, side=256, margin=MARGIN, last=True)
    assert sum(area for region in cut for area in region or ()) == int(comb.sum())
    assert sum(len(region or ()) for region in cut) > 6


def test_the_tiles_of_a_window_are_those_of_the_whole() -> None:
    everything = GRID.tiles(Tile(0, GRID.height, 0, GRID.width))
    for region in GRID.regions(200):
        assert set(GRID.tiles(region)) == {
            tile
            for tile in everything
            if tile.top < region.bottom and tile.bottom > region.top and tile.left < region.right and tile.right > region.left
        }
    values = np.random.default_rng(0).random((GRID.height, GRID.width), np.float32)
    window = Tile(150, 480, 333, 777)
    np.testing.assert_allclose(
        GRID.blend(window, {tile: values[tile.window] for tile in GRID.tiles(window)}), values[window.window], rtol=1e-5
    )


def test_regions_come_block_by_block() -> None:
    grid = Grid(height=BLOCK + 600, width=2 * BLOCK, tile=512, context=32)
    blocks = [(region.top // BLOCK, region.left // BLOCK) for region in grid.regions(512)]
    assert blocks == sorted(blocks)
    assert len(set(blocks)) == 4


@pytest.mark.parametrize(("seen", "expected"), [([[5.4, 7.6]], 0.0), ([[5.4, 7.6], [50.0, 50.0]], 0.5), ([], 0.0)])
def test_seam_disagreement_is_the_share_that_nobody_has(seen: list[list[float]], expected: float) -> None:
    own = np.array([[5.4, 7.6], [20.0, 20.5]])
    assert seam_disagreement(own, np.array(seen, np.float64).reshape(-1, 2)) == expected
