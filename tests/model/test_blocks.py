"""Each block and each bridge computes what its source defines, and has as many parameters."""

import itertools
from collections.abc import Iterator

import pytest
import torch
from benchmarks.network import count_macs
from torch import Tensor, nn

from resunet_ray.config import ModelConfig
from resunet_ray.config.model import Block, Bridge
from resunet_ray.model.blocks import AtrousBlock, DenseBlock, PyramidPooling
from resunet_ray.model.resunet import build_network

VARIANTS: list[tuple[Block, Bridge]] = list(
    itertools.product(("residual", "dense", "atrous"), ("plain", "psp"))
)
Layer = tuple[int, int, int, int]
"""A convolution: channels in and out, side of the kernel, level; a normalisation has side 0."""


def norm_conv(before: int, after: int, size: int, level: int) -> list[Layer]:
    return [(before, before, 0, level), (before, after, size, level)]


def list_block(block: Block, before: int, after: int, level: int) -> Iterator[Layer]:
    """List the layers of a block as its paper does."""
    if block == "residual":
        yield (before, after, 1, level)
        yield from norm_conv(before, after, 3, level) + norm_conv(after, after, 3, level)
    elif block == "dense":
        growth = {16: 16, 32: 16, 64: 16, 128: 32, 256: 64}[after]
        for _ in range(4):
            yield from norm_conv(before, growth, 3, level)
            before += growth
        yield from norm_conv(before, after, 1, level)
    else:
        yield (before, after, 1, level)
        for _ in range(2 * [4, 4, 3, 3, 1][level]):
            yield from norm_conv(after, after, 3, level)


def list_layers(block: Block, bridge: Bridge) -> Iterator[Layer]:
    """List the layers of the network with the default widths."""
    if block == "residual":
        yield from [(3, 16, 3, 0), *norm_conv(16, 16, 3, 0), (3, 16, 1, 0), (16, 16, 0, 0)]
    elif block == "dense":
        yield (3, 16, 3, 0)
        yield from list_block(block, 16, 16, 0)
    else:
        yield from list_block(block, 3, 16, 0)
    for level, (before, after) in enumerate([(16, 32), (32, 64), (64, 128), (128, 256)], 1):
        yield from list_block(block, before, after, level)
    if bridge == "plain":
        yield from norm_conv(256, 256, 3, 4) * 2
    else:
        # A pooled map is a cell, 2×2, 4×4 or 8×8 of the deepest level's 16×16: log2 of their ratio.
        yield from [(256, 64, 1, level) for level in (8, 7, 6, 5)]
        yield (512, 256, 1, 4)
    for level, (before, after) in zip(
        (3, 2, 1, 0), [(384, 256), (320, 128), (160, 64), (80, 32)], strict=True
    ):
        yield from list_block(block, before, after, level)
    yield (32, 1, 1, 0)


@pytest.mark.parametrize(("block", "bridge"), VARIANTS)
def test_parameters_and_work_follow_from_the_list_of_layers(block: Block, bridge: Bridge) -> None:
    layers = list(list_layers(block, bridge))
    with torch.device("meta"):
        network = build_network(ModelConfig(block=block, bridge=bridge))
    assert sum(p.numel() for p in network.parameters()) == sum(
        before * after * size**2 + after if size else 2 * before
        for before, after, size, _ in layers
    )
    macs = sum(
        before * after * size**2 * (256 // 2**level) ** 2 for before, after, size, level in layers
    )
    assert count_macs(network, torch.zeros(1, 3, 256, 256, device="meta")) == macs


@pytest.mark.parametrize(
    ("block", "bridge"), [("residual", "psp"), ("dense", "psp"), ("atrous", "plain")]
)
def test_every_network_trains_in_bfloat16_and_keeps_odd_sizes(block: Block, bridge: Bridge) -> None:
    """In channels-last memory, where PyTorch crashes for some numbers of channels."""
    torch.manual_seed(0)
    network = build_network(ModelConfig(widths=(16, 48), block=block, bridge=bridge))
    x = torch.rand(2, 3, 17, 38).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        y = network(x)
    y.float().square().sum().backward()
    assert y.shape == (2, 1, 17, 38)
    gradients = {name: p.grad for name, p in network.named_parameters()}
    assert not [name for name, gradient in gradients.items() if gradient is None]
    weights = {name: g for name, g in gradients.items() if g is not None and g.ndim > 1}
    assert all(gradient.abs().sum() > 0 for gradient in weights.values())
    network.eval()
    for height, width in ((1, 1), (31, 5)):
        with torch.inference_mode():
            assert network(torch.rand(1, 3, height, width)).shape == (1, 1, height, width)


def randomise(module: nn.Module) -> nn.Module:
    """Fill weights and statistics, so that no term is 1 or 0."""
    torch.manual_seed(0)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5) if "var" in name else tensor.normal_(0, 0.3)
    return module.double().eval()


def convolve(layer: nn.Module, x: Tensor, rate: int = 1) -> Tensor:
    """Sum shifted copies of the image, padded with zeros, times the layer's weights."""
    assert isinstance(layer, nn.Conv2d)
    weight, (height, width) = layer.weight, x.shape[2:]
    reach = weight.shape[-1] // 2
    padded = nn.functional.pad(x, (rate * reach,) * 4)
    assert layer.bias is not None
    total: Tensor = layer.bias.view(1, -1, 1, 1).expand(len(x), -1, height, width)
    for row, column in itertools.product(range(2 * reach + 1), repeat=2):
        window = padded[:, :, rate * row : rate * row + height, rate * column :][..., :width]
        total = total + torch.einsum("oi,nihw->nohw", weight[:, :, row, column], window)
    return total


def norm_relu_convolve(layers: nn.Module, x: Tensor, rate: int = 1) -> Tensor:
    assert isinstance(layers, nn.Sequential)
    norm, _, layer = layers
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean, variance, gamma, beta = (
        value.view(1, -1, 1, 1)
        for value in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    return convolve(
        layer, (gamma * (x - mean) / (variance + 1e-3).sqrt() + beta).clamp(min=0), rate
    )


def norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


def test_a_dense_block_shows_each_convolution_all_maps_before_it() -> None:
    block = randomise(DenseBlock(8, 32, stride=2, norm=norm))
    assert isinstance(block, DenseBlock)
    x = torch.rand(2, 8, 6, 10, dtype=torch.float64)
    halved = (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
    maps = [halved]
    for layer in block.layers:
        maps.append(norm_relu_convolve(layer, torch.cat(maps, dim=1)))
    assert [part.shape[1] for part in maps] == [8, 16, 16, 16, 16]
    expected = norm_relu_convolve(block.transition, torch.cat(maps, dim=1))
    torch.testing.assert_close(block(x), expected)


def test_an_atrous_block_sums_its_dilations_and_its_shortcut() -> None:
    block = randomise(AtrousBlock(8, 16, dilations=(1, 3, 15), stride=2, norm=norm))
    assert isinstance(block, AtrousBlock)
    x = torch.rand(2, 8, 40, 36, dtype=torch.float64)
    start = convolve(block.shortcut, x[..., ::2, ::2])
    expected = start
    for rate, branch in zip((1, 3, 15), block.branches, strict=True):
        assert isinstance(branch, nn.Sequential)
        first, second = branch
        expected = expected + norm_relu_convolve(
            second, norm_relu_convolve(first, start, rate), rate
        )
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize(
    ("height", "width", "sides"), [(8, 16, (1, 2, 4, 8)), (2, 2, (1, 2, 2, 2))]
)
def test_the_pyramid_holds_the_maximum_of_each_cell(
    height: int, width: int, sides: tuple[int, ...]
) -> None:
    bridge = randomise(PyramidPooling(64))
    assert isinstance(bridge, PyramidPooling)
    x = torch.rand(2, 64, height, width, dtype=torch.float64)
    maps = [x]
    for side, branch in zip(sides, bridge.branches, strict=True):
        cells = x.reshape(2, 64, side, height // side, side, width // side).amax(dim=(3, 5))
        small = convolve(branch, cells)
        large = small.repeat_interleave(height // side, dim=2)
        maps.append(large.repeat_interleave(width // side, dim=3))
    expected = convolve(bridge.merge, torch.cat(maps, dim=1))
    torch.testing.assert_close(bridge(x), expected)
