"""How work is progressing: one live line on a terminal, plain log lines elsewhere.

On a terminal, one line that is redrawn in place:

    images scored ━━━━━━━━━╸━━━━━━━━━━ 120 of 600, 12.3/s, 39 s left, 2 failed

In a file, one line every few seconds:

    120 of 600 images scored, 12.3/s, 39 s left, 2 failed

Both end with one log line: `600 of 600 images scored in 52 s, 2 failed`.
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
_LINE_SECONDS = 5.0  # minimum time between two lines in a file
# Minimum time between two lines, as a fraction of the elapsed time: work that takes hours logs
# a few hundred lines, not thousands.
_LINE_FRACTION = 0.01
_DRAWN_PER_SECOND = 2
_BAR_WIDTH = 20  # characters


def set_verbose() -> None:
    """Show everything that Ray and its libraries log in this process."""
    logging.getLogger(_PACKAGE).setLevel(logging.DEBUG)


def is_verbose() -> bool:
    """Whether everything that Ray and its libraries log is shown."""
    return logging.getLogger(_PACKAGE).isEnabledFor(logging.DEBUG)


def is_shown() -> bool:
    """Whether progress is visible: on a terminal, or in a log whose level includes INFO."""
    return _is_terminal() or logger.isEnabledFor(logging.INFO)


def _is_terminal() -> bool:
    """Whether standard error is a terminal that can redraw a line.

    Environment variables (FORCE_COLOR, TTY_COMPATIBLE) cannot turn a file into a terminal.
    """
    # While a live line is shown, Rich replaces stderr with a proxy that is not a terminal.
    stderr = getattr(sys.stderr, "rich_proxied_file", sys.stderr)
    return bool(stderr.isatty()) and _console().is_interactive


@cache
def _console() -> Console:
    """The console shared by live lines and log lines, so that they do not overwrite each other."""
    return Console(stderr=True)


class LogHandler(logging.Handler):
    """Writes log lines to standard error, above the live line if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        try:
            text = self.format(record)
            if _is_terminal():
                _console().print(text, soft_wrap=True, markup=False, highlight=False, emoji=False)
            else:
                print(text, file=sys.stderr, flush=True)
        except Exception:  # noqa: BLE001 (as in every handler: a logging error must not end the work)
            self.handleError(record)


@dataclass
class Pace:
    """The rate of some work, from how much was done when. Times are in seconds on any clock."""

    begun: float
    """When the work began."""
    done: int = 0
    """How much is done. What was done before `begun` does not count towards the rate."""

    def __post_init__(self) -> None:
        self._start = self._first_done = self.done
        self._first: float | None = None
        self._last, self._longest = self.begun, 0.0

    def arrive(self, done: int, *, now: float) -> None:
        """Record that `done` is done as of `now`."""
        if self._first is None:
            self._first, self._first_done = now, done
        self._longest = max(self._longest, now - self._last)
        self._last, self.done = now, done

    def rate(self, now: float) -> float:
        """Return how much is done per second, or 0 if nothing has been done yet.

        The time before the first result is mostly spent starting processes. It counts only until
        as much time again has passed. Results arrive in batches, so the time since the last one
        counts only beyond the longest gap so far.
        """
        if self._first is None:
            return 0.0
        end = max(self._last, now - self._longest)
        if self._last - self._first > self._first - self.begun:
            return (self.done - self._first_done) / (end - self._first)
        return (self.done - self._start) / max(end - self.begun, 1e-9)


class ProgressLine:
    """The progress of one piece of work, as yielded by `show_progress`."""

    def __init__(self, what: str, *, total: int, live: bool, lines: bool) -> None:
        """Start with nothing done."""
        self.live = live
        """Whether the line is drawn on a terminal."""
        self._what, self._total, self._lines = what, total, lines and not live
        self._begun = time.monotonic()
        self._pace = Pace(self._begun)
        self._moved = False
        self._shown = -_LINE_SECONDS
        self._note = ""

    def advance(self, count: int, *, note: str | None = None, begun: float | None = None) -> None:
        """Record that `count` more are done.

        Args:
            count: how many more.
            note: replaces the previous note.
            begun: when the processes were ready and the work itself began, in seconds since the
                epoch, if known.
        """
        if begun is not None:
            now = time.monotonic()
            # Clamped, because the clocks of nodes differ.
            self._pace.begun = min(now, max(self._begun, now - (time.time() - begun)))
        self._arrive(self._pace.done + count, note)

    def move_to(self, done: int, *, note: str | None = None) -> None:
        """Record that `done` are done in total.

        The count of the first call was done before this work began, and so was the count of a call
        that goes backwards: neither counts towards the rate.
        """
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
        if self._lines and now >= due and done != self._total:  # `end` writes the last line
            self._shown = now
            logger.info("%s", str(self))

    def __str__(self) -> str:
        return self._describe(self._what)

    def end(self) -> str:
        """Return the closing line."""
        seconds = time.monotonic() - self._begun
        return ", ".join(
            filter(None, [f"{self._count()} {self._what} in {_duration(seconds)}", self._note])
        )

    def draw(self) -> RenderableType:
        """Return the live line."""
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
    """Show the progress of a piece of work for as long as the context lasts.

    Args:
        what: what is counted and what happens to it, such as "images scored".
        total: how many there are, or 0 if unknown.
        above: draws what is shown above the live line on a terminal. It stays on the screen
            afterwards.
        lines: whether to log progress lines to a file. False if the caller logs its own.
    """
    # With --verbose, Ray's own bars and lines would break up a live line.
    live = _is_terminal() and not is_verbose()
    line = ProgressLine(what, total=total, live=live, lines=lines)

    def draw() -> RenderableType:
        return line.draw() if above is None else Group(above(), line.draw())

    with (
        Live(
            console=_console(),
            get_renderable=draw,
            refresh_per_second=_DRAWN_PER_SECOND,
            transient=True,
            redirect_stdout=False,  # the job itself takes care of what is printed there
        )
        if live
        else nullcontext()
    ):
        yield line
    if live and above is not None:
        _console().print(above())
    logger.info("%s", line.end())


def _speed(rate: float) -> str:
    """Return the rate per second, minute or hour: the first of these that makes it at least 1."""
    for seconds, unit in ((1, "s"), (60, "min"), (3600, "h")):
        if rate * seconds >= 1:
            return f"{rate * seconds:.1f}/{unit}"
    return ""  # less than one per hour, or nothing done yet


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    if whole < 6000:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole // 60 % 60:02} min"
