"""From stored pixels to what the network sees: the one way, in training and ever after."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

_LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601


def preprocess(image: UInt8[Tensor, "n h w 3"], *, channels: int) -> Float[Tensor, "n c h w"]:
    """RGB pixels as float32 from 0 to 1, channels first but in channels-last memory.

    Args:
        image: on the device that will compute, where the 8-bit pixels are scaled.
        channels: 3 for RGB, 1 for the luminance.
    """
    scaled = image.permute(0, 3, 1, 2).float().div_(255)
    if channels == 1:
        weights = torch.tensor(_LUMINANCE, device=scaled.device).view(1, 3, 1, 1)
        scaled = (scaled * weights).sum(dim=1, keepdim=True)
    return scaled.contiguous(memory_format=torch.channels_last)
