"""The configuration of `jobs/tune.py`, and of `jobs/dashboard.py` that watches it."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from resunet_ray.config.checks import ANY, TINY, require, require_range
from resunet_ray.config.roles import Heading, MayChange, Tuning
from resunet_ray.config.train import TrainConfig


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """One sweep.

    Every trial is a whole training run with the training settings below, except those in the space.
    """

    training: Annotated[TrainConfig, tyro.conf.arg(name="")]
    space: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], Heading.SWEEP] = ()
    """FIELD=KIND:VALUES, once for each training field to search:
    `learning_rate=loguniform:1e-4,1e-2`, `crop=choice:128,256`, `clip_norm=uniform:0.5,2`,
    `augment.enabled=choice:true,false`. Default: learning_rate=loguniform:1e-4,1e-2 and
    batch_size=choice:4,8,16, the batch of one step over all workers."""
    search: Literal["optuna", "random", "grid"] = "optuna"
    """optuna: tree-structured Parzen estimator. grid: every combination of choices, in random
    order."""
    trials: MayChange[int] = 16
    """Training runs to make. Give a larger number later to continue the same sweep."""
    concurrent: MayChange[int] = 2
    """Trials that run at the same time."""
    scheduler: Literal["asha", "median", "none"] = "asha"
    """When to stop a trial early, by its `monitor` at an epoch. asha: unless it is among the best
    1/`reduction_factor` there. median: if its best is below the median of the others' means."""
    grace_epochs: Tuning[int] = 4
    """Epochs before any trial may be stopped."""
    reduction_factor: Tuning[int] = 3
    """asha keeps one of this many trials, at epochs in this ratio."""
    hours: MayChange[float | None] = None
    """Time limit of this command, after which trials stop; run it again to continue. Default: no
    limit."""
    retry_failed: MayChange[bool] = False
    """Try trials again that failed before."""
    final_epochs: Tuning[MayChange[int | None]] = None
    """Retrain the winner for this many epochs. Default: the bundle of its trial is the result."""
    final_seeds: Tuning[MayChange[int]] = 1
    """Retrain the winner with this many seeds, to see how its scores vary; the best bundle is the
    result."""

    def __post_init__(self) -> None:
        require_range(self, 1, ANY, "trials", "concurrent", "grace_epochs")
        require_range(self, 1, ANY, "final_epochs", "final_seeds")
        require_range(self, 2, ANY, "reduction_factor")
        require_range(self, TINY, ANY, "hours")
        interval = self.training.validation_interval
        require(
            self.scheduler == "none"
            or -(-self.grace_epochs // interval) * interval < self.training.epochs,
            f"--grace-epochs {self.grace_epochs} leaves --scheduler {self.scheduler} nothing to "
            f"stop in {self.training.epochs} epochs with a validation every {interval}: "
            "give fewer, or --scheduler none",
        )
        require(
            self.scheduler == "asha" or self.reduction_factor == 3,
            f"--reduction-factor {self.reduction_factor} would be ignored by "
            f"--scheduler {self.scheduler}: leave it out",
        )


@dataclass(frozen=True, kw_only=True)
class DashboardConfig:
    """TensorBoard and optuna-dashboard over a sweep or a training run, while it runs and after."""

    output: Annotated[str, Heading.INPUT]
    """The output of `jobs/tune.py` or `jobs/train.py`, on disk or in object storage."""
    host: Annotated[str, Heading.SERVERS] = "127.0.0.1"
    """Address to listen on. Neither server asks for a password: on any other address than loopback,
    everyone who can reach it can use them."""
    tensorboard_port: int = 6006
    """Port of TensorBoard."""
    optuna_port: int = 8080
    """Port of optuna-dashboard."""
    refresh_seconds: Tuning[float] = 10.0
    """How often to read what is stored."""

    def __post_init__(self) -> None:
        require_range(self, 1, 65535, "tensorboard_port", "optuna_port")
        require_range(self, TINY, ANY, "refresh_seconds")
        require(
            self.tensorboard_port != self.optuna_port,
            f"--optuna-port {self.optuna_port} is also --tensorboard-port: give another",
        )
