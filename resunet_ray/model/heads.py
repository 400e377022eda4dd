"""From the network's outputs to what they mean: probability, distance, centre, diameter."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from resunet_ray.config.model import Head
from resunet_ray.model.prediction import slice_head

CENTRE_UNIT = 16.0
"""Pixels to a unit of the centre's output, so that it is about as large as the others."""
OCTAVES = 4.0
"""The diameter's output is its logarithm to base 2 over this, less 1: 0 at 16 pixels, 1 at 256."""
_MOST_OCTAVES = 15.0  # a diameter that float16 holds


def activate(
    logits: Float[Tensor, "n k h w"], *, heads: Sequence[Head]
) -> Float[Tensor, "n k h w"]:
    """Turn outputs into probability, distance and pixels."""
    maps = logits.to(torch.float32, copy=True)
    maps[:, 0].sigmoid_()
    for head in heads:
        part = maps[:, slice_head(heads, head)]
        if head == "distance":
            part.sigmoid_()
        elif head == "centre":
            part.mul_(CENTRE_UNIT)
        else:
            part.add_(1).mul_(OCTAVES).clamp_max_(_MOST_OCTAVES).exp2_()
    return maps


def unflip(
    maps: Float[Tensor, "n k h w"], *, dims: Sequence[int], heads: Sequence[Head]
) -> Float[Tensor, "n k h w"]:
    """Undo the flip of an image: the maps are mirrored, and ways to a centre change their sign.

    Args:
        maps: activated outputs for the flipped image.
        dims: which axes were flipped: 2 for rows, 3 for columns.
        heads: the network's heads.
    """
    maps = maps.flip(tuple(dims)) if dims else maps
    if "centre" in heads and dims:
        signs = torch.tensor([-1.0 if axis in dims else 1.0 for axis in (2, 3)], device=maps.device)
        maps[:, slice_head(heads, "centre")] *= signs[:, None, None]
    return maps
