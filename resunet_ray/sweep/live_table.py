"""The progress of a sweep: on a terminal a table of its trials, elsewhere one line per event."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.table import Table

from resunet_ray.config import SweepConfig, lower_is_better
from resunet_ray.progress import ProgressLine, show_progress
from resunet_ray.sweep.trials import Trial

logger = logging.getLogger(__name__)

_MOST_ROWS = 24  # the latest trials: what fits on a terminal


class TrialTable:
    """The trials of a sweep and how far each has come."""

    def __init__(self, config: SweepConfig, *, total: int, trials: Sequence[Trial]) -> None:
        """Show nothing until `show`.

        Args:
            config: configuration of the sweep.
            total: number of trials the sweep will have.
            trials: the trials so far. The caller's own list, which it extends and updates.
        """
        self._config, self._total, self._trials = config, total, trials
        self._line: ProgressLine | None = None
        # Of each trial: epoch, score, best score.
        self._scores: dict[int, tuple[int, float, float]] = {}

    @contextmanager
    def show(self) -> Iterator[None]:
        """Show the table until the context ends."""
        total = self._total * self._config.training.epochs
        with show_progress(
            "epochs of trials", total=total, above=self._draw, lines=False
        ) as self._line:
            self._move()
            yield
        self._line = None

    def note(self, number: int, *, epoch: int, score: float) -> None:
        """Record a validation without announcing it, as for one from before the sweep resumed."""
        choose = min if lower_is_better(self._config.training.monitor) else max
        best = choose(score, self._scores[number][2]) if number in self._scores else score
        self._scores[number] = (epoch, score, best)

    def report(self, number: int, *, epoch: int, score: float) -> None:
        """Record and announce a trial's validation."""
        self.note(number, epoch=epoch, score=score)
        name, training = self._trials[number].name, self._config.training
        self._tell(f"{name}: epoch {epoch} of {training.epochs}, {training.monitor} {score:.4f}")

    def end(self, trial: Trial) -> None:
        """Announce that a trial has ended."""
        failed = trial.status == "failed"
        words = [trial.name + ":", *([] if failed else [trial.status]), trial.reason or ""]
        # The table has no room for the reason of a failure.
        self._tell(" ".join(words).strip(), always=failed)

    def _tell(self, event: str, *, always: bool = False) -> None:
        """Log an event, unless a live table shows it."""
        self._move()
        if always or not (self._line and self._line.live):
            logger.info("%s (%s)", event, str(self._line))

    def _move(self) -> None:
        """Update the line. All epochs of an ended trial count as done, trained or not."""
        assert self._line is not None, "trials only run while they are shown"
        epochs = self._config.training.epochs
        counts = Counter(trial.status for trial in self._trials)
        ended = counts.total() - counts["unfinished"]
        running = [
            self._scores.get(trial.number, (0,))[0]
            for trial in self._trials
            if trial.status == "unfinished"
        ]
        self._line.move_to(
            ended * epochs + sum(running),
            note=f"{ended} of {self._total} trials ended{self._best()}",
        )

    def _best(self) -> str:
        monitor = self._config.training.monitor
        choose = min if lower_is_better(monitor) else max
        scores = [best for _, _, best in self._scores.values()]
        return f", best {monitor} {choose(scores):.4f}" if scores else ""

    def _draw(self) -> Table:
        training, trials = self._config.training, self._trials[-_MOST_ROWS:]
        table = Table(title=f"{len(self._trials)} of {self._total} trials started")
        names = list(trials[0].parameters) if trials else []
        for heading in ("trial", "status", "epoch", training.monitor, "best", *names):
            table.add_column(heading, justify="left" if heading in ("trial", "status") else "right")
        for trial in trials:
            epoch, score, best = self._scores.get(trial.number, (None, None, None))
            cells = [trial.name, trial.status, _cell(epoch), _cell(score), _cell(best)]
            table.add_row(*cells, *(_cell(trial.parameters[name]) for name in names))
        return table


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
