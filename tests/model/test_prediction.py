"""A packed prediction says the same as NumPy reads in it, and parts add up with their weights."""

import numpy as np
import pytest

from resunet_ray.config.model import Head
from resunet_ray.model.prediction import Prediction

HEADS: tuple[Head, ...] = ("distance", "centre")


def test_every_number_of_half_precision_is_read() -> None:
    numbers = np.arange(2**16, dtype=np.uint16).view(np.float16)
    halves = numbers[np.isfinite(numbers)].reshape(2, 62, -1)
    maps = np.concatenate([np.zeros_like(halves), halves])
    packed = Prediction(maps, HEADS, np.zeros(maps.shape[1:], np.float32))
    centre = packed.centre
    assert centre is not None
    np.testing.assert_array_equal(centre, halves.astype(np.float32))


@pytest.mark.parametrize("packed", [False, True])
def test_a_part_is_added_with_the_weights_of_its_rows_and_columns(packed: bool) -> None:
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(4, 40, 50)).astype(np.float32)
    prediction = Prediction(maps, HEADS)
    if packed:
        prediction = prediction.pack()
        maps = np.concatenate([maps[:1], maps[1:].astype(np.float16).astype(np.float32)])
    rows, columns = rng.random(20, np.float32), rng.random(31, np.float32)
    total = np.ones((4, 60, 70), np.float32)
    part, place = (slice(7, 27), slice(11, 42)), (slice(30, 50), slice(3, 34))
    prediction.add_to(total, part=part, place=place, rows=rows, columns=columns)
    expected = np.ones((4, 60, 70), np.float32)
    expected[:, *place] += maps[:, *part] * np.outer(rows, columns)
    np.testing.assert_array_equal(total, expected)
