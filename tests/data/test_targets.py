"""Targets say where each nucleus is deepest and where its centre lies, after any change of view."""

from functools import partial

import cv2
import numpy as np
import pytest

from resunet_ray.config import AugmentConfig
from resunet_ray.data.augment import augment, crop_at_random
from resunet_ray.data.targets import (
    COLUMNS,
    DIAMETER,
    DISTANCE,
    KNOWN,
    MARKS,
    NEAR,
    ORIGIN,
    ROWS,
    STEPS,
    WHOLE,
    compute_targets,
)


def draw_discs(
    *discs: tuple[int, int, int], height: int = 60, width: int = 90, offset: int = 0
) -> np.ndarray:
    """Draw discs (row, column, radius), numbered from 1 plus the offset."""
    labels = np.zeros((height, width), np.int32)
    rows, columns = np.indices(labels.shape)
    for number, (row, column, radius) in enumerate(discs, start=1 + offset):
        inside = (rows - row) ** 2 + (columns - column) ** 2 <= radius**2
        labels[inside & (labels == 0)] = number
    return labels


def read_steps(targets: np.ndarray) -> np.ndarray:
    return targets[ROWS : COLUMNS + 1].astype(int) - ORIGIN


def test_two_touching_discs_are_deepest_at_their_centres_and_shallow_where_they_touch() -> None:
    labels = draw_discs((30, 25, 12), (30, 49, 12), offset=700)
    assert (labels[30, 37], labels[30, 38]) == (701, 702)
    distance = compute_targets(labels)[DISTANCE] / 255
    assert distance[30, 25] == distance[30, 49] == 1
    assert (distance[30, 26:37] < 1).all()
    assert (np.diff(distance[30, 25:38]) < 0).all()
    assert distance[30, 37] == pytest.approx(1 / 13, abs=0.01)
    assert distance[30, 38] < 0.1
    assert (distance[labels == 0] == 0).all()
    for number in (701, 702):
        own = (labels == number).astype(np.uint8)
        depth = cv2.distanceTransform(own, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        alone = (depth / depth.max())[own == 1]
        np.testing.assert_allclose(distance[own == 1], alone, atol=0.08)


def test_steps_lead_to_the_centroids() -> None:
    labels = draw_discs((30, 25, 12), (30, 49, 11))
    targets = compute_targets(labels)
    steps = read_steps(targets)
    for number in (1, 2):
        place = np.argwhere(labels == number)
        seen = place + steps[:, *place.T].T
        np.testing.assert_allclose(seen, np.tile(place.mean(axis=0), (len(place), 1)), atol=0.5)
    assert (steps[:, labels == 0] == 0).all()
    for number, radius in ((1, 12), (2, 11)):
        byte = targets[DIAMETER][labels == number]
        assert 2 ** (byte / STEPS) == pytest.approx(2 * radius, rel=0.05)
    assert ((targets[MARKS] & WHOLE > 0) == (labels > 0)).all()
    assert (targets[MARKS] & KNOWN > 0).all()


def test_only_pixels_between_two_nuclei_are_near_two() -> None:
    labels = draw_discs((30, 20, 10), (30, 42, 10), (30, 70, 10))
    near = compute_targets(labels)[MARKS] & NEAR > 0
    assert near[30, 30:33].all(), "a gap of one pixel and what surrounds it"
    assert not near[:, :28].any()
    assert not near[:, 35:].any(), "the third disc is far from the second"


def test_a_nucleus_that_the_crop_or_the_image_cuts_has_no_centre_but_a_distance() -> None:
    labels = draw_discs((30, 5, 12), (30, 45, 12))
    targets = compute_targets(labels)
    assert not (targets[MARKS][labels == 1] & WHOLE).any()
    assert (targets[MARKS][labels == 2] & WHOLE).all()
    assert targets[DISTANCE, 30, 5] == 255
    assert targets[DISTANCE, 30, 0] > 128, "the border of the image is no border of the nucleus"
    filled = compute_targets(np.full((8, 12), 3, np.int32))
    assert (filled[DISTANCE] == 255).all()
    assert (filled[MARKS] == KNOWN).all()
    empty = compute_targets(np.zeros((8, 12), np.int32))
    assert (empty[DISTANCE] == 0).all()
    assert (empty[MARKS] == KNOWN).all()


def test_a_nucleus_and_its_mirror_image_are_two() -> None:
    """An image smaller than the crop is continued in its mirror image."""
    labels = draw_discs((12, 30, 7), (38, 58, 8), height=50, width=70)
    labels[33:50, 5:20] = 3  # touches the image's lower border
    image = np.zeros((50, 70, 3), np.uint8)
    _, view = crop_at_random(image, labels, size=96, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(view[:50, :70], labels)
    assert view.min() == -3
    targets = compute_targets(view)
    assert ((targets[MARKS] & WHOLE > 0) == ((view == 1) | (view == 2))).all()
    steps = read_steps(targets)
    for number in (1, 2):
        place = np.argwhere(view == number)
        seen = place + steps[:, *place.T].T
        np.testing.assert_allclose(seen, np.tile(place.mean(axis=0), (len(place), 1)), atol=0.5)
    assert targets[DISTANCE, 49, 12] > 200, "its mirror image continues the nucleus"


def test_targets_move_with_the_view() -> None:
    """However a disc is turned, mirrored and zoomed, its steps lead to where its centre is now."""
    labels = draw_discs((60, 80, 9), (60, 98, 9), height=120, width=180)
    image = np.zeros((120, 180, 3), np.uint8)
    seen = 0
    for seed in range(30):
        _, view = augment(
            image, labels, size=64, config=AugmentConfig(), rng=np.random.default_rng(seed)
        )
        targets = compute_targets(view)
        steps = read_steps(targets)
        whole = targets[MARKS] & WHOLE > 0
        for number in np.unique(view[whole]):
            place = np.argwhere(view == number)
            ends = place + steps[:, *place.T].T
            centre = place.mean(axis=0)
            assert np.abs(ends - centre).max() <= 0.5 + 1e-6
            deepest = np.argwhere((targets[DISTANCE] == 255) & (view == number))
            assert np.abs(deepest - centre).max() < 4
            seen += 1
    assert seen > 20


def test_numbers_and_mask_show_the_same_view() -> None:
    """Except for the rounding at edges."""
    labels = draw_discs((12, 30, 7), (40, 60, 9), height=50, width=70)
    mask = (labels > 0).astype(np.uint8)
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    for seed in range(10):
        for cut in (crop_at_random, partial(augment, config=AugmentConfig())):
            one, other = (
                cut(image, truth, size=64, rng=np.random.default_rng(seed))
                for truth in (mask, labels)
            )
            np.testing.assert_array_equal(one[0], other[0])
            assert (one[1] != (other[1] != 0)).mean() < 0.01
