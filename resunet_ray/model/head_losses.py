"""Losses of the heads beside the mask, computed in float32 where instances are known."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from resunet_ray.config.model import Head
from resunet_ray.model.heads import CENTRE_UNIT, OCTAVES, slice_head

# These weights were chosen by measurement on the 2018 Data Science Bowl.
_DISTANCE_WEIGHT = 2.0
_CENTRE_WEIGHT = 0.5
_DIAMETER_WEIGHT = 0.5
_NEAR_WEIGHT = 4.0  # of pixels near two nuclei, relative to others
_NUCLEUS_WEIGHT = 3.0  # of the distance at nucleus pixels, relative to background
_BETA = 0.1  # units of the centre's output, below which its loss is quadratic


@dataclass(frozen=True)
class Truth:
    """What the network should say about each pixel of a batch; marks are 0 or 1."""

    mask: Float[Tensor, "n 1 h w"]
    distance: Float[Tensor, "n 1 h w"]
    """Distance to the border of the nucleus, over its maximum there."""
    centre: Float[Tensor, "n 2 h w"]
    """Rows and columns to the centre of the nucleus, pixels."""
    octaves: Float[Tensor, "n 1 h w"]
    """Logarithm to base 2 of the diameter of the nucleus, pixels."""
    known: Float[Tensor, "n 1 h w"]
    """Instances are known."""
    near: Float[Tensor, "n 1 h w"]
    """Two nuclei are near."""
    whole: Float[Tensor, "n 1 h w"]
    """The pixel's nucleus is whole in the crop."""

    @property
    def weight(self) -> Float[Tensor, "n 1 h w"]:
        """Weight of a pixel: larger between two nuclei, where a wrong answer merges them."""
        return 1 + (_NEAR_WEIGHT - 1) * self.near


def head_losses(
    logits: Float[Tensor, "n k h w"], truth: Truth, *, heads: Sequence[Head]
) -> dict[str, Tensor]:
    """Return the weighted loss of each head; without any known instance, it is 0."""
    losses = {"distance": _distance_loss, "centre": _centre_loss, "diameter": _diameter_loss}
    return {head: losses[head](logits[:, slice_head(heads, head)], truth) for head in heads}


def _distance_loss(logits: Float[Tensor, "n 1 h w"], truth: Truth) -> Float[Tensor, ""]:
    """Mean absolute error of the distance."""
    weight = truth.known * truth.weight * (1 + (_NUCLEUS_WEIGHT - 1) * truth.mask)
    error = (logits.sigmoid() - truth.distance).abs()
    return _DISTANCE_WEIGHT * (error * weight).sum() / truth.known.sum().clamp_min(1)


def _centre_loss(logits: Float[Tensor, "n 2 h w"], truth: Truth) -> Float[Tensor, ""]:
    """Smooth absolute error of the way to the centre, in units of `CENTRE_UNIT` pixels."""
    error = functional.smooth_l1_loss(
        logits, truth.centre / CENTRE_UNIT, reduction="none", beta=_BETA
    )
    # The 1 keeps the loss of a batch without a whole nucleus finite.
    return _CENTRE_WEIGHT * (error * truth.whole).sum() / (truth.whole.sum() + 1)


def _diameter_loss(logits: Float[Tensor, "n 1 h w"], truth: Truth) -> Float[Tensor, ""]:
    """Mean absolute error of the logarithm of the diameter, in units of `OCTAVES`."""
    error = (logits - (truth.octaves / OCTAVES - 1)).abs()
    return _DIAMETER_WEIGHT * (error * truth.whole).sum() / (truth.whole.sum() + 1)
