"""One training step: from a worker's share of a batch to new weights."""

import torch
from torch import Tensor, nn

from resunet_ray.data.targets import (
    COLUMNS,
    DIAMETER,
    DISTANCE,
    KNOWN,
    MARKS,
    NEAR,
    ORIGIN,
    ROWS,
    STEPS,
    WHOLE,
)
from resunet_ray.model.losses import Truth, head_losses
from resunet_ray.model.preprocess import preprocess
from resunet_ray.train.checkpoint import average
from resunet_ray.train.session import Session


def train_step(
    session: Session, image: Tensor, mask: Tensor, targets: Tensor | None = None
) -> Tensor:
    """Take one optimizer step on this worker's share of a batch.

    Args:
        session: this worker's session.
        image: uint8 (n, s, s, 3), on the session's device like the others.
        mask: uint8 (n, s, s).
        targets: uint8 (n, 5, s, s) as in `data.targets`, if the network has heads.

    Returns:
        The loss, summed over the network's outputs and detached.
    """
    config, device = session.config, session.device
    x = preprocess(image, channels=config.model.in_channels)
    with torch.autocast(
        device.type, session.dtype or torch.bfloat16, enabled=session.dtype is not None
    ):
        logits = session.parallel(x)
    parts = measure_losses(session, logits.float(), mask, targets)
    loss = torch.stack(list(parts.values())).sum()
    session.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if config.clip_norm is not None:
        nn.utils.clip_grad_norm_(session.network.parameters(), config.clip_norm)
    session.optimizer.step()
    if session.ema is not None and config.ema_decay is not None:
        average(session.ema, session.network, decay=config.ema_decay, step=session.progress.step)
    session.progress.step += 1
    return loss.detach()


def measure_losses(
    session: Session, logits: Tensor, mask: Tensor, targets: Tensor | None
) -> dict[str, Tensor]:
    """Return the loss of the mask, and that of each head by its name.

    Args:
        session: this worker's session.
        logits: float32 (n, k, s, s).
        mask: uint8 (n, s, s).
        targets: uint8 (n, 5, s, s), if the network has heads.
    """
    truth = mask.float()[:, None]
    if targets is None:
        return {"mask": session.loss(logits[:, :1], truth)}
    known = unpack(truth, targets)
    return {
        "mask": session.loss(logits[:, :1], truth, known.weight),
        **head_losses(logits, known, heads=session.config.model.heads),
    }


def unpack(mask: Tensor, targets: Tensor) -> Truth:
    """Turn a mask, float (n, 1, s, s), and its targets of five bytes per pixel into numbers."""
    marks = targets[:, MARKS, None]
    known, near, whole = ((marks & mark > 0).float() for mark in (KNOWN, NEAR, WHOLE))
    return Truth(
        mask=mask,
        distance=targets[:, DISTANCE, None].float() / 255,
        centre=targets[:, ROWS : COLUMNS + 1].float() - ORIGIN,
        octaves=targets[:, DIAMETER, None].float() / STEPS,
        known=known,
        near=near,
        whole=whole,
    )
