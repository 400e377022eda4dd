"""8 bits: what is measured, what is rounded, and that OpenVINO computes it like torch."""

from typing import Literal

import numpy as np
import pytest
import torch
from torch import nn

from resunet_ray.config import ModelConfig
from resunet_ray.model.openvino import OpenVinoNetwork
from resunet_ray.model.quantization import measure_ranges, quantize_network
from resunet_ray.model.resunet import build_network


def test_ranges_are_the_mean_extremes_of_inputs_and_hold_zero() -> None:
    """A 1×1 convolution doubles the image's channels, another sees the result."""
    first, second = nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(4, 1, 1)
    nn.init.constant_(first.weight, 2.0)
    network = nn.Sequential(first, second).eval()
    images = [torch.full((1, 3, 2, 2), level) for level in (0.5, 1.0)]  # 3 and 6 after the first
    found = measure_ranges(network, lambda: [network(image) for image in images], channels=3)
    assert found == {"1": (0.0, 4.5)}
    below = torch.full((1, 3, 2, 2), -0.5)
    found = measure_ranges(network, lambda: network(below), channels=3)
    assert found == {"1": (-3.0, 0.0)}
    assert not second._forward_pre_hooks, "nothing stays on the network"


def test_inputs_have_256_levels_and_weights_127_of_each_filter() -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(2, 3, 3, bias=False)
    network = nn.Sequential(nn.Identity(), convolution).eval()
    with torch.no_grad():
        convolution.weight[1] *= 100
    quantized = quantize_network(network, {"1": (-1.0, 3.0)})
    step = 4 / 255
    x = torch.rand((1, 2, 8, 8)) * 6 - 2
    zero = round(1 / step)  # the level of 0
    levels = (x / step).round().clamp(-zero, 255 - zero) * step
    scale = convolution.weight.detach().abs().amax(dim=(1, 2, 3), keepdim=True) / 63
    weights = (convolution.weight.detach() / scale).round() * scale
    expected = nn.functional.conv2d(levels, weights)
    with torch.inference_mode():
        torch.testing.assert_close(quantized(x), expected, atol=1e-3, rtol=1e-4)
        assert not torch.allclose(network(x), expected, atol=1e-3)


@pytest.mark.parametrize("channels", [1, 3])
def test_openvino_computes_in_int8_what_torch_rounds(channels: Literal[1, 3]) -> None:
    """On any processor: without VNNI, sums of products must not overflow."""
    torch.manual_seed(0)
    config = ModelConfig(widths=(16, 32, 48), in_channels=channels, heads=("distance", "centre"))
    network = build_network(config).eval()
    rng = np.random.default_rng(0)
    images = [torch.from_numpy(rng.random((1, channels, 64, 48), np.float32)) for _ in range(3)]
    with torch.inference_mode():
        ranges = measure_ranges(network, lambda: [network(x) for x in images], channels=channels)
    convolutions = {name for name, it in network.named_modules() if isinstance(it, nn.Conv2d)}
    assert convolutions - ranges.keys() == {"stem.body.0", "stem.shortcut.0"}
    engine = OpenVinoNetwork(network, channels=channels, streams=1, ranges=ranges)
    quantized = quantize_network(network, ranges)
    with torch.inference_mode():
        for x in images:
            exact, rounded, found = network(x), quantized(x), engine(x, dtype=torch.int8)
            error = (rounded - exact).abs().mean()
            assert 0 < error < 0.1 * exact.abs().mean()
            # Another level may be chosen where a value is halfway between two.
            assert (found - rounded).abs().mean() < error
            assert (found - exact).abs().mean() < 2 * error
