"""Measures equal those of an independent implementation; a polygon covers its pixels exactly."""

from typing import Literal

import cv2
import numpy as np
import pytest
import shapely
from skimage.measure import regionprops

from resunet_ray.config import InstanceConfig
from resunet_ray.data.images import decode_stored
from resunet_ray.data.labels import Truth
from resunet_ray.data.synthetic import generate_image
from resunet_ray.model.instances import find_instances
from resunet_ray.model.measures import measure_instances
from resunet_ray.model.prediction import Prediction
from resunet_ray.records import flatten
from resunet_ray.segment.work.region import describe_image


def sample() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    image, labels = generate_image(
        120, 170, modality="stained", num_nuclei=40, rng=np.random.default_rng(4)
    )
    truth = (labels > 0).astype(np.uint8)
    return image, truth, cv2.GaussianBlur(truth.astype(np.float32), (0, 0), 1.5)


@pytest.mark.parametrize("method", ["components", "watershed"])
def test_measures_equal_an_independent_computation(
    method: Literal["components", "watershed"],
) -> None:
    _, _, probability = sample()
    labels = find_instances(
        Prediction(probability[None]), config=InstanceConfig(method=method, min_distance=3)
    )
    expected = regionprops(labels, intensity_image=probability)
    found = measure_instances(labels, probability).to_pylist()
    assert len(found) == len(expected) > 10
    for row, region in zip(found, expected, strict=True):
        assert row["area_px"] == region.area
        assert (row["centroid_y"] - 0.5, row["centroid_x"] - 0.5) == pytest.approx(region.centroid)
        assert row["score"] == pytest.approx(region.intensity_mean, abs=1e-6)
        assert row["eccentricity"] == pytest.approx(region.eccentricity, abs=0.02)
        low_y, low_x, high_y, high_x = region.bbox
        assert row["touches_edge"] == (low_y == 0 or low_x == 0 or high_y == 120 or high_x == 170)


def test_a_polygon_covers_its_pixels_and_no_others() -> None:
    _, _, probability = sample()
    labels = find_instances(Prediction(probability[None]), config=InstanceConfig())
    labels[labels == 1] = 0  # what remains is numbered from 1
    labels[labels > 0] -= 1
    polygons = shapely.from_wkb(measure_instances(labels, probability).field("polygon").to_pylist())
    assert shapely.is_valid(polygons).all()
    rows, columns = np.indices(labels.shape)
    for number, polygon in enumerate(polygons, start=1):
        inside = shapely.contains_xy(polygon, columns + 0.5, rows + 0.5)
        np.testing.assert_array_equal(inside, labels == number)


def test_measures_do_not_depend_on_the_window() -> None:
    """To the last bit, as regions of a slide see the same nuclei in windows of their own."""
    _, _, probability = sample()
    labels = find_instances(Prediction(probability[None]), config=InstanceConfig())
    wanted = measure_instances(labels, probability, corner=(1000, 2003))
    found = measure_instances(
        np.pad(labels, ((13, 5), (7, 0))),
        np.pad(probability, ((13, 5), (7, 0))),
        corner=(1000 - 13, 2003 - 7),
        bounds=(1120, 2173),
    )
    assert len(found) > 10
    for name in ("centroid_y", "centroid_x", "area_px", "perimeter_px", "eccentricity", "polygon"):
        assert found.field(name).equals(wanted.field(name)), name


def test_a_perimeter_is_about_that_of_the_shape() -> None:
    """A disc with a hole: both circles count."""
    ring = np.zeros((80, 90), np.int32)
    cv2.circle(ring, (45, 40), 30, 1, -1)
    cv2.circle(ring, (45, 40), 10, 0, -1)
    (row,) = measure_instances(ring, ring.astype(np.float32)).to_pylist()
    assert row["perimeter_px"] == pytest.approx(2 * np.pi * (30.5 + 10.5), rel=0.08)
    (square,) = measure_instances(
        np.pad(np.ones((7, 9), np.int32), 3), np.ones((13, 15), np.float32)
    ).to_pylist()
    assert square["perimeter_px"] == pytest.approx(32, abs=2.5)


def test_the_sums_say_how_sure_and_how_sharp() -> None:
    image, truth, probability = sample()
    findings = describe_image(
        Prediction(probability[None]),
        image,
        config=InstanceConfig(),
        name="a",
        truth=Truth(truth, None),
        labels=True,
        probabilities=True,
    )
    row = flatten(findings)
    mask = decode_stored(row["mask"])
    assert set(np.unique(mask)) == {0, 255}
    np.testing.assert_array_equal(mask > 0, probability >= 0.5)
    assert decode_stored(row["labels"]).max() == row["num_instances"] == len(row["instances"])
    np.testing.assert_allclose(decode_stored(row["probability"]) / 255, probability, atol=0.003)
    assert row["foreground_pixels"] == (mask > 0).sum() == row["tp"] + row["fp"]
    assert row["confidence_sum"] / row["pixels"] == pytest.approx(
        np.maximum(probability, 1 - probability).mean(), abs=0.003
    )
    assert row["uncertain_pixels"] == pytest.approx(
        ((probability > 0.25) & (probability < 0.75)).sum(), rel=0.03
    )
    blurred = describe_image(
        Prediction(probability[None]),
        cv2.GaussianBlur(image, (0, 0), 3),
        config=InstanceConfig(),
        name="a",
    )
    assert blurred.sums.laplacian_square_sum < row["laplacian_square_sum"] / 5


def test_nothing_found_is_a_row_all_the_same() -> None:
    image, _, probability = sample()
    row = flatten(
        describe_image(
            Prediction(np.zeros_like(probability)[None]), image, config=InstanceConfig(), name="a"
        )
    )
    assert (row["num_instances"], len(row["instances"]), row["foreground_pixels"]) == (
        0,
        0,
        0,
    )
