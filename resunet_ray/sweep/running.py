"""A running sweep: which trial is next, and the record of what happens to each."""

import logging
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from resunet_ray import storage
from resunet_ray.bundle_info import BUNDLE_FILE
from resunet_ray.config import SweepConfig
from resunet_ray.errors import RunError
from resunet_ray.sweep.live_table import TrialTable
from resunet_ray.sweep.scheduling import build_scheduler
from resunet_ray.sweep.space import Space
from resunet_ray.sweep.study import Study, count_trials
from resunet_ray.sweep.trials import (
    Trial,
    end_trial,
    read_error,
    read_validations,
    start_trial,
    trial_folder,
)
from resunet_ray.train.tracking import save_hyperparameters

logger = logging.getLogger(__name__)


class RunningSweep:
    """The trials of a sweep while Tune runs them."""

    def __init__(
        self,
        config: SweepConfig,
        space: Space,
        study: Study,
        trials: Sequence[Trial],
        lease: storage.Lease,
    ) -> None:
        self._lease = lease
        self._most = count_trials(config, space)
        self.trials = list(trials)
        self._config, self._study = config, study
        self._output = config.training.output
        self._waiting = deque(trial.number for trial in trials if trial.status == "unfinished")
        self._started = time.monotonic()
        self.scheduler = build_scheduler(config, trials)
        self.table = TrialTable(config, total=self._most, trials=self.trials)
        for trial in trials:
            for row in read_validations(self._output, trial).to_dict("records"):
                self.table.note(
                    trial.number, epoch=int(row["epoch"]), score=row[config.training.monitor]
                )

    @property
    def left(self) -> int:
        """Number of trials to resume or still to create."""
        return count_left(self.trials, most=self._most)

    def start_next(self) -> Trial | None:
        """Return the next trial to run, interrupted ones first; None if there is none."""
        self._lease.check()
        if self._waiting:
            return self.trials[self._waiting.popleft()]
        number = len(self.trials)
        if number >= self._most:
            return None
        trial = start_trial(self._output, number=number, parameters=self._study.suggest(number))
        self.trials.append(trial)
        folder, metric = trial_folder(self._output, trial.number), self._config.training.monitor
        save_hyperparameters(folder, trial.parameters, metric=metric)
        return trial

    def report(self, number: int, result: dict[str, Any]) -> None:
        """Record a validation of a trial."""
        self._lease.check()
        if self.trials[number].status != "unfinished":
            return
        score = result[self._config.training.monitor]
        self._study.report(number, epoch=result["epoch"], score=score)
        self._study.save()
        self.table.report(number, epoch=result["epoch"], score=score)

    def end(self, number: int, *, error: str | None = None) -> None:
        """Record how a trial ended, as told by Tune, the trial's own files or the scheduler.

        If none of them tells, the trial stays unfinished and resumes next time.
        """
        trial = self.trials[number]
        if trial.status != "unfinished":
            return
        reason = error or read_error(self._output, trial)
        if reason is not None:
            ended = end_trial(
                self._output, trial, status="failed", reason=storage.mask_credentials(reason)
            )
        elif storage.exists(
            storage.join(trial_folder(self._output, trial.number), "bundle", BUNDLE_FILE)
        ):
            ended = end_trial(self._output, trial, status="completed")
        elif number in self.scheduler.stopped:
            ended = end_trial(
                self._output, trial, status="stopped", reason=self.scheduler.stopped[number]
            )
        else:
            return
        self.trials[number] = ended
        self._study.end(ended)
        self.table.end(ended)

    def require_progress(self) -> None:
        """Raise RunError if trials are left although the time is not up."""
        left, hours = self.left, self._config.hours
        up = hours is not None and time.monotonic() - self._started >= hours * 3600
        if left and not up:
            raise RunError(
                f"the sweep was interrupted with {left} trials left: run the same command to resume"
            )
        if up:
            logger.info(
                "the %g hours are over with %d trials left: run the same command to resume",
                hours,
                left,
            )


def count_left(trials: Sequence[Trial], *, most: int) -> int:
    """Return the number of trials to resume or still to create."""
    return sum(trial.status == "unfinished" for trial in trials) + max(0, most - len(trials))
