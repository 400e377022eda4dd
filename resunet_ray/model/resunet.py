"""The ResUNet: a U-Net of pre-activation residual blocks, dense blocks or atrous blocks.

Zhang et al., "Road Extraction by Deep Residual U-Net", 2018.
"""

from functools import partial
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from resunet_ray.config import ModelConfig
from resunet_ray.config.model import Block, Bridge
from resunet_ray.model.blocks import SameConv, build_block, build_bridge, build_stem
from resunet_ray.model.prediction import count_outputs


class ResUNet(nn.Module):
    """A network that turns an image into logits of the same height and width.

    With the defaults of `ModelConfig` it is the reference network: 4,713,841 trainable parameters.
    With its widths, the others have:

    | block, bridge | parameters | billion multiply-accumulates per megapixel |
    |---|---|---|
    | residual, plain | 4,713,841 | 150.8 |
    | residual, psp | 3,729,777 | 146.7 |
    | dense, plain | 3,993,361 | 187.5 |
    | dense, psp | 3,009,297 | 183.4 |
    | atrous, plain | 8,563,233 | 341.6 |
    | atrous, psp | 7,579,169 | 337.5 |

    Args:
        in_channels: channels of the image.
        out_channels: logits per pixel, one per head.
        widths: filters of each level, finest first; each level halves the resolution of the last.
        block: what each level computes; see `blocks`.
        bridge: what lies between encoder and decoder; see `blocks`.
        norm_momentum: weight of a new batch in the running statistics (Keras's momentum 0.99 is
            0.01 here).
        norm_epsilon: added to the variance.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        widths: tuple[int, ...],
        block: Block,
        bridge: Bridge,
        norm_momentum: float,
        norm_epsilon: float,
    ) -> None:
        super().__init__()
        norm = partial(nn.BatchNorm2d, eps=norm_epsilon, momentum=norm_momentum)
        self.stem = build_stem(block, in_channels, widths[0], norm=norm)
        self.encoder = nn.ModuleList(
            build_block(block, before, after, level=level, stride=2, norm=norm)
            for level, (before, after) in enumerate(pairwise(widths), start=1)
        )
        self.bridge = build_bridge(bridge, widths[-1], norm=norm)
        self.decoder = nn.ModuleList()
        channels = widths[-1]
        for level in reversed(range(len(widths) - 1)):
            channels, before = widths[level + 1], channels + widths[level]
            self.decoder.append(
                build_block(block, before, channels, level=level, stride=1, norm=norm)
            )
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


def build_network(config: ModelConfig, weights: dict[str, Tensor] | None = None) -> ResUNet:
    """Build a network in channels-last memory.

    Args:
        config: its structure.
        weights: its state dictionary; it is then in evaluation mode. None: random weights.
    """
    network = ResUNet(
        in_channels=config.in_channels,
        out_channels=count_outputs(config.heads),
        widths=config.widths,
        block=config.block,
        bridge=config.bridge,
        norm_momentum=config.norm_momentum,
        norm_epsilon=config.norm_epsilon,
    )
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if weights is not None:
        network.eval().load_state_dict(weights)
    return network
