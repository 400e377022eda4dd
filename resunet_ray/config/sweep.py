"""The configuration of `jobs/tune.py`, and of `jobs/dashboard.py` that watches it."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from resunet_ray.config.checks import ANY, TINY, require, require_range
from resunet_ray.config.roles import Todays
from resunet_ray.config.train import TrainConfig


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """One sweep. Every trial is a whole training run; its settings stand below, and the space goes over them."""

    training: Annotated[TrainConfig, tyro.conf.arg(name="")]
    space: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """FIELD=KIND:VALUES, once for each training field to search: `learning_rate=loguniform:1e-4,1e-2`, `crop=choice:128,256`,
    `clip_norm=uniform:0.5,2`, `augment.enabled=choice:true,false`. None: learning_rate=loguniform:1e-4,1e-2 and
    batch_size=choice:4,8,16, the batch being of one step over all workers."""
    search: Literal["optuna", "random", "grid"] = "optuna"
    """optuna: tree-structured Parzen estimator. grid: every combination of choices, in random order."""
    trials: Todays[int] = 16
    """Training runs to make; a larger number later goes on with the same sweep."""
    concurrent: Todays[int] = 2
    """Trials that run at the same time."""
    scheduler: Literal["asha", "median", "none"] = "asha"
    """What stops a trial early, by its `monitor` at an epoch. asha: it is not among the best 1/`reduction_factor` there.
    median: its best is below the median of the others' means."""
    grace_epochs: int = 4
    """Epochs that every trial may train."""
    reduction_factor: int = 3
    """Share of trials that asha lets go on (1 in so many), and the ratio of the epochs at which it asks."""
    hours: Todays[float | None] = None
    """Time after which no trial goes on; the same command later does. None: no limit."""
    retry_failed: Todays[bool] = False
    """Try the trials again that failed before."""
    final_epochs: Todays[int | None] = None
    """Train the winner anew for so many epochs. None: its trial's bundle is the result."""
    final_seeds: Todays[int] = 1
    """Train the winner anew with so many seeds, to know its scores' spread; the best bundle is the result."""

    def __post_init__(self) -> None:
        require_range(
            self, 1, ANY, "trials", "concurrent", "grace_epochs", "final_epochs", "final_seeds"
        )
        require_range(self, 2, ANY, "reduction_factor")
        require_range(self, TINY, ANY, "hours")
        interval = self.training.validation_interval
        require(
            self.scheduler == "none"
            or -(-self.grace_epochs // interval) * interval < self.training.epochs,
            f"--grace-epochs {self.grace_epochs} leaves --scheduler {self.scheduler} nothing to stop in "
            f"{self.training.epochs} epochs with a validation every {interval}: give fewer, or --scheduler none",
        )
        require(
            self.scheduler == "asha" or self.reduction_factor == 3,
            f"--reduction-factor {self.reduction_factor} would be ignored by --scheduler {self.scheduler}: leave it out",
        )


@dataclass(frozen=True, kw_only=True)
class DashboardConfig:
    """TensorBoard and optuna-dashboard over a sweep or a training run, while it runs and after."""

    output: str
    """What `jobs/tune.py` or `jobs/train.py` writes to, wherever it is."""
    host: str = "127.0.0.1"
    """Address to listen on. Neither server asks who comes: anything but loopback is open to all that reach it."""
    tensorboard_port: int = 6006
    """Port of TensorBoard."""
    optuna_port: int = 8080
    """Port of optuna-dashboard."""
    refresh_seconds: float = 10.0
    """How often what is stored is looked at again."""

    def __post_init__(self) -> None:
        require_range(self, 1, 65535, "tensorboard_port", "optuna_port")
        require_range(self, TINY, ANY, "refresh_seconds")
        require(
            self.tensorboard_port != self.optuna_port,
            f"--optuna-port {self.optuna_port} is TensorBoard's: give another",
        )
