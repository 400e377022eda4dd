"""Tiling gives the same probabilities as the whole image, and shows no seams."""

from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from resunet_ray.config import ModelConfig, PreprocessConfig
from resunet_ray.model.connected import label_components
from resunet_ray.model.heads import CENTRE_UNIT
from resunet_ray.model.inference import predict
from resunet_ray.model.instances import threshold_mask
from resunet_ray.model.preprocess import preprocess
from resunet_ray.model.resunet import build_network
from resunet_ray.model.tiling import blend_weights, plan_tiles

CPU = torch.device("cpu")


class Red(nn.Module):
    """A network whose logit is a function of each pixel alone."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :1] * 6 - 3


def run(
    network: nn.Module, *images: np.ndarray, flips: bool = False, **config: Any
) -> list[np.ndarray]:
    found = predict(
        network.eval(),
        list(images),
        config=PreprocessConfig(**config),
        channels=3,
        heads=(),
        device=CPU,
        dtype=None,
        batch_size=3,
        flips=flips,
    )
    return [prediction.probability for prediction in found]


@pytest.mark.parametrize(("height", "width"), [(100, 130), (64, 65), (33, 200), (63, 20)])
def test_weights_of_overlapping_tiles_sum_to_one(height: int, width: int) -> None:
    total = np.zeros((height, width))
    for tile in plan_tiles(height, width, tile=64, context=8):
        assert max(tile.shape) <= 64
        total[tile.window] += np.outer(*blend_weights(tile, height=height, width=width, context=8))
    np.testing.assert_allclose(total, 1, atol=1e-6)


def test_tiles_of_small_and_large_images_lie_on_one_grid() -> None:
    small = {(tile.top, tile.left) for tile in plan_tiles(100, 130, tile=64, context=8)}
    large = {(tile.top, tile.left) for tile in plan_tiles(300, 400, tile=64, context=8)}
    assert small <= large


def test_tiling_and_batching_change_nothing_if_the_context_is_sufficient() -> None:
    rng = np.random.default_rng(0)
    images = [
        rng.integers(0, 256, shape, dtype=np.uint8)
        for shape in ((100, 130, 3), (64, 48, 3), (64, 48, 3), (10, 90, 3))
    ]
    for image, probability in zip(images, run(Red(), *images, tile=64, context=8), strict=True):
        expected = 1 / (1 + np.exp(3 - image[..., 0] / 255 * 6))
        np.testing.assert_allclose(probability, expected, atol=1e-5)


def test_a_real_network_shows_no_seam() -> None:
    torch.manual_seed(1)
    network = build_network(ModelConfig(widths=(16, 32)))
    noise = np.random.default_rng(0).integers(0, 256, (200, 168, 3), dtype=np.uint8)
    image = cv2.GaussianBlur(noise, (0, 0), 3)
    (whole,) = run(network, image, tile=512, context=32)
    (tiled,) = run(network, image, tile=96, context=24)
    assert np.abs(whole - tiled).max() < 0.02
    edge = np.abs(np.diff(tiled, axis=1)).max()
    assert edge < 1.5 * np.abs(np.diff(whole, axis=1)).max()


def test_probabilities_of_resized_images_have_the_original_size() -> None:
    ramp = np.linspace(0, 255, 90).astype(np.uint8)
    image = np.tile(ramp[None, :, None], (60, 1, 3))
    (probability,) = run(Red(), image, resize=32)
    assert probability.shape == (60, 90)
    assert np.abs(probability - 1 / (1 + np.exp(3 - image[..., 0] / 255 * 6))).max() < 0.05


def test_ways_to_a_centre_grow_with_a_resized_image() -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ones_like(x)

    (found,) = predict(
        Constant(), [np.zeros((64, 96, 3), np.uint8)], config=PreprocessConfig(resize=32),
        channels=3, heads=("centre",), device=CPU, dtype=None, batch_size=1,
    )  # fmt: skip
    assert found.centre is not None
    assert found.centre[:, 5, 7].tolist() == [2 * CENTRE_UNIT, 3 * CENTRE_UNIT]


def test_flips_make_the_result_equivariant() -> None:
    torch.manual_seed(2)
    network = build_network(ModelConfig(widths=(16, 32)))
    image = np.random.default_rng(3).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    (one,) = run(network, image, flips=True)
    (mirrored,) = run(network, image[:, ::-1].copy(), flips=True)
    np.testing.assert_allclose(one, mirrored[:, ::-1], atol=1e-5)
    (plain,) = run(network, image)
    assert np.abs(plain - one).max() > 1e-4


def test_preprocess_scales_to_one_and_computes_luminance() -> None:
    pixels = torch.tensor([255, 0, 0], dtype=torch.uint8).expand(1, 4, 6, 3)
    assert preprocess(pixels, channels=3)[0, :, 0, 0].tolist() == [1, 0, 0]
    assert preprocess(pixels, channels=1).shape == (1, 1, 4, 6)
    assert float(preprocess(pixels, channels=1)[0, 0, 0, 0]) == pytest.approx(0.299)


def test_nuclei_that_touch_only_at_a_corner_stay_separate() -> None:
    mask = np.zeros((8, 12), np.uint8)
    mask[0:2, 0:3] = 1
    mask[2:4, 3:5] = 1  # touches the first only at a corner
    mask[6, 8] = 1
    labels, _ = label_components(mask)
    assert sorted(np.bincount(labels.ravel())[1:].tolist()) == [1, 4, 6]
    probability = np.array([[0.49, 0.5, 0.51]], np.float32)
    assert threshold_mask(probability, threshold=0.5).tolist() == [[0, 1, 1]]
