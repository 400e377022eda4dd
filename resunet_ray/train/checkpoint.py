"""Checkpoints: everything that a run needs to resume as if it had never stopped.

Tensors are stored as safetensors, everything else as JSON; nothing is pickled.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from resunet_ray import storage
from resunet_ray.errors import InputError

logger = logging.getLogger(__name__)

_SNAPSHOT_FILE = "checkpoint_manager_snapshot.json"  # Ray Train's list of checkpoints
_TENSORS, _STATE = "{}.safetensors", "state.json"


@dataclass
class Progress:
    """How far a run has come."""

    epoch: int = 0
    """Completed epochs."""
    step: int = 0
    """Completed optimizer steps."""
    best: float | None = None
    """Best monitored score so far."""
    stale: int = 0
    """Validations since the best score."""
    plateau: dict[str, Any] | None = None
    """State of the plateau schedule."""
    history: list[dict[str, float]] | None = None
    """One row per epoch, as in history.csv."""


def average(ema: nn.Module, network: nn.Module, *, decay: float, step: int) -> None:
    """Update `ema`, the moving average of weights and normalisation statistics, by one step.

    The decay starts at 0.1 and grows with the steps, so that the average forgets its random start.
    """
    share = 1 - min(decay, (1 + step) / (10 + step))
    pairs = list(zip(ema.state_dict().values(), network.state_dict().values(), strict=True))
    kept, new = zip(*[pair for pair in pairs if pair[0].is_floating_point()], strict=True)
    torch._foreach_lerp_(list(kept), list(new), share)


def save_checkpoint(
    folder: Path,
    *,
    network: nn.Module,
    ema: nn.Module | None,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
) -> None:
    """Write a checkpoint into a folder."""
    state = {
        "network": network.state_dict(),
        "optimizer": _flatten(optimizer),
        "random": {"torch": torch.get_rng_state()},
    }
    if ema is not None:
        state["ema"] = ema.state_dict()
    for name, tensors in state.items():
        safetensors.torch.save_file(
            {key: tensor.contiguous() for key, tensor in tensors.items()},
            folder / _TENSORS.format(name),
        )
    (folder / _STATE).write_text(json.dumps(vars(progress)))


def load_checkpoint(
    folder: Path, *, network: nn.Module, ema: nn.Module | None, optimizer: torch.optim.Optimizer
) -> Progress:
    """Restore network, average, optimizer and random state in place; return the run's progress."""
    network.load_state_dict(_load(folder, "network"))
    if ema is not None:
        ema.load_state_dict(_load(folder, "ema"))
    _unflatten(optimizer, _load(folder, "optimizer"))
    torch.set_rng_state(_load(folder, "random")["torch"])
    return Progress(**json.loads((folder / _STATE).read_text()))


def load_weights(folder: Path) -> dict[str, Tensor]:
    """Return the weights that were validated: the moving average if the run keeps one."""
    name = "ema" if (folder / _TENSORS.format("ema")).exists() else "network"
    return _load(folder, name)


def require_snapshot(folder: str) -> None:
    """Check that Ray Train's list of a run's checkpoints is readable.

    Ray Train fails on a list that it was killed while writing.

    Args:
        folder: location of the run.

    Raises:
        InputError: the list is damaged.
    """
    uri = storage.join(folder, _SNAPSHOT_FILE)
    try:
        if storage.exists(uri):
            json.loads(storage.read_bytes(uri))
    except ValueError as error:
        raise InputError(
            f"{uri}, Ray Train's list of this run's checkpoints, is damaged ({error}): delete it "
            "to start this run from the beginning"
        ) from None


def discard_damaged_snapshot(folder: str) -> None:
    """Delete Ray Train's list of checkpoints if it is damaged, and warn: for unattended runs."""
    try:
        require_snapshot(folder)
    except InputError as error:
        logger.warning("%s. Deleting it", error)
        storage.delete_file(storage.join(folder, _SNAPSHOT_FILE))


def _load(folder: Path, name: str) -> dict[str, Tensor]:
    return safetensors.torch.load_file(folder / _TENSORS.format(name))


def _flatten(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Name the moments of each parameter `NUMBER.NAME`; settings come from the configuration."""
    state = optimizer.state_dict()["state"]
    return {
        f"{number}.{name}": torch.as_tensor(value)
        for number, values in state.items()
        for name, value in values.items()
    }


def _unflatten(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
