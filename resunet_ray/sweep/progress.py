"""A sweep as it runs, on standard error: a table that is drawn anew on a terminal, a line for each event elsewhere."""

import logging
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from resunet_ray.config import SweepConfig, lower_is_better
from resunet_ray.sweep.trials import Trial

logger = logging.getLogger(__name__)

_MOST_ROWS = 24  # the latest trials: a terminal has no more lines


class Progress:
    """What the trials of a sweep are at; a context, in which the terminal's table lives."""

    def __init__(self, config: SweepConfig, *, total: int) -> None:
        """Shows nothing yet; `total` trials are to end."""
        self._config, self._total = config, total
        self._begun = time.monotonic()
        self._scores: dict[int, tuple[int, float, float]] = {}  # of each trial: epoch, score, best score
        self._live: Live | None = None

    def __enter__(self) -> Self:
        self._begun = time.monotonic()
        if sys.stderr.isatty():
            self._live = Live(console=Console(stderr=True), refresh_per_second=1)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def note(self, number: int, *, epoch: int, score: float) -> None:
        """What a trial had come to before."""
        choose = min if lower_is_better(self._config.training.monitor) else max
        best = choose(score, self._scores[number][2]) if number in self._scores else score
        self._scores[number] = (epoch, score, best)

    def report(self, trials: Sequence[Trial], number: int, *, epoch: int, score: float) -> None:
        """A trial was validated."""
        self.note(number, epoch=epoch, score=score)
        monitor = self._config.training.monitor
        self._show(trials, f"{trials[number].name}: epoch {epoch} of {self._config.training.epochs}, {monitor} {score:.4f}")

    def end(self, trials: Sequence[Trial], trial: Trial) -> None:
        """A trial has ended."""
        self._show(trials, f"{trial.name}: {trial.status}{f' {trial.reason}' if trial.reason else ''}")

    def _show(self, trials: Sequence[Trial], event: str) -> None:
        if self._live is not None:
            self._live.update(self._draw(trials))
        else:
            counts = Counter(trial.status for trial in trials)
            ended = sum(counts.values()) - counts["unfinished"]
            logger.info("%s (%d of %d trials ended, %s)", event, ended, self._total, self._elapsed())

    def _elapsed(self) -> str:
        seconds = int(time.monotonic() - self._begun)
        return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"

    def _draw(self, trials: Sequence[Trial]) -> Table:
        training = self._config.training
        table = Table(title=f"{len(trials)} of {self._total} trials begun, {self._elapsed()}")
        names = list(trials[0].parameters)
        for heading in ("trial", "status", "epoch", training.monitor, "best", *names):
            table.add_column(heading, justify="left" if heading in ("trial", "status") else "right")
        for trial in trials[-_MOST_ROWS:]:
            epoch, score, best = self._scores.get(trial.number, (None, None, None))
            cells = [trial.name, trial.status, _cell(epoch), _cell(score), _cell(best)]
            table.add_row(*cells, *(_cell(trial.parameters[name]) for name in names))
        return table


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
