"""The network is exactly the baseline's."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from resunet_ray.config import ModelConfig
from resunet_ray.model.resunet import ResUNet, build_network


def reference() -> ResUNet:
    """Build the reference network with random normalisation, so that no term is 1 or 0."""
    torch.manual_seed(0)
    network = build_network(ModelConfig(norm_momentum=0.01))
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and tensor.ndim == 1:
            if "var" in name or "weight" in name:
                tensor.uniform_(0.5, 1.5)
            else:
                tensor.normal_(0, 0.3)
    return network.eval()


def test_the_network_has_the_parameters_of_the_baseline() -> None:
    network = build_network(ModelConfig())
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == 4_713_841
    convolutions = [module for module in network.modules() if isinstance(module, torch.nn.Conv2d)]
    assert all(module.bias is not None for module in convolutions)
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert {module.eps for module in norms} == {1e-3}


def test_every_level_has_the_shape_of_the_baseline() -> None:
    network, shapes = reference(), []
    for module in [network.stem, *network.encoder, network.bridge, *network.decoder, network.head]:
        module.register_forward_hook(
            lambda _module, _input, output: shapes.append(tuple(output.shape[1:]))
        )
    network(torch.zeros(1, 3, 64, 96))
    assert shapes == [
        (16, 64, 96), (32, 32, 48), (64, 16, 24), (128, 8, 12), (256, 4, 6), (256, 4, 6),
        (256, 8, 12), (128, 16, 24), (64, 32, 48), (32, 64, 96), (1, 64, 96),
    ]  # fmt: skip


def test_output_equals_a_step_by_step_computation_with_the_same_weights() -> None:
    """Logits equal the baseline's Keras code, written out line by line in float64.

    A convolution is a sum over shifted windows.
    """
    network = reference()
    state = {name: tensor.double() for name, tensor in network.state_dict().items()}

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        size = weight.shape[-1]
        height, width = -(-x.shape[2] // stride), -(-x.shape[3] // stride)
        # Keras's "same" splits the padding between both ends; an odd pixel goes to the later one.
        tall = max((height - 1) * stride + size - x.shape[2], 0)
        wide = max((width - 1) * stride + size - x.shape[3], 0)
        x = functional.pad(x, (wide // 2, -(-wide // 2), tall // 2, -(-tall // 2)))
        total: Tensor = bias.view(1, -1, 1, 1).expand(x.shape[0], -1, height, width).clone()
        for row in range(size):
            for column in range(size):
                rows = slice(row, row + (height - 1) * stride + 1, stride)
                columns = slice(column, column + (width - 1) * stride + 1, stride)
                window = x[:, :, rows, columns]
                total += torch.einsum("oi,nihw->nohw", weight[:, :, row, column], window)
        return total

    def norm(x: Tensor, name: str) -> Tensor:
        mean, variance, gamma, beta = (
            state[f"{name}.{part}"].view(1, -1, 1, 1)
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        scaled = gamma * (x - mean) / (variance + 1e-3).sqrt()
        shifted: Tensor = scaled + beta
        return shifted

    def conv_block(x: Tensor, name: str, stride: int = 1) -> Tensor:
        return conv(norm(x, f"{name}.0").clamp(min=0), f"{name}.2", stride)

    def residual_block(x: Tensor, name: str, stride: int = 1) -> Tensor:
        result = conv_block(conv_block(x, f"{name}.body.0", stride), f"{name}.body.1")
        return result + conv(x, f"{name}.shortcut", stride)

    x = torch.rand(2, 3, 32, 48, dtype=torch.float64)
    skips = [
        conv_block(conv(x, "stem.body.0"), "stem.body.1")
        + norm(conv(x, "stem.shortcut.0"), "stem.shortcut.1")
    ]
    for level in range(4):
        skips.append(residual_block(skips[-1], f"encoder.{level}", stride=2))
    y = conv_block(conv_block(skips.pop(), "bridge.0"), "bridge.1")
    for level in range(4):
        y = y.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        y = residual_block(torch.cat((y, skips.pop()), dim=1), f"decoder.{level}")
    expected = conv(y, "head")
    with torch.inference_mode():
        torch.testing.assert_close(network.double()(x), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (17, 33), (64, 50), (31, 100)])
def test_output_has_the_height_and_width_of_the_input(height: int, width: int) -> None:
    network = build_network(ModelConfig(widths=(16, 32))).eval()
    with torch.inference_mode():
        assert network(torch.rand(2, 3, height, width)).shape == (2, 1, height, width)


def test_the_network_pads_by_repeating_the_last_pixels() -> None:
    network = reference()
    x = torch.rand(1, 3, 50, 70)
    padded = functional.pad(x, (0, 10, 0, 14), mode="replicate")
    with torch.inference_mode():
        torch.testing.assert_close(network(x), network(padded)[..., :50, :70])
