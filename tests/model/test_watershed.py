"""Components are divided as scikit-image's watershed and peaks divide them."""

import cv2
import numpy as np
from skimage.feature import peak_local_max
from skimage.measure import label
from skimage.segmentation import watershed

from resunet_ray.model.watershed import label_watershed


def draw_discs(rng: np.random.Generator) -> np.ndarray:
    """A mask of discs, of which many touch or overlap."""
    mask = np.zeros((int(rng.integers(20, 90)), int(rng.integers(20, 90))), np.uint8)
    for _ in range(rng.integers(2, 14)):
        column, row = rng.integers(0, mask.shape[::-1]).tolist()
        cv2.circle(mask, (column, row), int(rng.integers(1, 14)), 1, -1)
    return mask


def divide(mask: np.ndarray, *, min_distance: int) -> np.ndarray:
    """Every component by scikit-image alone, with peaks and priorities from its own functions."""
    steps = cv2.distanceTransform(mask, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) * 64
    height = cv2.GaussianBlur(np.minimum(steps, 65535).astype(np.uint16), (0, 0), 1.0)
    components = label(mask, connectivity=1)
    divided = np.zeros(mask.shape, np.int32)
    for number in range(1, components.max() + 1):
        inside = components == number
        peaks = peak_local_max(
            height.astype(np.int32),
            min_distance=min_distance,
            labels=inside.astype(int),
            exclude_border=False,
        )
        markers = np.zeros(mask.shape, np.int32)
        markers[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
        rows, columns = (slice(at.min(), at.max() + 1) for at in np.nonzero(inside))
        part = rows, columns
        parts = watershed(-height[part].astype(int), markers[part], mask=inside[part])
        if len(peaks) > 1:
            divided[part][inside[part]] = divided.max() + parts[inside[part]]
        else:
            divided[inside] = divided.max() + 1
    return divided


def assert_same_objects(found: np.ndarray, wanted: np.ndarray) -> None:
    """Numbers do not count."""
    pairs = np.unique(np.stack([found.ravel(), wanted.ravel()]), axis=1)
    assert len(np.unique(pairs[0])) == len(np.unique(pairs[1])) == pairs.shape[1]


def test_a_watershed_divides_as_that_of_whole_components() -> None:
    rng = np.random.default_rng(0)
    divided = 0
    for _ in range(20):
        mask = draw_discs(rng)
        distance = int(rng.integers(1, 8))
        found = label_watershed(mask, min_distance=distance)
        assert_same_objects(found, divide(mask, min_distance=distance))
        divided += len(np.unique(found)) - 1 - label(mask, connectivity=1).max()
    assert divided > 20


def test_a_mask_without_heights_is_not_divided() -> None:
    """All of it, and lines so close that every pixel is as high as those between."""
    full = np.ones((30, 41), np.uint8)
    assert label_watershed(full, min_distance=2).max() == 1
    lines = np.zeros((30, 41), np.uint8)
    lines[::2] = 1
    assert_same_objects(label_watershed(lines, min_distance=2), label(lines, connectivity=1))
