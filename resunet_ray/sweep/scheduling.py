"""When a trial is stopped early: Tune's schedulers, which are told what was reported before the sweep was interrupted.

Tune does not keep a scheduler's state, so after a restart it would compare a trial only with those that started since.
"""

from collections.abc import Sequence
from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from resunet_ray.config import SweepConfig, lower_is_better
from resunet_ray.sweep.trials import Trial, read_validations

NUMBER = "number"
"""Where the number of a trial stands in its configuration for Tune."""


def build_scheduler(config: SweepConfig, trials: Sequence[Trial]) -> TrialScheduler:
    """The scheduler of a sweep, which knows the trials that there are.

    Its attribute `stopped` holds why, by number, for the trials that it stopped.
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


class _Earlier:
    """Stands in for a trial that ended before this process began."""

    def __init__(self, number: int) -> None:
        self.config = {NUMBER: number}
        self.trial_id = f"earlier-{number}"


class _Remembering:
    """Mixed into a scheduler: repeats to it what was reported before, and notes whom it stops."""

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
            self.on_trial_add(None, _Earlier(number))

    def on_trial_add(self, controller: Any, trial: Any) -> None:
        super().on_trial_add(controller, trial)  # type: ignore[misc]
        for result in self._past.get(trial.config[NUMBER], []):
            super().on_trial_result(controller, trial, result)  # type: ignore[misc]

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        action: str = super().on_trial_result(controller, trial, result)  # type: ignore[misc]
        if action == TrialScheduler.STOP and result["epoch"] >= self._epochs:
            return str(
                TrialScheduler.CONTINUE
            )  # it is trained to its end, and only has its bundle to write
        if action == TrialScheduler.STOP:
            self.stopped[trial.config[NUMBER]] = (
                f"after epoch {result['epoch']}, at {result[self._metric]:.4f}"  # type: ignore[attr-defined]
            )
        return action

    def on_trial_complete(self, controller: Any, trial: Any, result: dict[str, Any]) -> None:
        if (
            "epoch" in result
        ):  # else it reported nothing since it started, and there is nothing to note
            super().on_trial_complete(controller, trial, result)  # type: ignore[misc]


class _ASHA(_Remembering, ASHAScheduler):  # type: ignore[misc]
    pass


class _Median(_Remembering, MedianStoppingRule):  # type: ignore[misc]
    def on_trial_add(self, controller: Any, trial: Any) -> None:
        super().on_trial_add(controller, trial)
        self._stopped_trials.discard(
            trial
        )  # what it would say today of what was reported then stops nobody

    def _on_insufficient_samples(self, *_: Any) -> str:
        """A trial goes on where there are too few to compare it with; the base class would pause it, and start it anew."""
        return str(TrialScheduler.CONTINUE)


class _FIFO(FIFOScheduler):  # type: ignore[misc]
    stopped: dict[int, str] = {}  # noqa: RUF012 (nobody is)
