"""From stored pixels to the network's input; training and inference share this code."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

_LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601


def preprocess(image: UInt8[Tensor, "n h w 3"], *, channels: int) -> Float[Tensor, "n c h w"]:
    """Return float32 values from 0 to 1, channels first but in channels-last memory.

    Args:
        image: RGB pixels, on the device that runs the network: 8-bit pixels are cheaper to copy.
        channels: 3 for RGB, 1 for the luminance.
    """
    scaled = image.permute(0, 3, 1, 2).float().div_(255)
    if channels == 1:
        weights = torch.tensor(_LUMINANCE, device=scaled.device).view(1, 3, 1, 1)
        scaled = (scaled * weights).sum(dim=1, keepdim=True)
    return scaled.contiguous(memory_format=torch.channels_last)
