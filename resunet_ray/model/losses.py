"""Losses of the mask and of the further heads, each a mean over the batch, computed in float32.

Those of the heads count pixels whose instances are known.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from resunet_ray.config.model import Head
from resunet_ray.config.train import WEIGHTED_LOSSES
from resunet_ray.errors import ConfigError
from resunet_ray.model.heads import CENTRE_UNIT, OCTAVES
from resunet_ray.model.prediction import slice_head

Loss = Callable[..., Tensor]
"""A function of float32 logits and mask and, optionally, of each pixel's weight; a scalar."""

_SMOOTH = 1.0  # pixels; keeps the loss of an empty mask finite


def bce(
    logits: Float[Tensor, "n k h w"],
    mask: Float[Tensor, "n k h w"],
    weight: Float[Tensor, "n k h w"] | None = None,
    *,
    positive_weight: float = 1.0,
) -> Float[Tensor, ""]:
    """Binary cross-entropy; `positive_weight` multiplies the terms of nucleus pixels."""
    positive = torch.as_tensor(positive_weight, device=logits.device)
    return functional.binary_cross_entropy_with_logits(
        logits, mask, weight=weight, pos_weight=positive
    )


def dice(logits: Float[Tensor, "n k h w"], mask: Float[Tensor, "n k h w"]) -> Float[Tensor, ""]:
    """1 − Dice coefficient, per image and head.

    Milletari et al., V-Net, 2016, but with plain sums in the denominator.
    """
    probability = logits.sigmoid()
    overlap = (probability * mask).sum(dim=(2, 3))
    total = (probability + mask).sum(dim=(2, 3))
    return 1 - ((2 * overlap + _SMOOTH) / (total + _SMOOTH)).mean()


def bce_dice(
    logits: Float[Tensor, "n k h w"],
    mask: Float[Tensor, "n k h w"],
    weight: Float[Tensor, "n k h w"] | None = None,
    *,
    positive_weight: float = 1.0,
) -> Float[Tensor, ""]:
    """Binary cross-entropy plus Dice loss, which takes no weights."""
    return bce(logits, mask, weight, positive_weight=positive_weight) + dice(logits, mask)


def focal(
    logits: Float[Tensor, "n k h w"],
    mask: Float[Tensor, "n k h w"],
    weight: Float[Tensor, "n k h w"] | None = None,
    *,
    gamma: float = 2.0,
    positive_weight: float = 1.0,
) -> Float[Tensor, ""]:
    """Focal loss (Lin et al., 2017, equation 4); `positive_weight` replaces alpha's ratio."""
    positive = torch.as_tensor(positive_weight, device=logits.device)
    cross_entropy = functional.binary_cross_entropy_with_logits(
        logits, mask, weight=weight, reduction="none", pos_weight=positive
    )
    probability = logits.sigmoid()
    certainty = torch.where(mask > 0.5, probability, 1 - probability)
    return ((1 - certainty) ** gamma * cross_entropy).mean()


def focal_tversky(
    logits: Float[Tensor, "n k h w"],
    mask: Float[Tensor, "n k h w"],
    *,
    alpha: float = 0.7,
    gamma: float = 0.75,
) -> Float[Tensor, ""]:
    """(1 − Tversky index)^gamma, where `alpha` weights the missed pixels.

    Abraham and Khan, 2019, equations 3 and 4.
    """
    probability = logits.sigmoid()
    hit = (probability * mask).sum(dim=(2, 3))
    missed = ((1 - probability) * mask).sum(dim=(2, 3))
    false = (probability * (1 - mask)).sum(dim=(2, 3))
    index = (hit + _SMOOTH) / (hit + alpha * missed + (1 - alpha) * false + _SMOOTH)
    # The exponent is below 1, so without the clamp the gradient is infinite at an index of 1.
    return ((1 - index).clamp_min(1e-6) ** gamma).mean()


def tanimoto(logits: Float[Tensor, "n k h w"], mask: Float[Tensor, "n k h w"]) -> Float[Tensor, ""]:
    """1 − Tanimoto coefficient, averaged with that of the complement.

    Diakogiannis et al., ResUNet-a, equations 3 and 4.
    """
    probability = logits.sigmoid()
    return 1 - (_tanimoto(probability, mask) + _tanimoto(1 - probability, 1 - mask)) / 2


def _tanimoto(probability: Tensor, mask: Tensor) -> Tensor:
    overlap = (probability * mask).sum(dim=(2, 3))
    squares = (probability**2 + mask**2).sum(dim=(2, 3))
    return ((overlap + _SMOOTH) / (squares - overlap + _SMOOTH)).mean()


LOSSES: dict[str, Callable[..., Tensor]] = {
    "bce": bce,
    "bce_dice": bce_dice,
    "focal": focal,
    "dice": dice,
    "focal_tversky": focal_tversky,
    "tanimoto": tanimoto,
}


def build_loss(name: str, *, positive_weight: float) -> Loss:
    """Return the loss of that name.

    Raises:
        ConfigError: the name is unknown, or the loss takes no positive weight and one other than 1
            is given.
    """
    if name not in LOSSES:
        raise ConfigError(f"unknown loss {name!r}: expected one of {', '.join(sorted(LOSSES))}")
    if name in WEIGHTED_LOSSES:
        return partial(LOSSES[name], positive_weight=positive_weight)
    if positive_weight != 1:
        raise ConfigError(
            f"positive_weight {positive_weight} would be ignored by loss {name!r}: "
            f"leave it at 1, or choose one of {', '.join(WEIGHTED_LOSSES)}"
        )
    return lambda logits, mask, weight=None: LOSSES[name](logits, mask)  # noqa: ARG005


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
