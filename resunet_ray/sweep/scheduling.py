"""Tune's schedulers, which stop trials early, told of the results from before an interruption.

Tune does not keep a scheduler's state. After a restart it would compare a trial only with those
that started since.
"""

from collections.abc import Sequence
from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from resunet_ray.config import SweepConfig, lower_is_better
from resunet_ray.sweep.trials import Trial, read_validations

NUMBER = "number"
"""Key of the trial's number in its configuration for Tune."""


def build_scheduler(config: SweepConfig, trials: Sequence[Trial]) -> TrialScheduler:
    """Return the scheduler of a sweep, which knows the results of the existing trials.

    Its attribute `stopped` maps the number of each trial that it stopped to the reason.
    """
    training = config.training
    direction = {
        "metric": training.monitor,
        "mode": "min" if lower_is_better(training.monitor) else "max",
    }
    if config.scheduler == "none":
        return _FIFO()
    past = {
        trial.number: read_validations(training.output, trial).to_dict("records")
        for trial in trials
    }
    ended = [trial.number for trial in trials if trial.status in ("completed", "stopped")]
    if config.scheduler == "median":
        return _Median(
            past,
            ended,
            training.epochs,
            time_attr="epoch",
            grace_period=config.grace_epochs,
            **direction,
        )
    return _ASHA(
        past,
        ended,
        training.epochs,
        time_attr="epoch",
        max_t=training.epochs - 1,
        stop_last_trials=False,
        grace_period=config.grace_epochs,
        reduction_factor=config.reduction_factor,
        **direction,
    )


class _PastTrial:
    """Stands in for a trial that ended before this process started."""

    def __init__(self, number: int) -> None:
        self.config = {NUMBER: number}
        self.trial_id = f"past-{number}"


class _HistoryMixin:
    """Mixed into a scheduler: replays earlier results to it, and records which trials it stops."""

    def __init__(
        self,
        past: dict[int, list[dict[Any, Any]]],
        ended: Sequence[int],
        epochs: int,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self._epochs = epochs
        self.stopped: dict[int, str] = {}
        self._past = past
        for number in ended:
            self.on_trial_add(None, _PastTrial(number))

    def on_trial_add(self, controller: Any, trial: Any) -> None:
        super().on_trial_add(controller, trial)  # type: ignore[misc]
        for result in self._past.get(trial.config[NUMBER], []):
            super().on_trial_result(controller, trial, result)  # type: ignore[misc]

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        action: str = super().on_trial_result(controller, trial, result)  # type: ignore[misc]
        if action == TrialScheduler.STOP and result["epoch"] >= self._epochs:
            # The trial has trained its last epoch and only has its bundle to write.
            return str(TrialScheduler.CONTINUE)
        if action == TrialScheduler.STOP:
            self.stopped[trial.config[NUMBER]] = (
                f"after epoch {result['epoch']}, at {result[self._metric]:.4f}"  # type: ignore[attr-defined]
            )
        return action

    def on_trial_complete(self, controller: Any, trial: Any, result: dict[str, Any]) -> None:
        if "epoch" in result:  # else the trial has reported nothing since it started
            super().on_trial_complete(controller, trial, result)  # type: ignore[misc]


class _ASHA(_HistoryMixin, ASHAScheduler):  # type: ignore[misc]
    pass


class _Median(_HistoryMixin, MedianStoppingRule):  # type: ignore[misc]
    def on_trial_add(self, controller: Any, trial: Any) -> None:
        super().on_trial_add(controller, trial)
        # Replayed results must not stop the trial, whatever the rule says about them today.
        self._stopped_trials.discard(trial)

    def _on_insufficient_samples(self, *_: Any) -> str:
        """Continue a trial that has too few others to compare with.

        The base class would pause it, and start it again from the beginning.
        """
        return str(TrialScheduler.CONTINUE)


class _FIFO(FIFOScheduler):  # type: ignore[misc]
    stopped: dict[int, str] = {}  # noqa: RUF012 (stays empty)
