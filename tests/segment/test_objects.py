"""Each object of a slide belongs to one region and is the same however the slide is cut."""

import itertools
from collections.abc import Iterator

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resunet_ray.config import InstanceConfig
from resunet_ray.model.measures import measure_instances
from resunet_ray.model.prediction import Prediction
from resunet_ray.model.tiling import Box
from resunet_ray.segment.planning import grid
from resunet_ray.segment.planning.grid import BLOCK, Gate, Grid
from resunet_ray.segment.work import objects
from resunet_ray.segment.work.objects import find_objects, seam_disagreement

GRID = Grid(height=900, width=1300, tile=192, context=16)
COMPONENTS = InstanceConfig(threshold=0.5, method="components")
WATERSHED = InstanceConfig(threshold=0.5, method="watershed", min_distance=5)
SIDES = (50, 64, 125, 256, 1024)


@pytest.fixture(scope="module", autouse=True)
def small_squares() -> Iterator[None]:
    """An eighth of each length that counts: the same properties, in a 64th of the pixels."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name, value in (
            (objects, "MARGIN", 8),
            (objects, "LONGEST", 128),
            (objects, "HALO", 32),
            (grid, "REACH", 128),
            (grid, "SQUARE", 64),
        ):
            assert getattr(module, name) == 8 * value
            patch.setattr(module, name, value)
        yield


def paint(*boxes: tuple[int, int, int, int], height: int = 900, width: int = 1300) -> np.ndarray:
    """A probability of 1 in boxes (top, bottom, left, right), else 0."""
    probability = np.zeros((height, width), np.float32)
    for top, bottom, left, right in boxes:
        probability[top:bottom, left:right] = 1
    return probability


def cut(
    found: np.ndarray | Prediction,
    *,
    side: int,
    config: InstanceConfig = COMPONENTS,
    squares: np.ndarray | None = None,
) -> tuple[list[tuple[float, float, float]], np.ndarray]:
    """Area and centroid of the objects that the regions own, sorted, and the assembled mask."""
    prediction = found if isinstance(found, Prediction) else Prediction(found[None])
    height, width = prediction.probability.shape
    cut_grid = Grid(height, width, tile=192, context=16)
    objects, mask = [], np.zeros((height, width), bool)
    for region in cut_grid.regions(side):
        let_in = None if squares is None else Gate.of(squares, region=region)
        found_here = find_objects(
            lambda window: Prediction(prediction.maps[:, *window.window], prediction.heads),
            region=region,
            grid=cut_grid,
            config=config,
            gate=let_in,
        )
        mask[region.window] = found_here.labels > 0
        for own in found_here.own:
            rows = measure_instances(
                own.labels, own.probability, corner=(own.window.top, own.window.left)
            ).to_pylist()
            objects += [
                (row["area_px"], round(row["centroid_y"], 6), round(row["centroid_x"], 6))
                for row in rows
            ]
    return sorted(objects), mask


def test_an_object_on_a_border_is_measured_whole_by_one_region() -> None:
    probability = paint((58, 78, 40, 100), (63, 65, 110, 150), (10, 20, 10, 30))
    found, mask = cut(probability, side=64)
    assert [area for area, *_ in found] == [80, 200, 1200]
    np.testing.assert_array_equal(mask, probability > 0)


def test_objects_of_any_length_are_the_same_however_the_slide_is_cut() -> None:
    """Up to the longest, each is one; a longer one is cut, and each pixel is in one piece."""
    lengths = (12, 75, 128, 129, 190, 375, 4000)
    probability = paint(
        *((20 + 15 * row, 30 + 15 * row, 37, 37 + length) for row, length in enumerate(lengths)),
        height=140,
        width=4100,
    )
    wanted, mask = cut(probability, side=SIDES[0])
    np.testing.assert_array_equal(mask, probability > 0)
    for row, length in enumerate(lengths):
        pieces = [area for area, y, _ in wanted if y == 25 + 15 * row]
        assert sum(pieces) == 10 * length
        assert (len(pieces) == 1) == (length <= objects.LONGEST)
    for side in SIDES[1:]:
        found, other = cut(probability, side=side)
        assert found == wanted
        np.testing.assert_array_equal(other, mask)


def test_a_comb_that_falls_apart_where_it_is_cut_loses_no_pixel() -> None:
    comb = paint(
        (140, 144, 5, 298),
        *((60, 140, left, left + 3) for left in range(8, 290, 9)),
        height=175,
        width=300,
    )
    wanted, mask = cut(comb, side=SIDES[0])
    np.testing.assert_array_equal(mask, comb > 0)
    assert sum(area for area, *_ in wanted) == comb.sum()
    for side in SIDES[1:]:
        assert cut(comb, side=side)[0] == wanted


@pytest.mark.parametrize("shape", ["a row", "a field"])
def test_each_nucleus_of_a_long_chain_counts_once(shape: str) -> None:
    """Discs that touch their neighbours, over many squares."""
    rows, columns = (1, 60) if shape == "a row" else (15, 15)
    probability = np.zeros((rows * 20 + 60, columns * 20 + 60), np.float32)
    for row in range(rows):
        for column in range(columns):
            cv2.circle(probability, (40 + 20 * column, 40 + 20 * row), 10, 1.0, thickness=-1)
    wanted, mask = cut(probability, side=SIDES[0], config=WATERSHED)
    np.testing.assert_array_equal(mask, probability > 0)
    assert len(wanted) == rows * columns
    # A pixel where two discs touch may be either's: each square decides by itself.
    assert sum(area for area, *_ in wanted) == pytest.approx(probability.sum(), rel=1e-3)
    for side in SIDES[1:]:
        assert cut(probability, side=side, config=WATERSHED)[0] == wanted


def test_nuclei_told_apart_by_heads_are_the_same_however_the_slide_is_cut() -> None:
    """Pairs of discs that touch; each pixel knows its centre."""
    maps = np.zeros((4, 300, 400), np.float32)
    y, x = np.mgrid[:300, :400].astype(np.float32)
    for row, column in itertools.product(range(20, 280, 35), (30, 49, 200, 219)):
        distance = np.hypot(y - row, x - column)
        inside = (distance <= 10) & (maps[0] == 0)
        maps[0, inside], maps[1, inside] = 1, 1 - distance[inside] / 10
        maps[2, inside], maps[3, inside] = row - y[inside], column - x[inside]
    prediction = Prediction(maps, ("distance", "centre"))
    config = InstanceConfig(method="distance")
    wanted, mask = cut(prediction, side=SIDES[0], config=config)
    assert len(wanted) == 32
    np.testing.assert_array_equal(mask, maps[0] > 0)
    for side in SIDES[1:]:
        assert cut(prediction, side=side, config=config)[0] == wanted


@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 100))
def test_whatever_the_clutter_it_is_the_same_however_it_is_cut(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    probability = np.zeros((190, 240), np.float32)
    for _ in range(count):
        start, turn, length = (
            rng.integers(0, 240, 2),
            rng.uniform(0, np.pi),
            rng.choice([3, 10, 40, 200]),
        )
        end = (start + length * np.array([np.cos(turn), np.sin(turn)])).astype(int)
        cv2.line(probability, start.tolist(), end.tolist(), 1.0, thickness=int(rng.integers(2, 8)))
    squares = rng.random((3, 4)) < 0.7
    for config in (COMPONENTS, WATERSHED):
        wanted, mask = cut(probability, side=64, config=config, squares=squares)
        for side in (40, 256):
            found, other = cut(probability, side=side, config=config, squares=squares)
            assert found == wanted
            np.testing.assert_array_equal(other, mask)


@pytest.mark.parametrize("side", SIDES)
def test_an_object_counts_by_its_own_place(side: int) -> None:
    """One square has tissue, its neighbours have none."""
    squares = np.zeros((3, 4), bool)
    squares[1, 1] = True
    outside, on_its_border, within = (80, 90, 40, 55), (80, 90, 58, 72), (100, 105, 110, 120)
    probability = paint(outside, on_its_border, within, height=190, width=240)
    found, mask = cut(probability, side=side, squares=squares)
    assert [area for area, *_ in found] == [50, 140]
    np.testing.assert_array_equal(mask, paint(on_its_border, within, height=190, width=240) > 0)


def test_a_gate_comes_out_of_its_bytes_as_it_went_in() -> None:
    squares = np.random.default_rng(0).random((7, 9)) < 0.5
    height, width = 7 * grid.SQUARE - 30, 9 * grid.SQUARE - 1
    for region in Grid(height, width, tile=192, context=16).regions(90):
        one = Gate.of(squares, region=region)
        other = Gate.unpack(one.pack(), region=region, height=height, width=width)
        assert (other.top, other.left) == (one.top, one.left)
        np.testing.assert_array_equal(other.has_tissue, one.has_tissue)


def test_the_tiles_of_a_window_are_those_of_the_whole() -> None:
    everything = GRID.tiles(Box(0, GRID.height, 0, GRID.width))
    for region in GRID.regions(200):
        assert set(GRID.tiles(region)) == {
            tile
            for tile in everything
            if tile.top < region.bottom
            and tile.bottom > region.top
            and tile.left < region.right
            and tile.right > region.left
        }
    values = np.random.default_rng(0).random((3, GRID.height, GRID.width), np.float32)
    window = Box(150, 480, 333, 777)
    np.testing.assert_allclose(
        GRID.blend(
            window,
            {tile: Prediction(values[:, *tile.window]) for tile in GRID.tiles(window)},
        ).maps,
        values[:, *window.window],
        rtol=1e-5,
    )


def test_regions_come_block_by_block() -> None:
    large = Grid(height=BLOCK + 600, width=2 * BLOCK, tile=512, context=32)
    blocks = [(region.top // BLOCK, region.left // BLOCK) for region in large.regions(512)]
    assert blocks == sorted(blocks)
    assert len(set(blocks)) == 4


@pytest.mark.parametrize(
    ("seen", "expected"), [([[5.4, 7.6]], 0.0), ([[5.4, 7.6], [50.0, 50.0]], 0.5), ([], 0.0)]
)
def test_seam_disagreement_is_the_share_that_nobody_has(
    seen: list[list[float]], expected: float
) -> None:
    own = np.array([[5.4, 7.6], [20.0, 20.5]])
    assert seam_disagreement(own, np.array(seen, np.float64).reshape(-1, 2)) == expected
