"""Generated images have what makes real ones hard, and their truth is exactly what was drawn."""

import cv2
import numpy as np
import pytest

from resunet_ray.data.synthetic import MODALITIES, _place_nuclei, generate_image

HEIGHT, WIDTH = 192, 224


def generate(modality: str, *, seed: int, num_nuclei: int = 24) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([1, seed])
    return generate_image(HEIGHT, WIDTH, modality=modality, num_nuclei=num_nuclei, rng=rng)


def contrast(image: np.ndarray) -> np.ndarray:
    """Return by how many grey levels each pixel differs from the background around it."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return cv2.absdiff(grey, cv2.medianBlur(grey, 61)).astype(np.float32)


def stands_alone(labels: np.ndarray, number: int, *, within: int) -> bool:
    """Whether no other nucleus is closer than `within` pixels, diagonals included."""
    square = np.ones((2 * within + 1, 2 * within + 1), np.uint8)
    near = cv2.dilate((labels == number).astype(np.uint8), square) > 0
    return set(np.unique(labels[near]).tolist()) <= {0, number}


def test_every_nucleus_is_numbered_and_is_one_piece_of_some_size() -> None:
    for seed in range(20):
        _, labels = generate("stained", seed=seed)
        assert np.unique(labels).tolist() == list(range(labels.max() + 1))
        for number in range(1, labels.max() + 1):
            piece = np.pad(labels == number, 1).astype(np.uint8)
            assert cv2.connectedComponents(piece, connectivity=4)[0] == 2, (seed, number)
            assert cv2.distanceTransform(piece, cv2.DIST_L2, 5).max() > 2, "a sliver"


def test_where_nuclei_overlap_the_pixel_belongs_to_the_one_on_top() -> None:
    hidden = 0
    for seed in range(10):
        nuclei, labels = _place_nuclei(
            HEIGHT, WIDTH, num_nuclei=24, rng=np.random.default_rng(seed)
        )
        expected, layers = np.zeros_like(labels), np.zeros_like(labels)
        for number, nucleus in enumerate(nuclei, start=1):
            expected[nucleus.window][nucleus.shape] = number
            layers[nucleus.window] += nucleus.shape
        np.testing.assert_array_equal(labels, expected)
        hidden += int((layers > 1).sum())
        for number, nucleus in enumerate(nuclei, start=1):
            assert (labels == number).sum() >= 0.6 * nucleus.shape.sum(), (
                "hidden too much to be found"
            )
    assert hidden > 1000


def test_about_as_many_touch_as_in_real_images() -> None:
    """In BBBC038 with corrected annotations 29% touch: 26% in fluorescence, 40% on white."""
    images = [generate("fluorescence", seed=seed)[1] for seed in range(40)]
    alone = [
        stands_alone(labels, number, within=1)
        for labels in images
        for number in range(1, labels.max() + 1)
    ]
    assert 0.2 < 1 - np.mean(alone) < 0.45


@pytest.mark.parametrize("modality", MODALITIES)
def test_debris_stands_out_and_is_not_a_nucleus(modality: str) -> None:
    """Even without nuclei there are specks and fibres to be mistaken for one."""
    lengths: list[int] = []
    for seed in range(20):
        image, labels = generate(modality, seed=seed, num_nuclei=0)
        assert not labels.any()
        smooth = cv2.GaussianBlur(contrast(image), (0, 0), 1.0)
        _, _, boxes, _ = cv2.connectedComponentsWithStats((smooth > 15).astype(np.uint8))
        lengths += boxes[1:, [cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT]].max(axis=1).tolist()
    assert sum(length < 10 for length in lengths) > 2 * 20
    assert sum(length > 20 for length in lengths) > 20 // 4


@pytest.mark.parametrize("modality", MODALITIES)
def test_light_is_uneven(modality: str) -> None:
    """The darkest ninth of an image gets less light than the brightest."""
    for seed in range(10):
        image, _ = generate(modality, seed=seed, num_nuclei=0)
        ninths = cv2.resize(image.mean(axis=2), (3, 3), interpolation=cv2.INTER_AREA)
        assert ninths.min() < 0.96 * ninths.max()


def edges(image: np.ndarray, labels: np.ndarray) -> list[float]:
    """Return the steepness of each isolated nucleus's edge, relative to its contrast."""
    height = contrast(image)
    slope = cv2.morphologyEx(height, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    found = []
    for number in range(1, labels.max() + 1):
        if stands_alone(labels, number, within=4):
            shape = (labels == number).astype(np.uint8)
            rim = cv2.morphologyEx(shape, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
            found.append(float(np.median(slope[rim]) / np.median(height[shape > 0])))
    return found


@pytest.mark.parametrize("modality", MODALITIES)
def test_nuclei_out_of_focus_are_in_the_truth(modality: str) -> None:
    """About one in eight has a softer edge than any nucleus in focus."""
    found = np.array([edge for seed in range(30) for edge in edges(*generate(modality, seed=seed))])
    blurred = (found < 0.85 * np.median(found)).mean()
    assert 0.06 < blurred < 0.2


def test_a_seed_repeats_the_image_and_another_seed_does_not() -> None:
    first, again, other = (generate("stained", seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert (first[1] != other[1]).any()
    assert (first[0] != other[0]).any()
