"""A training worker's session.

It starts new, from another bundle, or from the run's last checkpoint.
"""

import copy
import logging
from dataclasses import dataclass
from pathlib import Path

import ray.train.torch
import torch
from torch import Tensor, nn

from resunet_ray.bundle import load_bundle
from resunet_ray.config import TrainConfig, lower_is_better
from resunet_ray.data.dataset import Dataset
from resunet_ray.errors import ConfigError
from resunet_ray.model.inference import autocast_dtype
from resunet_ray.model.losses import Loss, build_loss
from resunet_ray.model.resunet import build_network
from resunet_ray.train.checkpoint import Progress, load_checkpoint

logger = logging.getLogger(__name__)

_PLATEAU_DELTA = 1e-4  # smallest change that counts as an improvement, as in Keras


@dataclass
class Session:
    """Everything that one worker holds during training."""

    config: TrainConfig
    dataset: Dataset
    rank: int
    workers: int
    device: torch.device
    dtype: torch.dtype | None
    network: nn.Module
    """The bare network, whose state is saved."""
    parallel: nn.Module
    """The same network for the forward pass: compiled if asked for, and averaging gradients over
    the workers."""
    ema: nn.Module | None
    optimizer: torch.optim.Optimizer
    plateau: torch.optim.lr_scheduler.ReduceLROnPlateau | None
    loss: Loss
    progress: Progress


def build_session(
    config: TrainConfig,
    dataset: Dataset,
    *,
    rank: int,
    workers: int,
    device: torch.device,
    resume_from: Path | None,
) -> Session:
    """Build a session: new, from another bundle, or from this run's last checkpoint.

    Args:
        config: configuration of the run.
        dataset: what to train and validate on.
        rank: number of this worker.
        workers: number of all workers.
        device: device to train on.
        resume_from: folder of the checkpoint, if the run has one.
    """
    torch.manual_seed(config.seed)
    network = build_network(config.model)
    if config.init is not None:
        start_from(network, load_bundle(config.init).network.state_dict())
    network = network.to(device)
    ema = (
        copy.deepcopy(network).eval().requires_grad_(requires_grad=False)
        if config.ema_decay is not None
        else None
    )
    optimizer = build_optimizer(network, config)
    progress = Progress(history=[])
    if resume_from is not None:
        progress = load_checkpoint(resume_from, network=network, ema=ema, optimizer=optimizer)
        logger.info("resumed after epoch %d", progress.epoch)
    parallel: nn.Module = torch.compile(network) if config.compile else network  # type: ignore[assignment]
    return Session(
        config=config,
        dataset=dataset,
        rank=rank,
        workers=workers,
        device=device,
        dtype=autocast_dtype(device, config.precision),
        network=network,
        parallel=ray.train.torch.prepare_model(parallel, move_to_device=False)
        if workers > 1
        else parallel,
        ema=ema,
        optimizer=optimizer,
        plateau=_build_plateau(optimizer, config, progress),
        loss=build_loss(config.loss, positive_weight=config.positive_weight),
        progress=progress,
    )


def start_from(network: nn.Module, weights: dict[str, Tensor]) -> list[str]:
    """Copy the tensors that fit from another network's weights.

    If the number of image channels differs, the first convolutions are averaged over the channels,
    then repeated and scaled so that a grey image gives the same activations. If the heads differ,
    the mask's filter is copied, and those of the heads keep their initial values.

    Returns:
        The names of the tensors that do not fit and keep their initial values, at least in part.

    Raises:
        ConfigError: no tensor fits.
    """
    own = network.state_dict()
    skipped, copied = [], 0
    for name, tensor in own.items():
        other = weights.get(name)
        if (
            other is not None
            and name.startswith("stem.")
            and other.ndim == 4
            and {other.shape[1], tensor.shape[1]} == {1, 3}
        ):
            other = (
                other.sum(dim=1, keepdim=True).expand(-1, tensor.shape[1], -1, -1) / tensor.shape[1]
            )
        if other is not None and other.shape == tensor.shape:
            tensor.copy_(other)
            copied += 1
        elif other is not None and name.startswith("head.") and other.shape[1:] == tensor.shape[1:]:
            tensor[:1] = other[:1]  # the mask's is the first
            if len(tensor) > 1:
                skipped.append(name)
        else:
            skipped.append(name)
    if not copied:
        raise ConfigError(
            "no tensor of the bundle given to --init fits this network: give the --model.widths "
            "that it was trained with"
        )
    if skipped:
        logger.info(
            "--init: %d tensors do not fit and start from random weights: %s",
            len(skipped),
            ", ".join(skipped),
        )
    return skipped


def build_optimizer(network: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Build Adam or AdamW. Weight decay does not apply to biases and normalisation."""
    if config.optimizer == "adam":
        # Keras's epsilon, with which the baseline was trained.
        return torch.optim.Adam(network.parameters(), lr=config.learning_rate, eps=1e-7)
    weights = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    groups = [
        {"params": weights, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=weights[0].is_cuda)


def _build_plateau(
    optimizer: torch.optim.Optimizer, config: TrainConfig, progress: Progress
) -> torch.optim.lr_scheduler.ReduceLROnPlateau | None:
    if config.schedule != "plateau":
        return None
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer,
        mode="min" if lower_is_better(config.monitor) else "max",
        factor=config.plateau_factor,
        # Keras reduces the rate at the last stale step that the patience allows, PyTorch at the
        # first one beyond it.
        patience=config.plateau_patience - 1,
        threshold=_PLATEAU_DELTA,
        threshold_mode="abs",
        min_lr=config.min_learning_rate,
    )
    if progress.plateau is not None:
        plateau.load_state_dict(progress.plateau)
        for group, rate in zip(optimizer.param_groups, plateau.get_last_lr(), strict=True):
            group["lr"] = rate
    return plateau
