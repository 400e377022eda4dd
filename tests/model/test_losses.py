"""Each loss equals its formula worked by hand, is smallest at the truth, and has a gradient."""

import math

import pytest
import torch

from resunet_ray.errors import ConfigError
from resunet_ray.model.losses import LOSSES, build_loss

# Probabilities 0.8, 0.4 in a nucleus and 0.1, 0.5 outside.
PROBABILITY = torch.tensor([0.8, 0.4, 0.1, 0.5]).view(1, 1, 1, 4)
LOGITS = torch.logit(PROBABILITY)
MASK = torch.tensor([1.0, 1.0, 0.0, 0.0]).view(1, 1, 1, 4)

BCE = -(math.log(0.8) + math.log(0.4) + math.log(0.9) + math.log(0.5)) / 4
DICE = 1 - (2 * 1.2 + 1) / (1.8 + 2 + 1)
FOCAL = (
    -(
        0.2**2 * math.log(0.8)
        + 0.6**2 * math.log(0.4)
        + 0.1**2 * math.log(0.9)
        + 0.5**2 * math.log(0.5)
    )
    / 4
)
TVERSKY = (1 - (1.2 + 1) / (1.2 + 0.7 * 0.8 + 0.3 * 0.6 + 1)) ** 0.75
SQUARES = 0.64 + 0.16 + 0.01 + 0.25
SQUARES_OF_REST = 0.04 + 0.36 + 0.81 + 0.25
TANIMOTO = (
    1 - ((1.2 + 1) / (SQUARES + 2 - 1.2 + 1) + (1.4 + 1) / (SQUARES_OF_REST + 2 - 1.4 + 1)) / 2
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bce", BCE),
        ("dice", DICE),
        ("bce_dice", BCE + DICE),
        ("focal", FOCAL),
        ("focal_tversky", TVERSKY),
        ("tanimoto", TANIMOTO),
    ],
)
def test_a_loss_equals_its_formula(name: str, expected: float) -> None:
    loss = build_loss(name, positive_weight=1.0)
    assert float(loss(LOGITS, MASK)) == pytest.approx(expected, rel=1e-5)


def test_a_positive_weight_multiplies_the_terms_of_nucleus_pixels() -> None:
    expected = -(3 * math.log(0.8) + 3 * math.log(0.4) + math.log(0.9) + math.log(0.5)) / 4
    loss = build_loss("bce", positive_weight=3.0)
    assert float(loss(LOGITS, MASK)) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ConfigError, match=r"positive_weight 3.0 would be ignored by loss 'dice'"):
        build_loss("dice", positive_weight=3.0)


def test_a_pixel_s_weight_multiplies_its_term() -> None:
    weight = torch.tensor([4.0, 1.0, 1.0, 2.0]).view(1, 1, 1, 4)
    expected = -(4 * math.log(0.8) + math.log(0.4) + math.log(0.9) + 2 * math.log(0.5)) / 4
    for name, others in (("bce", 0.0), ("bce_dice", DICE)):
        loss = build_loss(name, positive_weight=1.0)
        assert float(loss(LOGITS, MASK, weight)) == pytest.approx(expected + others, rel=1e-5)
    dice = build_loss("dice", positive_weight=1.0)
    assert float(dice(LOGITS, MASK, weight)) == pytest.approx(DICE, rel=1e-5)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_loss_is_smallest_at_the_truth_and_its_gradient_points_there(name: str) -> None:
    loss = build_loss(name, positive_weight=1.0)
    mask = (torch.rand(2, 1, 8, 12, generator=torch.Generator().manual_seed(0)) > 0.7).float()
    truth = (mask * 2 - 1) * 8
    right, unsure, wrong = (float(loss(logits, mask)) for logits in (truth, 0 * truth, -truth))
    assert right < 0.02
    assert right < unsure < wrong
    logits = torch.zeros_like(mask, requires_grad=True)
    loss(logits, mask).backward()
    assert logits.grad is not None
    assert (logits.grad[mask == 1] < 0).all()
    assert (logits.grad[mask == 0] > 0).all()


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_loss_is_finite_for_an_image_without_nuclei(name: str) -> None:
    logits = torch.full((1, 1, 4, 6), -50.0, requires_grad=True)
    value = build_loss(name, positive_weight=1.0)(logits, torch.zeros_like(logits))
    value.backward()
    assert torch.isfinite(value)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
