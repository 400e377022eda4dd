"""A sweep as it runs: a table of its trials over the live line on a terminal, a line for each event elsewhere."""

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

_MOST_ROWS = 24  # the latest trials: a terminal has no more lines


class TrialTable:
    """What the trials of a sweep are at."""

    def __init__(self, config: SweepConfig, *, total: int, trials: Sequence[Trial]) -> None:
        """Shows nothing yet.

        Args:
            config: of the sweep.
            total: trials that are to end.
            trials: there are; the caller's own, which grow and change.
        """
        self._config, self._total, self._trials = config, total, trials
        self._line: ProgressLine | None = None
        self._scores: dict[
            int, tuple[int, float, float]
        ] = {}  # of each trial: epoch, score, best score

    @contextmanager
    def show(self) -> Iterator[None]:
        """Shows it, while the context lasts."""
        total = self._total * self._config.training.epochs
        with show_progress(
            "epochs of trials", total=total, above=self._draw, lines=False
        ) as self._line:
            self._move()
            yield
        self._line = None

    def note(self, number: int, *, epoch: int, score: float) -> None:
        """What a trial had come to before."""
        choose = min if lower_is_better(self._config.training.monitor) else max
        best = choose(score, self._scores[number][2]) if number in self._scores else score
        self._scores[number] = (epoch, score, best)

    def report(self, number: int, *, epoch: int, score: float) -> None:
        """A trial was validated."""
        self.note(number, epoch=epoch, score=score)
        training = self._config.training
        self._tell(
            f"{self._trials[number].name}: epoch {epoch} of {training.epochs}, {training.monitor} {score:.4f}"
        )

    def end(self, trial: Trial) -> None:
        """A trial has ended."""
        failed = trial.status == "failed"
        words = [trial.name + ":", *([] if failed else [trial.status]), trial.reason or ""]
        self._tell(" ".join(words).strip(), always=failed)  # the table has no room for the reason

    def _tell(self, event: str, *, always: bool = False) -> None:
        """In a file an event is a line; on a terminal the table shows it."""
        self._move()
        if always or not (self._line and self._line.live):
            logger.info("%s (%s)", event, str(self._line))

    def _move(self) -> None:
        """An epoch that an ended trial will not train is done as well."""
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
        table = Table(title=f"{len(self._trials)} of {self._total} trials begun")
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
