"""The blocks of the network: what a level computes, and what the bridge computes.

| block | a level | source |
|---|---|---|
| residual | two 3×3 convolutions plus a 1×1 shortcut | Zhang et al., 2018 |
| dense | four 3×3 convolutions, each of which sees the maps of all before it | Huang et al., 2017 |
| atrous | parallel pairs of 3×3 convolutions at several dilations | Diakogiannis et al., 2020 |

"Road Extraction by Deep Residual U-Net"; "Densely Connected Convolutional Networks"; "ResUNet-a"
(arXiv 1904.00592), which is also the source of the bridge `psp`.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from resunet_ray.config.model import Block, Bridge

Norm = Callable[[int], nn.BatchNorm2d]
"""Builds the normalisation of a number of channels."""

_DENSE_LAYERS = 4
"""Each adds a quarter of the filters: from 64 filters on, together as many as the level has."""
_DILATIONS = ((1, 3, 15, 31), (1, 3, 15, 31), (1, 3, 15), (1, 3, 15))
"""Of each level, finest first; deeper levels have (1,). As in ResUNet-a d6; its authors' code for
images of 256×256 pixels has 5 instead of 15 at the fourth level."""
_GRIDS = (1, 2, 4, 8)
"""Cells to a side of each pooled map, as in ResUNet-a."""


class SameConv(nn.Conv2d):
    """A convolution with Keras's "same" padding: stride 2 pads an even side only at its end.

    With PyTorch's own padding the image would be sampled half a stride earlier, and weights could
    not be shared with Keras.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 3,
        stride: int = 1,
        dilation: int = 1,
    ) -> None:
        padding = dilation * (kernel_size // 2) if stride == 1 else 0
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
        )

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k i j"]:
        """Convolve; at stride 2, height and width are halved, otherwise kept."""
        if self.stride[0] == 2 and self.kernel_size[0] == 3:
            x = functional.pad(x, (0, 1, 0, 1))
        return super().forward(x)


class ConvBlock(nn.Sequential):
    """Batch normalisation, ReLU, convolution: the pre-activation order."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 3,
        stride: int = 1,
        dilation: int = 1,
        norm: Norm,
    ) -> None:
        super().__init__(
            norm(in_channels),
            nn.ReLU(inplace=True),
            SameConv(
                in_channels,
                out_channels,
                kernel_size=kernel_size,
                stride=stride,
                dilation=dilation,
            ),
        )


class Stem(nn.Module):
    """The residual network's first level.

    A convolution and a convolution block, plus a normalised 1×1 shortcut.
    """

    def __init__(self, in_channels: int, out_channels: int, *, norm: Norm) -> None:
        super().__init__()
        self.body = nn.Sequential(
            SameConv(in_channels, out_channels),
            ConvBlock(out_channels, out_channels, norm=norm),
        )
        self.shortcut = nn.Sequential(
            SameConv(in_channels, out_channels, kernel_size=1),
            norm(out_channels),
        )

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k h w"]:
        """The sum of both paths."""
        return self.body(x) + self.shortcut(x)  # type: ignore[no-any-return]


class ResidualBlock(nn.Module):
    """Two convolution blocks plus a 1×1 shortcut; the first block and the shortcut are strided."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, norm: Norm) -> None:
        super().__init__()
        self.body = nn.Sequential(
            ConvBlock(in_channels, out_channels, stride=stride, norm=norm),
            ConvBlock(out_channels, out_channels, norm=norm),
        )
        self.shortcut = SameConv(in_channels, out_channels, kernel_size=1, stride=stride)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k i j"]:
        """The sum of both paths."""
        return self.body(x) + self.shortcut(x)  # type: ignore[no-any-return]


class DenseBlock(nn.Module):
    """Four convolution blocks that each add maps to all before, then a 1×1 transition.

    With c channels in, k out and growth g = `quarter(k)`, block l = 0 … 3 turns c + l·g maps into g
    further ones, and the transition turns c + 4·g into k. Parameters, normalisation included:

        Σ_l [(c + l·g)(9g + 2) + g] + (c + 4g)(k + 2) + k

    A stride of 2 is a 2×2 mean before the first block, as in DenseNet's transition.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, norm: Norm) -> None:
        super().__init__()
        growth = quarter(out_channels)
        self.pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.layers = nn.ModuleList(
            ConvBlock(in_channels + layer * growth, growth, norm=norm)
            for layer in range(_DENSE_LAYERS)
        )
        channels = in_channels + _DENSE_LAYERS * growth
        self.transition = ConvBlock(channels, out_channels, kernel_size=1, norm=norm)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k i j"]:
        """Return the transition of all maps."""
        x = self.pool(x)
        for layer in self.layers:
            x = torch.cat((x, layer(x)), dim=1)
        return self.transition(x)  # type: ignore[no-any-return]


class AtrousBlock(nn.Module):
    """A 1×1 convolution, plus one pair of convolution blocks on it for each dilation.

    The 1×1 convolution brings the maps to the level's filters and, with a stride of 2, to its
    resolution: in ResUNet-a it stands between the blocks. With c channels in, k out and d dilations
    there are (c + 1)·k + 2d·(9k + 3)·k parameters, normalisation included.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        dilations: tuple[int, ...],
        stride: int,
        norm: Norm,
    ) -> None:
        super().__init__()
        self.shortcut = SameConv(in_channels, out_channels, kernel_size=1, stride=stride)
        self.branches = nn.ModuleList(
            nn.Sequential(
                *(ConvBlock(out_channels, out_channels, dilation=rate, norm=norm) for _ in range(2))
            )
            for rate in dilations
        )

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k i j"]:
        """The sum of all paths."""
        x = self.shortcut(x)
        total = x
        for branch in self.branches:
            total = total + branch(x)
        return total


class PyramidPooling(nn.Module):
    """Maxima over the whole map, its quarters, 16ths and 64ths, beside the map itself.

    Each pooled map goes through a 1×1 convolution to q = `quarter(k)` of the k filters and is
    enlarged again; a last 1×1 convolution turns the k + 4q maps into k. There are
    4(k + 1)·q + (k + 4q + 1)·k parameters. A side that the grid does not divide is cut into
    overlapping cells; one smaller than the grid is not pooled.

    ResUNet-a normalises after each of these convolutions. Here the decoder's first layer does: a
    batch of one image has no variance where it is pooled to one cell.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        part = quarter(channels)
        self.branches = nn.ModuleList(SameConv(channels, part, kernel_size=1) for _ in _GRIDS)
        self.merge = SameConv(channels + len(_GRIDS) * part, channels, kernel_size=1)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Return the merged maps."""
        maps, (height, width) = [x], x.shape[-2:]
        for side, branch in zip(_GRIDS, self.branches, strict=True):
            pooled = functional.adaptive_max_pool2d(x, (min(side, height), min(side, width)))
            maps.append(functional.interpolate(branch(pooled), (height, width), mode="nearest"))
        return self.merge(torch.cat(maps, dim=1))  # type: ignore[no-any-return]


def quarter(channels: int) -> int:
    """Return a quarter of the filters, rounded up to a multiple of 16.

    Training with other numbers of channels in channels-last memory crashes PyTorch 2.13 on CPUs.
    """
    return 16 * -(-channels // 64)


def build_stem(block: Block, in_channels: int, out_channels: int, *, norm: Norm) -> nn.Module:
    """Build the finest level of the encoder, which takes the image."""
    if block == "residual":
        return Stem(in_channels, out_channels, norm=norm)
    if block == "dense":
        return nn.Sequential(
            SameConv(in_channels, out_channels),
            build_block(block, out_channels, out_channels, level=0, stride=1, norm=norm),
        )
    return build_block(block, in_channels, out_channels, level=0, stride=1, norm=norm)


def build_block(
    block: Block, in_channels: int, out_channels: int, *, level: int, stride: int, norm: Norm
) -> nn.Module:
    """Build the block whose maps have the resolution of `level`; 0 is the finest."""
    match block:
        case "residual":
            return ResidualBlock(in_channels, out_channels, stride=stride, norm=norm)
        case "dense":
            return DenseBlock(in_channels, out_channels, stride=stride, norm=norm)
        case "atrous":
            rates = _DILATIONS[level] if level < len(_DILATIONS) else (1,)
            return AtrousBlock(in_channels, out_channels, dilations=rates, stride=stride, norm=norm)


def build_bridge(bridge: Bridge, channels: int, *, norm: Norm) -> nn.Module:
    """Build what lies between encoder and decoder."""
    if bridge == "psp":
        return PyramidPooling(channels)
    return nn.Sequential(*(ConvBlock(channels, channels, norm=norm) for _ in range(2)))
