"""A random view is fair: image and mask move together, and a seed repeats it."""

from dataclasses import replace
from itertools import product

import cv2
import numpy as np
import pytest

from resunet_ray.config import AugmentConfig
from resunet_ray.data.augment import augment, crop_at_random
from resunet_ray.data.synthetic import generate_image

STILL = AugmentConfig(
    brightness=0, contrast=0, gamma=1, hue_probability=0, blur_probability=0, noise_probability=0
)


def sample(height: int = 150, width: int = 210) -> tuple[np.ndarray, np.ndarray]:
    image, labels = generate_image(
        height, width, modality="fluorescence", num_nuclei=25, rng=np.random.default_rng(8)
    )
    return image, (labels > 0).astype(np.uint8)


def test_mask_and_image_move_together() -> None:
    """A mask painted into the image moves with the mask, except where interpolation blurs it."""
    _, mask = sample()
    mask = cv2.GaussianBlur(mask * 255, (0, 0), 3) // 128
    image = np.repeat(mask[..., None] * np.uint8(255), 3, axis=2)
    for seed in range(40):
        moved, moved_mask = augment(
            image, mask, size=96, config=STILL, rng=np.random.default_rng(seed)
        )
        # Without the rim, because the mask beyond the crop's edge is unknown.
        within = np.s_[3:-3, 3:-3]
        moved = moved[within]
        inside = cv2.erode(moved_mask, np.ones((5, 5), np.uint8))[within] == 1
        outside = cv2.dilate(moved_mask, np.ones((5, 5), np.uint8))[within] == 0
        assert (moved[inside] == 255).all()
        assert (moved[outside] == 0).all()


def test_a_seed_repeats_the_view_and_another_seed_does_not() -> None:
    image, mask = sample()
    config = AugmentConfig()
    first, again, other = (
        augment(image, mask, size=64, config=config, rng=np.random.default_rng(seed))
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert (first[0] != other[0]).any()


def test_every_setting_changes_something() -> None:
    image, mask = sample()
    image[..., 0] //= 2  # colour, so that the hue can turn
    none = AugmentConfig(
        flip=False, rotation_probability=0, scale=1, brightness=0, contrast=0, gamma=1,
        invert_probability=0, hue_probability=0, blur_probability=0, noise_probability=0,
    )  # fmt: skip
    base = augment(image, mask, size=400, config=none, rng=np.random.default_rng(0))[0]
    for change in (
        {"flip": True}, {"rotation_probability": 1}, {"scale": 2}, {"brightness": 0.4},
        {"contrast": 0.5}, {"gamma": 3}, {"hue_probability": 1},
        {"blur_probability": 1}, {"noise_probability": 1}, {"stain_probability": 1},
        {"grey_probability": 1}, {"light_probability": 1},
    ):  # fmt: skip
        config = AugmentConfig(**{**vars(none), **change})
        changed = [
            augment(image, mask, size=400, config=config, rng=np.random.default_rng(seed))[0]
            for seed in range(3)
        ]
        assert any((view != base).any() for view in changed), change


def test_only_a_grey_image_becomes_a_negative() -> None:
    image, mask = sample()
    negative = replace(STILL, invert_probability=1)
    for coloured in (False, True):
        shown = image // np.array([1, 2, 3], np.uint8) if coloured else image
        plain, inverted = (
            augment(shown, mask, size=64, config=config, rng=np.random.default_rng(0))[0]
            for config in (STILL, negative)
        )
        np.testing.assert_array_equal(inverted, plain if coloured else 255 - plain)


def test_gaps_are_white_and_hold_no_nuclei_and_only_stained_images_have_them() -> None:
    stained = np.full((150, 210, 3), (150, 90, 160), np.uint8)
    config = replace(STILL, gap_probability=1, scale=1, rotation_probability=0)
    full = np.arange(1, 1 + 150 * 210, dtype=np.int32).reshape(150, 210)
    for truth in (full, np.ones((150, 210), np.uint8)):
        for seed in range(10):
            rng = np.random.default_rng(seed)
            view, moved = augment(stained, truth, size=96, config=config, rng=rng)
            gap = moved == 0
            assert 0.01 < gap.mean() < 0.35, seed
            inner = cv2.erode(gap.astype(np.uint8), np.ones((13, 13), np.uint8)) > 0
            assert (view[inner] >= 225).all(), seed
            outer = cv2.erode((~gap).astype(np.uint8), np.ones((13, 13), np.uint8)) > 0
            assert (view[outer] == (150, 90, 160)).all(), seed
    for other in (stained // 3, stained[..., :1].repeat(3, axis=2)):
        _, moved = augment(other, full, size=96, config=config, rng=np.random.default_rng(0))
        assert (moved != 0).all(), "neither fluorescence nor a grey image"


def test_only_a_grey_image_is_tinted_and_only_the_tint_colours_it() -> None:
    config = AugmentConfig(hue_probability=1, stain_probability=1, noise_probability=0)
    tinted = replace(config, tint_probability=1)
    grey, mask = sample()
    coloured = grey // np.array([1, 2, 3], np.uint8)
    for seed in range(10):
        plain, tint, colour, untouched = (
            augment(image, mask, size=64, config=choice, rng=np.random.default_rng(seed))[0]
            for image, choice in product((grey, coloured), (config, tinted))
        )
        assert (plain == plain[..., :1]).all(), seed
        assert (tint != tint[..., :1]).any(), seed
        assert tint.any(axis=2).mean() > 0.01, "the image can still be seen"
        np.testing.assert_array_equal(colour, untouched)


@pytest.mark.parametrize("paper", [0, 230], ids=["dark", "bright"])
def test_nuclei_at_the_end_of_the_range_survive_every_change_of_tone(paper: int) -> None:
    """In a dim fluorescence or bright-field image all contrast is near black or white."""
    _, mask = sample()
    image = np.repeat((paper + mask * np.uint8(12))[..., None], 3, axis=2)
    config = AugmentConfig(
        flip=False, rotation_probability=0, scale=1, blur_probability=0, noise_probability=1,
        stain_probability=1, grey_probability=0.5,
    )  # fmt: skip
    for seed in range(40):
        view, moved = augment(image, mask, size=96, config=config, rng=np.random.default_rng(seed))
        assert view[moved == 1].mean() - view[moved == 0].mean() > 6, seed


@pytest.mark.parametrize(("height", "width"), [(150, 210), (40, 300), (30, 20)])
def test_crops_have_the_requested_size_for_images_of_any_size(height: int, width: int) -> None:
    image = np.full((height, width, 3), 7, np.uint8)
    mask = np.ones((height, width), np.uint8)
    for cut in (
        crop_at_random(image, mask, size=64, rng=np.random.default_rng(0)),
        augment(image, mask, size=64, config=STILL, rng=np.random.default_rng(0)),
    ):
        assert cut[0].shape == (64, 64, 3)
        assert cut[1].shape == (64, 64)
        assert cut[1].all(), "a small image is padded with its own pixels"


def test_crops_around_nuclei_show_one_even_in_a_sparse_image() -> None:
    image, mask = np.zeros((600, 800, 3), np.uint8), np.zeros((600, 800), np.uint8)
    mask[300:306, 500:507] = 1
    seen = {0.0: 0, 1.0: 0}
    for probability in seen:
        config = AugmentConfig(foreground_probability=probability)
        for seed in range(100):
            rng = np.random.default_rng(seed)
            _, crop = augment(image, mask, size=64, config=config, rng=rng)
            seen[probability] += int(crop.any())
    assert seen[1.0] == 100
    assert seen[0.0] < 10
