"""One intensity scale: a dim image and a bright one become the same."""

import numpy as np
import pytest

from resunet_ray.intensity import measure_range, scale_counts, stretch


def test_the_range_is_that_of_the_percentiles() -> None:
    image = np.arange(1000).reshape(10, 100, 1) // 5  # levels 0 to 199, five pixels each
    assert measure_range(image.astype(np.uint8)) == (1, 199)


def test_hot_pixels_do_not_darken_the_others() -> None:
    image = np.random.default_rng(0).integers(10, 40, (100, 100, 3), dtype=np.uint8)
    before = measure_range(image)
    image[:3, :3] = 255
    assert measure_range(image) == before == (10, 39)


@pytest.mark.parametrize(("scale", "offset"), [(0.25, 3), (0.5, 100), (1.0, 0)])
def test_a_dim_image_becomes_a_bright_one(scale: float, offset: int) -> None:
    bright = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    dim = np.rint(bright * scale + offset).astype(np.uint8)
    one, other = (stretch(image, measure_range(image)).astype(int) for image in (bright, dim))
    assert (one.min(), one.max()) == (0, 255)
    assert (
        np.abs(one - other).max() <= 1 / scale + 1
    )  # half a level of the dim one at the pixel, and at the ends of the range


def test_colours_stay_and_nothing_is_made_of_noise() -> None:
    image = np.zeros((50, 50, 3), np.uint8)
    image[...] = 120, 60, 90
    image[:10] = 60, 30, 45
    low, high = measure_range(image)
    assert (low, high) == (30, 120)
    np.testing.assert_array_equal(stretch(image, (low, high))[20, 20], [255, 85, 170])
    flat = np.full((50, 50, 3), 77, np.uint8)
    flat[::2] = 78
    assert np.ptp(stretch(flat, measure_range(flat))) < 40


@pytest.mark.parametrize(
    ("level", "noise", "darkest", "brightest"), [(245, 3, 190, 255), (6, 1, 0, 90)]
)
def test_an_empty_image_stays_bright_or_dark(
    level: int, noise: int, darkest: int, brightest: int
) -> None:
    """What compression leaves of empty glass must not look like tissue."""
    change = np.random.default_rng(0).integers(-noise, noise + 1, (64, 64, 3))
    seen = stretch((level + change).astype(np.uint8))
    assert darkest <= seen.min() <= seen.max() <= brightest


@pytest.mark.parametrize("dtype", ["<u2", ">u2", "<i2", ">i2"])
def test_counts_become_the_same_grey_in_images_of_any_size(dtype: str) -> None:
    """Large ones look their values up."""
    kind = np.dtype(dtype)
    least = np.iinfo(kind).min
    values = np.arange(least, least + 2**16).reshape(256, 256).astype(kind)
    levels = (float(least + 900), float(least + 4096))
    expected = np.clip(np.rint((values.astype(float) - levels[0]) * (255 / 3196)), 0, 255)
    large = np.concatenate([values, values])[:, ::-1]
    np.testing.assert_array_equal(scale_counts(values, levels), expected)
    np.testing.assert_array_equal(
        scale_counts(large, levels), np.concatenate([expected, expected])[:, ::-1]
    )
