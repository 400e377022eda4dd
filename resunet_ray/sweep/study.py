"""The sweep as an Optuna study, which picks what to try next and which optuna-dashboard opens.

The study is rebuilt from the trials in storage whenever a sweep starts, so it can neither be lost
nor disagree with them. The randomness of trial N depends only on the sweep's seed and on N, however
often the sweep was interrupted.
"""

import logging
import sqlite3
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
import optuna
import pandas as pd
from optuna.trial import TrialState

from resunet_ray import storage
from resunet_ray.config import SweepConfig, lower_is_better
from resunet_ray.errors import ResUNetRayError
from resunet_ray.sweep.space import Parameters, Space, list_grid
from resunet_ray.sweep.trials import Trial, best_row, read_validations

logger = logging.getLogger(__name__)

STUDY_FILE = "study.db"

_STATES = {
    "completed": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}
_RANDOM_TRIALS = 10  # before the Parzen estimator takes over; Optuna's default


def count_trials(config: SweepConfig, space: Space) -> int:
    """Return the number of trials: a grid may have fewer points than `config.trials`."""
    return min(config.trials, len(list_grid(space))) if config.search == "grid" else config.trials


class Study:
    """Optuna's study of a sweep: a local file, copied to the sweep's output after every change."""

    def __init__(self, config: SweepConfig, space: Space, trials: Sequence[Trial]) -> None:
        """Build the study from the existing trials."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._config, self._space = config, space
        self._monitor = config.training.monitor
        self._folder = tempfile.TemporaryDirectory()
        self._path = Path(self._folder.name) / STUDY_FILE
        self._grid = list_grid(space) if config.search == "grid" else None
        if self._grid is not None:
            np.random.default_rng(config.training.seed).shuffle(self._grid)
        self._storage = optuna.storages.RDBStorage(f"sqlite:///{self._path}")
        self._study = optuna.create_study(
            storage=self._storage,
            study_name=f"{config.training.output.rpartition('/')[2]}: {self._monitor}",
            direction="minimize" if lower_is_better(self._monitor) else "maximize",
            sampler=self._sampler(0),
        )
        self._running: dict[int, optuna.Trial] = {}
        self._reported: dict[int, int] = {}
        for trial in trials:
            self._add(trial)
        self.save()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._storage.remove_session()
        self._storage.engine.dispose()
        self._folder.cleanup()

    def suggest(self, number: int) -> Parameters:
        """Return what the next trial, `number`, is to try."""
        return self._ask(None if self._grid is None else self._grid[number], number=number)

    def report(self, number: int, *, epoch: int, score: float) -> None:
        """Add a validation of a running trial.

        If the trial repeats an epoch after an interruption, the first validation counts.
        """
        if epoch > self._reported.get(number, 0):
            self._running[number].report(score, epoch)
            self._reported[number] = epoch

    def end(self, trial: Trial) -> None:
        """Record how a trial ended, with its best score."""
        if trial.reason is not None:
            self._running[trial.number].set_user_attr("reason", trial.reason)
        value = self._value(trial, read_validations(self._config.training.output, trial))
        self._study.tell(self._running.pop(trial.number), value, state=_STATES[trial.status])
        self.save()

    def save(self) -> None:
        """Copy the database to the output.

        A failure is only logged, because the record of the sweep is its trials.
        """
        try:
            with closing(sqlite3.connect(self._path)) as database:
                storage.write_bytes(
                    storage.join(self._config.training.output, STUDY_FILE), database.serialize()
                )
        except (OSError, ResUNetRayError) as error:
            logger.warning(
                "%s is not up to date: %s", STUDY_FILE, storage.mask_credentials(str(error))
            )

    def _ask(self, fixed: Mapping[str, Any] | None, *, number: int) -> Parameters:
        self._study.sampler = self._sampler(number)
        if fixed is not None:
            self._study.enqueue_trial(dict(fixed))
        asked = self._study.ask(self._space)
        assert asked.number == number, (
            f"Optuna's trial {asked.number} is not the sweep's trial {number}"
        )
        self._running[number] = asked
        return dict(asked.params)

    def _add(self, trial: Trial) -> None:
        """Add a trial from storage, with its validations, in the state it was left in."""
        validations = read_validations(self._config.training.output, trial)
        scores = {
            int(row["epoch"]): float(row[self._monitor]) for row in validations.to_dict("records")
        }
        if trial.status == "unfinished":
            self._ask(trial.parameters, number=trial.number)
            for epoch, score in scores.items():
                self.report(trial.number, epoch=epoch, score=score)
            return
        ended = optuna.trial.create_trial(
            state=_STATES[trial.status],
            value=self._value(trial, validations),
            params=trial.parameters,
            distributions=self._space,
            intermediate_values=scores,
            user_attrs={} if trial.reason is None else {"reason": trial.reason},
        )
        ended.datetime_start, ended.datetime_complete = (
            _local_time(trial.started_at),
            _local_time(trial.finished_at or ""),
        )
        self._study.add_trial(ended)

    def _value(self, trial: Trial, validations: pd.DataFrame) -> float | None:
        best = best_row(validations, self._monitor)
        return (
            float(best[self._monitor]) if best is not None and trial.status == "completed" else None
        )

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        seed = int(np.random.default_rng([self._config.training.seed, number]).integers(2**31))
        if self._config.search == "optuna":
            return optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=_RANDOM_TRIALS, constant_liar=True
            )
        return optuna.samplers.RandomSampler(seed=seed)


def _local_time(stamp: str) -> datetime:
    """Convert a time stamp to Optuna's format: local time without a zone."""
    return datetime.fromisoformat(stamp).astimezone().replace(tzinfo=None)


def measure_importance(
    config: SweepConfig, space: Space, trials: Sequence[Trial]
) -> dict[str, float]:
    """Measure by PED-ANOVA (Watanabe et al., 2023) which share of the score each field decides.

    All completed and stopped trials with a score count, a stopped one with the best score it
    reached. The result is empty if there are too few trials to tell.
    """
    study = optuna.create_study(
        direction="minimize" if lower_is_better(config.training.monitor) else "maximize"
    )
    for trial in trials:
        best = best_row(read_validations(config.training.output, trial), config.training.monitor)
        if best is not None and trial.status in ("completed", "stopped"):
            value = float(best[config.training.monitor])
            study.add_trial(
                optuna.trial.create_trial(params=trial.parameters, distributions=space, value=value)
            )
    varied = [name for name in space if len({trial.params[name] for trial in study.trials}) > 1]
    if len(study.trials) < 4 or not varied:
        return {}
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    found = optuna.importance.get_param_importances(study, evaluator=evaluator, params=varied)
    return {name: float(value) for name, value in found.items()}
