"""Touching nuclei are told apart by the distance to their border and the way to their centre."""

from typing import Any

import cv2
import numpy as np
import pytest
import torch
from skimage.measure import label

from resunet_ray.config import InstanceConfig
from resunet_ray.config.model import Head
from resunet_ray.model.heads import activate, unflip
from resunet_ray.model.instances import find_instances
from resunet_ray.model.prediction import Prediction, count_outputs, slice_head

HEADS: tuple[Head, ...] = ("distance", "centre")
CONFIG = InstanceConfig(method="distance", marker_distance=0.4, marker_area=4)


def predict_truth(labels: np.ndarray) -> Prediction:
    """What a perfect network would say of these nuclei."""
    maps = np.zeros((4, *labels.shape), np.float32)
    for number in range(1, labels.max() + 1):
        inside = labels == number
        rows, columns = np.nonzero(inside)
        distance = cv2.distanceTransform(inside.astype(np.uint8), cv2.DIST_L2, 5)[inside]
        maps[0, inside], maps[1, inside] = 1, distance / distance.max()
        maps[2, inside], maps[3, inside] = rows.mean() - rows, columns.mean() - columns
    return Prediction(maps, HEADS)


def draw_discs(*discs: tuple[int, int, int]) -> np.ndarray:
    """Discs (row, column, radius), of which later ones lie below earlier ones."""
    labels = np.zeros((90, 130), np.int32)
    for number, (row, column, radius) in reversed(list(enumerate(discs, start=1))):
        cv2.circle(labels, (column, row), radius, number, -1)
    return labels


def test_discs_that_touch_are_told_apart_along_their_border() -> None:
    truth = draw_discs((40, 30, 16), (40, 58, 14), (62, 46, 12), (20, 100, 10))
    found = find_instances(predict_truth(truth), config=CONFIG)
    assert found.max() == 4
    np.testing.assert_array_equal(found > 0, truth > 0)
    agree = [
        (truth[found == number] == np.bincount(truth[found == number]).argmax()).mean()
        for number in range(1, 5)
    ]
    assert min(agree) > 0.99, "each pixel belongs to the nucleus whose centre it sees"


def test_without_ways_to_the_centre_a_pixel_belongs_to_the_nearest_marker() -> None:
    truth = draw_discs((40, 30, 16), (40, 60, 16))
    maps = predict_truth(truth).maps[:2]
    found = find_instances(Prediction(maps, ("distance",)), config=CONFIG)
    assert found.max() == 2
    np.testing.assert_array_equal(found > 0, truth > 0)
    assert (found == found[40, 30]).sum() == pytest.approx((found == found[40, 60]).sum(), rel=0.1)


def test_a_component_without_marker_is_one_nucleus_and_a_small_one_is_dropped() -> None:
    maps = np.zeros((4, 40, 50), np.float32)
    maps[0, 5:15, 5:25] = 1
    maps[0, 30:32, 30:32] = 1
    config = InstanceConfig(method="distance", min_area=5)
    found = find_instances(Prediction(maps, HEADS), config=config)
    assert np.bincount(found.ravel()).tolist() == [40 * 50 - 200, 200]


@pytest.mark.parametrize("method", ["components", "watershed", "distance"])
def test_how_small_an_instance_may_be_depends_on_the_size_of_nuclei(method: Any) -> None:
    """Two discs of 13 pixels; the network expects nuclei of 28 at one, of others at the other."""
    mask = (draw_discs((20, 20, 2), (60, 90, 2)) > 0).astype(np.float32)
    area = int(mask.sum()) // 2
    heads: tuple[Head, ...] = ("distance", "diameter")
    for diameter, min_area, expected in ((6.5, 200, 2), (9, area, 2), (9, area + 1, 1), (20, 0, 1)):
        sizes = np.full(mask.shape, diameter, np.float32)
        sizes[:, :50] = 6
        prediction = Prediction(np.stack([mask, mask, sizes]), heads)
        config = InstanceConfig(method=method, min_area=min_area)
        found = find_instances(prediction, config=config)
        assert found.max() == expected, (diameter, min_area)
        assert found[20, 20] == 1
    without = Prediction(prediction.maps[:2], ("distance",))
    config = InstanceConfig(method=method, min_area=area + 1)
    assert find_instances(without, config=config).max() == 0, "nothing says how large nuclei are"


@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_predicted_a_nucleus_is_one_piece_without_holes(seed: int) -> None:
    """Noise, smoothed: far from anything that a network would say."""
    rng = np.random.default_rng(seed)
    noise = [cv2.GaussianBlur(rng.standard_normal((120, 150)), (0, 0), 2.5) for _ in range(4)]
    maps = np.stack([channel / channel.std() for channel in noise]).astype(np.float32)
    maps[0], maps[1] = maps[0] > -0.3, maps[1] * 0.5
    maps[2:] *= 15
    found = find_instances(Prediction(maps, HEADS), config=CONFIG)
    assert found.max() > 10
    for number in range(1, found.max() + 1):
        assert label(found == number, connectivity=1).max() == 1, "in one piece"
    for hole in range(1, label(found == 0, connectivity=2).max() + 1):
        place = label(found == 0, connectivity=2) == hole
        around = found[cv2.dilate(place.astype(np.uint8), np.ones((3, 3))) > place]
        open_ = place[[0, -1]].any() or place[:, [0, -1]].any()
        assert open_ or len(set(around[around > 0])) > 1, "a hole lies within one nucleus"


def test_outputs_become_probability_distance_and_pixels() -> None:
    logits = torch.tensor([0.0, 0.0, 0.5, -0.25]).view(1, 4, 1, 1)
    maps = activate(logits, heads=HEADS)[0, :, 0, 0]
    assert maps.tolist() == [0.5, 0.5, 8.0, -4.0]
    sizes = torch.tensor([0.0, 0.0, 0.25]).view(1, 3, 1, 1)
    maps = activate(sizes, heads=("distance", "diameter"))
    assert maps[0, 2].item() == 32, "a quarter of four octaves above 16 pixels"
    absurd = Prediction(activate(sizes + 100, heads=("distance", "diameter"))[0].numpy())
    assert np.isfinite(absurd.maps.astype(np.float16)).all(), "it can be packed"
    assert count_outputs(()) == 1
    assert count_outputs(HEADS) == 4
    assert slice_head(HEADS, "centre") == slice(2, 4)


@pytest.mark.parametrize("dims", [(), (2,), (3,), (2, 3)])
def test_the_prediction_of_a_mirrored_image_is_mirrored_back(dims: tuple[int, ...]) -> None:
    """A perfect network's maps of mirrored nuclei, mirrored back, are its maps of the nuclei."""
    truth = draw_discs((40, 30, 16), (30, 70, 9))
    mirrored = np.flip(truth, tuple(axis - 2 for axis in dims))
    maps = torch.from_numpy(predict_truth(np.ascontiguousarray(mirrored)).maps)[None]
    back = unflip(maps, dims=dims, heads=HEADS)[0].numpy()
    np.testing.assert_allclose(back, predict_truth(truth).maps, atol=1e-3)
