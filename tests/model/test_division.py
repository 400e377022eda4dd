"""Components are divided among markers as scikit-image, SciPy and OpenCV would divide them."""

import cv2
import numpy as np
import pytest
from scipy import ndimage
from skimage.measure import label
from support import REAL_DATA, read_picture

from resunet_ray.model.connected import label_components, renumber, sum_inside
from resunet_ray.model.division import divide_components, find_nearest

AREA = 3


def number_alike(found: np.ndarray, wanted: np.ndarray) -> bool:
    """Whether both divide the pixels alike, whatever the numbers."""
    pairs = np.unique(np.stack([found.ravel(), wanted.ravel()]), axis=1)
    return all(len(np.unique(one)) == pairs.shape[1] for one in pairs)


def see_nearest(markers: np.ndarray) -> np.ndarray:
    """The nearest marker of each pixel, by OpenCV."""
    _, nearest = cv2.distanceTransformWithLabels(
        (markers == 0).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    marker_of = np.zeros(int(nearest.max()) + 1, np.int32)
    marker_of[nearest[markers > 0]] = markers[markers > 0]
    return marker_of[nearest]


def assign(
    mask: np.ndarray, distance: np.ndarray, centre: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """The marker that each pixel belongs to, and whether a path leads there within its instance."""
    labels = label(mask, connectivity=1)
    assigned, reached = labels.copy(), labels > 0
    for component in range(1, labels.max() + 1):
        inside = labels == component
        window = ndimage.find_objects(inside.astype(int))[0]
        markers = label((distance > 0.5) & inside, connectivity=1)[window]
        sizes = np.bincount(markers.ravel())
        markers[(sizes < AREA)[markers]] = 0
        if len(np.unique(markers[markers > 0])) < 2:
            continue
        places = np.nonzero(inside[window])
        seen = np.stack(places).astype(float)
        if centre is not None:
            seen = np.rint(seen + centre[:, *window][:, inside[window]])
        rows, columns = (
            at.clip(0, end - 1).astype(int) for at, end in zip(seen, markers.shape, strict=True)
        )
        chosen = np.zeros(markers.shape, int)
        chosen[places] = see_nearest(markers)[rows, columns]
        chosen[markers > 0] = markers[markers > 0]
        pieces = label(chosen, connectivity=1)
        whole = np.isin(pieces, pieces[markers > 0]) & (chosen > 0)
        assigned[window][inside[window]] = assigned.max() + chosen[inside[window]]
        reached[window][inside[window]] = whole[inside[window]]
    return assigned, reached


def check(mask: np.ndarray, distance: np.ndarray, centre: np.ndarray | None) -> tuple[int, int]:
    """Compare with the others; return the number of instances, and of pixels without a path."""
    found, count = label_components(mask)
    divide_components(found, count, distance, marker_distance=0.5, centre=centre, marker_area=AREA)
    assigned, reached = assign(mask, distance, centre)
    assert number_alike(found[reached], assigned[reached])
    assert (found[mask > 0] > 0).all()
    count = len(np.unique(found)) - 1
    assert label(found, connectivity=1).max() == count, "each instance is one piece"
    outside = np.pad(mask == 0, 1, constant_values=True)
    holes = label(outside, connectivity=2)
    holes = np.where(holes == holes[0, 0], 0, holes)[1:-1, 1:-1]
    cross = ndimage.generate_binary_structure(2, 1)
    for number in np.unique(holes[holes > 0]):
        hole = holes == number
        around = np.unique(found[ndimage.binary_dilation(hole, cross) & (mask > 0)])
        assert set(found[hole]) == ({around[0]} if len(around) == 1 else {0})
    assert (found[(mask == 0) & (holes == 0)] == 0).all()
    return count, int(((mask > 0) & ~reached).sum())


def test_components_are_those_of_scikit_image() -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        values = rng.integers(0, rng.integers(2, 5), rng.integers(1, 40, 2)).astype(np.uint8)
        labels, count = label_components(values)
        np.testing.assert_array_equal(labels, label(values, connectivity=1))
        assert count == labels.max(initial=0)


def test_areas_and_sums_are_those_of_the_pixels() -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 9, (30, 40)).astype(np.int32)
    values = rng.random((30, 40), np.float32)
    areas, sums = sum_inside(labels, values, 8)
    for number in range(1, 9):
        assert areas[number] == (labels == number).sum()
        assert sums[number] == pytest.approx(values[labels == number].sum(dtype=float))
    numbers = rng.permutation(9).astype(np.int32)
    other = labels.copy()
    renumber(other, numbers)
    np.testing.assert_array_equal(other, np.where(labels > 0, numbers[labels], 0))


def test_the_nearest_marker_is_that_of_opencv() -> None:
    rng = np.random.default_rng(2)
    for share in (0.003, 0.02, 0.2) * 10:
        markers = (rng.random(rng.integers(1, 60, 2)) < share).astype(np.int32)
        markers[tuple(rng.integers(0, markers.shape))] = 1
        markers *= np.arange(1, markers.size + 1, dtype=np.int32).reshape(markers.shape)
        np.testing.assert_array_equal(find_nearest(markers), see_nearest(markers))


def test_whatever_is_predicted_components_are_divided_as_by_the_others() -> None:
    """Noise, smoothed: with holes, pieces without a marker, and markers too small to count."""
    rng = np.random.default_rng(3)
    total = np.zeros(2, int)
    for turn in range(12):
        shape = tuple(rng.integers(30, 90, 2))
        noise = [cv2.GaussianBlur(rng.standard_normal(shape), (0, 0), 2.0) for _ in range(4)]
        one, other, *ways = [(blurred / blurred.std()).astype(np.float32) for blurred in noise]
        mask = (one > -0.4).astype(np.uint8)
        centre = None if turn % 3 == 0 else np.stack(ways) * np.float32(8)
        total += check(mask, other, centre)
    instances, without_path = total
    assert instances > 100
    assert without_path > 100


@pytest.mark.skipif(not REAL_DATA.exists(), reason=f"no real data at {REAL_DATA}")
def test_real_nuclei_are_divided_as_by_the_others() -> None:
    """The true nuclei of some images, with what a network that sees them blurred would say."""
    total = np.zeros(2, int)
    for path in sorted((REAL_DATA / "instances").iterdir())[::60]:
        truth = read_picture(path)[:400, :400].astype(np.int32)
        mask = (truth > 0).astype(np.uint8)
        distance, centre = np.zeros(truth.shape), np.zeros((2, *truth.shape))
        for number, window in enumerate(ndimage.find_objects(truth), start=1):
            if window is None:
                continue
            inside = np.pad(truth[window] == number, 1)
            depth = cv2.distanceTransform(inside.astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
            at = np.nonzero(inside[1:-1, 1:-1])
            distance[window][at] = depth[at] / depth.max()
            for axis, along in enumerate(at):
                centre[axis][window][at] = along.mean() - along
        blurred = cv2.GaussianBlur(distance, (0, 0), 1.0).astype(np.float32)
        total += check(mask, blurred, centre.astype(np.float32))
    assert total[0] > 200


def test_a_hole_is_filled_within_one_instance_and_kept_between_two() -> None:
    mask = np.zeros((12, 26), np.uint8)
    mask[2:10, 2:24] = 1
    distance = np.zeros(mask.shape, np.float32)
    distance[4:8, 4:8] = distance[4:8, 18:22] = 1
    mask[3, 3] = mask[5, 12:14] = 0  # the division is at column 13
    found, count = label_components(mask)
    divide_components(found, count, distance, marker_distance=0.5, centre=None, marker_area=1)
    assert found[3, 3] == found[3, 4] > 0
    assert (found[5, 12:14] == 0).all()
    assert len(np.unique(found)) == 3
    np.testing.assert_array_equal(found > 0, (mask > 0) | (np.indices(mask.shape) == 3).all(0))
