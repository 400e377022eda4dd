"""The ResUNet: a U-Net of pre-activation residual blocks.

Zhang et al., "Road Extraction by Deep Residual U-Net", 2018.
"""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


class SameConv(nn.Conv2d):
    """A convolution with Keras's "same" padding: stride 2 pads an even side only at its end.

    With PyTorch's own padding the image would be sampled half a stride earlier, and weights could
    not be shared with Keras.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, kernel_size: int = 3, stride: int = 1
    ) -> None:
        padding = kernel_size // 2 if stride == 1 else 0
        super().__init__(in_channels, out_channels, kernel_size, stride=stride, padding=padding)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k i j"]:
        """Convolve; at stride 2, height and width are halved, otherwise kept."""
        if self.stride[0] == 2 and self.kernel_size[0] == 3:
            x = functional.pad(x, (0, 1, 0, 1))
        return super().forward(x)


class ConvBlock(nn.Sequential):
    """Batch normalisation, ReLU, 3×3 convolution: the pre-activation order."""

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int, momentum: float, epsilon: float
    ) -> None:
        super().__init__(
            nn.BatchNorm2d(in_channels, eps=epsilon, momentum=momentum),
            nn.ReLU(inplace=True),
            SameConv(in_channels, out_channels, stride=stride),
        )


class Stem(nn.Module):
    """The first level: a convolution and a convolution block, plus a normalised 1×1 shortcut."""

    def __init__(
        self, in_channels: int, out_channels: int, *, momentum: float, epsilon: float
    ) -> None:
        super().__init__()
        self.body = nn.Sequential(
            SameConv(in_channels, out_channels),
            ConvBlock(out_channels, out_channels, stride=1, momentum=momentum, epsilon=epsilon),
        )
        self.shortcut = nn.Sequential(
            SameConv(in_channels, out_channels, kernel_size=1),
            nn.BatchNorm2d(out_channels, eps=epsilon, momentum=momentum),
        )

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k h w"]:
        """The sum of both paths."""
        return self.body(x) + self.shortcut(x)  # type: ignore[no-any-return]


class ResidualBlock(nn.Module):
    """Two convolution blocks plus a 1×1 shortcut; the first block and the shortcut are strided."""

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int, momentum: float, epsilon: float
    ) -> None:
        super().__init__()
        self.body = nn.Sequential(
            ConvBlock(in_channels, out_channels, stride=stride, momentum=momentum, epsilon=epsilon),
            ConvBlock(out_channels, out_channels, stride=1, momentum=momentum, epsilon=epsilon),
        )
        self.shortcut = SameConv(in_channels, out_channels, kernel_size=1, stride=stride)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k i j"]:
        """The sum of both paths."""
        return self.body(x) + self.shortcut(x)  # type: ignore[no-any-return]


class ResUNet(nn.Module):
    """A network that turns an image into logits of the same height and width.

    With the defaults of `ModelConfig` it is the reference network: 4,713,841 trainable parameters.

    Args:
        in_channels: Channels of the image.
        out_channels: Logits per pixel, one per head.
        widths: Filters of each level, finest first; each level halves the resolution of the last.
        norm_momentum: Weight of a new batch in the running statistics (Keras's momentum 0.99 is
            0.01 here).
        norm_epsilon: Added to the variance.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        widths: tuple[int, ...],
        norm_momentum: float,
        norm_epsilon: float,
    ) -> None:
        super().__init__()
        norm = {"momentum": norm_momentum, "epsilon": norm_epsilon}
        self.stem = Stem(in_channels, widths[0], **norm)
        self.encoder = nn.ModuleList(
            ResidualBlock(before, after, stride=2, **norm) for before, after in pairwise(widths)
        )
        self.bridge = nn.Sequential(
            *(ConvBlock(widths[-1], widths[-1], stride=1, **norm) for _ in range(2))
        )
        self.decoder = nn.ModuleList()
        channels = widths[-1]
        for level in range(len(widths) - 1, 0, -1):
            self.decoder.append(
                ResidualBlock(channels + widths[level - 1], widths[level], stride=1, **norm)
            )
            channels = widths[level]
        self.head = SameConv(channels, out_channels, kernel_size=1)
        self.stride = 2 ** (len(widths) - 1)
        self.apply(_initialise)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k h w"]:
        """Return the logits of images of any size.

        They are padded at their end to a multiple of the stride by repeating the last pixels, and
        the logits are then cropped.
        """
        height, width = x.shape[-2:]
        x = functional.pad(x, (0, -width % self.stride, 0, -height % self.stride), mode="replicate")
        x = self.stem(x)
        skips = []
        for block in self.encoder:
            skips.append(x)
            x = block(x)
        x = self.bridge(x)
        for block in self.decoder:
            x = functional.interpolate(x, scale_factor=2, mode="nearest")
            x = block(torch.cat((x, skips.pop()), dim=1))
        return self.head(x)[..., :height, :width]  # type: ignore[no-any-return]


def _initialise(module: nn.Module) -> None:
    """Initialise a convolution as Keras does: Glorot-uniform weights, zero bias."""
    if isinstance(module, nn.Conv2d):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
