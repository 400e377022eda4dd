"""Quantization: the network in 8 bits, which CPUs compute nearly twice as fast.

Inputs of convolutions are rounded to 256 steps of their usual range, weights to 127 steps of their
filter's (Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", 2018). Convolutions of the image itself are not: they take
little time.
"""

import copy
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from resunet_ray.config import ModelConfig

_LARGEST_WEIGHT = 63
"""Of 127: processors without VNNI add two products in 16 bits, where 2 × 255 × 127 overflows."""

Ranges = dict[str, tuple[float, float]]
"""What the inputs of each convolution lie between, by its name in the network."""
Model = TypeVar("Model", bound=nn.Module)


def can_quantize(model: ModelConfig) -> bool:
    """Whether OpenVINO computes a network in 8 bits as torch would: not with every block."""
    return model.block == "residual" and model.bridge == "plain"


def measure_ranges(network: nn.Module, compute: Callable[[], object], *, channels: int) -> Ranges:
    """Measure the inputs of convolutions: their lowest and highest values, averaged over calls.

    Args:
        network: in evaluation mode.
        compute: calls the network, at least once.
        channels: of the image.
    """
    extremes: dict[str, list[Float[Tensor, " two"]]] = defaultdict(list)

    def note(name: str, _: nn.Module, given: tuple[Tensor, ...]) -> None:
        extremes[name].append(torch.stack(given[0].aminmax()).cpu())

    hooks = [
        module.register_forward_pre_hook(partial(note, name))
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d) and module.in_channels != channels
    ]
    try:
        compute()
    finally:
        for hook in hooks:
            hook.remove()
    means = {name: torch.stack(found).mean(0).tolist() for name, found in extremes.items()}
    return {name: (min(low, 0.0), max(high, 0.0)) for name, (low, high) in means.items()}


def quantize_network(network: Model, ranges: Ranges) -> Model:
    """Return a copy in which the convolutions that `ranges` names compute in 8 bits.

    torch computes the same in floating point, slowly; OpenVINO turns it into integers.
    """
    quantized = copy.deepcopy(network)
    for name, (low, high) in ranges.items():
        if low == high:
            continue
        convolution = quantized.get_submodule(name)
        convolution.register_forward_pre_hook(partial(_quantize_input, low, high))
        weights = _QuantizedWeights(convolution.get_parameter("weight"))
        parametrize.register_parametrization(convolution, "weight", weights)
    return quantized.eval()


def _quantize_input(
    low: float, high: float, _: nn.Module, given: tuple[Float[Tensor, "n c h w"]]
) -> tuple[Float[Tensor, "n c h w"]]:
    step = (high - low) / 255
    return (torch.fake_quantize_per_tensor_affine(given[0], step, round(-low / step), 0, 255),)


class _QuantizedWeights(nn.Module):
    def __init__(self, weights: Float[Tensor, "k c h w"]) -> None:
        super().__init__()
        largest = weights.detach().abs().amax(dim=(1, 2, 3))
        self.register_buffer("step", largest.clamp_min(1e-12) / _LARGEST_WEIGHT)
        self.register_buffer("zero", torch.zeros_like(largest, dtype=torch.int32))

    def forward(self, weights: Float[Tensor, "k c h w"]) -> Float[Tensor, "k c h w"]:
        step, zero = self.get_buffer("step"), self.get_buffer("zero")
        return torch.fake_quantize_per_channel_affine(weights, step, zero, 0, -127, 127)
