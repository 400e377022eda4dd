"""What a person sees of work that goes on: one live line on a terminal, plain lines of the log elsewhere.

    images scored ━━━━━━━━━╸━━━━━━━━━━ 120 of 600, 12.3/s, 39 s left, 2 failed       on a terminal, drawn anew in its place
    120 of 600 images scored, 12.3/s, 39 s left, 2 failed                            in a file, every few seconds

Both end as one line of the log: `600 of 600 images scored in 52 s, 2 failed`.
"""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

logger = logging.getLogger(__name__)

_PACKAGE = __name__.partition(".")[0]
_LINE_SECONDS = 5.0  # between two lines in a file, at least
_LINE_FRACTION = (
    0.01  # of the time that has passed: work of hours gets some hundred lines, not thousands
)
_DRAWN_PER_SECOND = 2
_BAR_WIDTH = 20  # characters


def set_verbose() -> None:
    """Asks for all that Ray and its libraries say, in this process."""
    logging.getLogger(_PACKAGE).setLevel(logging.DEBUG)


def is_verbose() -> bool:
    """Whether all that Ray and its libraries say is asked for."""
    return logging.getLogger(_PACKAGE).isEnabledFor(logging.DEBUG)


def is_shown() -> bool:
    """Whether anybody sees how far work is: there is a terminal, or the log takes such lines."""
    return _is_terminal() or logger.isEnabledFor(logging.INFO)


def _is_terminal() -> bool:
    """Whether standard error is a terminal that can draw a line anew. Nothing in the environment makes one of a file."""
    stderr = getattr(
        sys.stderr, "rich_proxied_file", sys.stderr
    )  # what stands in for it beside a live line is none
    return bool(stderr.isatty()) and _console().is_interactive


@cache
def _console() -> Console:
    """Where live lines and log lines meet, so that they do not overwrite each other."""
    return Console(stderr=True)


class LogHandler(logging.Handler):
    """Log lines on standard error, above the live line where there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Shows a record."""
        try:
            text = self.format(record)
            if _is_terminal():
                _console().print(text, soft_wrap=True, markup=False, highlight=False, emoji=False)
            else:
                print(text, file=sys.stderr, flush=True)
        except Exception:  # noqa: BLE001 (as every handler: what cannot be logged does not end the work)
            self.handleError(record)


@dataclass
class Pace:
    """How fast something goes, out of how much of it was done when; times are seconds on any one clock."""

    begun: float
    """When the work began."""
    done: int = 0
    """How much is done; what was done before `begun` does not count for the rate."""

    def __post_init__(self) -> None:
        self._start = self._first_done = self.done
        self._first: float | None = None
        self._last, self._longest = self.begun, 0.0

    def arrive(self, done: int, *, now: float) -> None:
        """So much is done now."""
        if self._first is None:
            self._first, self._first_done = now, done
        self._longest = max(self._longest, now - self._last)
        self._last, self.done = now, done

    def rate(self, now: float) -> float:
        """How much is done in a second; 0 where nothing was done yet.

        The time before the first arrival is mostly that in which processes start: it counts until as much time has passed since.
        Results come in lumps, so the time since the last one counts only beyond the longest gap so far.
        """
        if self._first is None:
            return 0.0
        end = max(self._last, now - self._longest)
        if self._last - self._first > self._first - self.begun:
            return (self.done - self._first_done) / (end - self._first)
        return (self.done - self._start) / max(end - self.begun, 1e-9)


class ProgressLine:
    """How far one piece of work is; made by `show_progress`."""

    def __init__(self, what: str, *, total: int, live: bool, lines: bool) -> None:
        """Nothing is done yet."""
        self.live = live
        """Whether it is drawn on a terminal."""
        self._what, self._total, self._lines = what, total, lines and not live
        self._begun = time.monotonic()
        self._pace = Pace(self._begun)
        self._moved = False
        self._shown = -_LINE_SECONDS
        self._note = ""

    def advance(self, count: int, *, note: str | None = None, begun: float | None = None) -> None:
        """So much more is done.

        Args:
            count: how much.
            note: is shown instead of the one before.
            begun: when its processes were ready and the work itself began, in seconds since the epoch, if that is known.
        """
        if begun is not None:
            now = time.monotonic()
            self._pace.begun = min(
                now, max(self._begun, now - (time.time() - begun))
            )  # clocks of nodes differ
        self._arrive(self._pace.done + count, note)

    def move_to(self, done: int, *, note: str | None = None) -> None:
        """So much is done in all. What the first call says was done before, and so is what a later one takes back."""
        if not self._moved or done < self._pace.done:
            self._moved = True
            self._pace = Pace(time.monotonic(), done)
            self._note = self._note if note is None else note
        elif done > self._pace.done:
            self._arrive(done, note)
        elif note is not None:
            self._note = note

    def _arrive(self, done: int, note: str | None) -> None:
        now = time.monotonic()
        self._pace.arrive(done, now=now)
        self._note = self._note if note is None else note
        due = self._shown + max(_LINE_SECONDS, _LINE_FRACTION * (now - self._begun))
        if self._lines and now >= due and done != self._total:  # the last line is the end's
            self._shown = now
            logger.info("%s", str(self))

    def __str__(self) -> str:
        return self._describe(self._what)

    def end(self) -> str:
        """The last line."""
        seconds = time.monotonic() - self._begun
        return ", ".join(
            filter(None, [f"{self._count()} {self._what} in {_duration(seconds)}", self._note])
        )

    def draw(self) -> RenderableType:
        """The live line."""
        row = Table.grid(padding=(0, 1))
        row.add_column(no_wrap=True)
        row.add_column(width=_BAR_WIDTH)
        row.add_column(no_wrap=True, overflow="ellipsis")
        bar = ProgressBar(
            total=self._total or None,
            completed=self._pace.done,
            width=_BAR_WIDTH,
            pulse=not self._total,
        )
        row.add_row(self._what, bar, Text(self._describe("")))
        return row

    def _describe(self, what: str) -> str:
        now = time.monotonic()
        rate = self._pace.rate(now)
        left = max(0, self._total - self._pace.done)
        speed = _speed(rate) or f"{_duration(now - self._begun)} so far"
        parts = [
            f"{self._count()} {what}".strip(),
            speed,
            f"{_duration(left / rate)} left" if left and rate else "",
        ]
        return ", ".join(filter(None, [*parts, self._note]))

    def _count(self) -> str:
        return f"{self._pace.done} of {self._total}" if self._total else str(self._pace.done)


@contextmanager
def show_progress(
    what: str,
    *,
    total: int = 0,
    above: Callable[[], RenderableType] | None = None,
    lines: bool = True,
) -> Iterator[ProgressLine]:
    """Shows how far a piece of work is, while the context lasts.

    Args:
        what: is counted, with what becomes of it: "images scored".
        total: how many there are; 0: nobody knows.
        above: draws what stands above the live line on a terminal, and stays there in the end.
        lines: False: in a file, the caller says in lines of its own how far it is.
    """
    live = (
        _is_terminal() and not is_verbose()
    )  # what Ray draws and writes by itself would tear a live line
    line = ProgressLine(what, total=total, live=live, lines=lines)

    def draw() -> RenderableType:
        return line.draw() if above is None else Group(above(), line.draw())

    with (
        Live(
            console=_console(),
            get_renderable=draw,
            refresh_per_second=_DRAWN_PER_SECOND,
            transient=True,
            redirect_stdout=False,  # what is printed there is the job's to care for
        )
        if live
        else nullcontext()
    ):
        yield line
    if live and above is not None:
        _console().print(above())
    logger.info("%s", line.end())


def _speed(rate: float) -> str:
    """A rate in the unit that gives a number of a few digits."""
    for seconds, unit in ((1, "s"), (60, "min"), (3600, "h")):
        if rate * seconds >= 1:
            return f"{rate * seconds:.1f}/{unit}"
    return ""  # not even one an hour, or nothing yet


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    if whole < 6000:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole // 60 % 60:02} min"
