"""Log lines and progress of a training run, carried from its workers to the driver's terminal.

    worker: Reporter ──► Board, an actor without CPUs on the driver's node ◄── driver: show_training

Training does not depend on the board and never waits for it. If the board is lost, only the display
stops.
"""

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Self

import ray
from ray.exceptions import ActorUnavailableError, RayError
from ray.train import UserCallback
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from resunet_ray.config import TrainConfig
from resunet_ray.progress import ProgressLine, is_shown, show_progress

logger = logging.getLogger(__name__)

_PACKAGE = __name__.partition(".")[0]
_TELL_SECONDS = 1.0  # between two readings of the loss, each of which waits for the GPU
_FETCH_SECONDS = 0.5  # between two fetches by the driver
_ANSWER_SECONDS = 2.0  # how long to wait for the board, which normally answers in milliseconds

Line = tuple[int, str]
"""Level and text of a log line."""


class Board:
    """Holds log lines and values from the workers until the driver fetches them."""

    def __init__(self) -> None:
        self._lines: list[Line] = []
        self._values: dict[str, float] = {}

    def tell(self, lines: list[Line], values: Mapping[str, float]) -> None:
        """Add lines; values replace earlier ones of the same name."""
        self._lines += lines
        self._values.update(values)

    def fetch(self) -> tuple[list[Line], dict[str, float]]:
        """Return the lines since the previous fetch, and the latest values."""
        lines, self._lines = self._lines, []
        return lines, self._values


class Reporter(logging.Handler):
    """Sends a worker's log lines and progress to the board while its context is open.

    The first worker sends everything, the others only warnings and errors.
    """

    def __init__(self, board: Any, *, rank: int) -> None:
        """Prepare to send to the board; without one (None), nothing is ever sent."""
        super().__init__(logging.INFO if rank == 0 else logging.WARNING)
        self._board, self._first = board, rank == 0
        self._lines: list[Line] = []
        self._values: dict[str, float] = {}
        self._told: Any = None
        self._due = 0.0

    def __enter__(self) -> Self:
        logging.getLogger(_PACKAGE).addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger(_PACKAGE).removeHandler(self)
        self._tell(timeout=_ANSWER_SECONDS)  # sends the rest after the message under way
        self._tell(timeout=_ANSWER_SECONDS)  # waits until the rest has arrived

    def emit(self, record: logging.LogRecord) -> None:
        """Send a log line."""
        self._lines.append((record.levelno, record.getMessage()))
        self._tell()

    @property
    def due(self) -> bool:
        """Whether it is time to send values again."""
        return self._board is not None and self._first and time.monotonic() >= self._due

    def note(self, **values: float) -> None:
        """Send values, if this is the first worker."""
        if not self._first:
            return
        with self.lock:  # type: ignore[union-attr]
            self._values |= values
            self._due = time.monotonic() + _TELL_SECONDS
            self._tell()

    def _tell(self, *, timeout: float = 0.0) -> None:
        """Send what has accumulated, or keep it for later if the last message is still on its way.

        Args:
            timeout: how long to wait for the last message to arrive, seconds.
        """
        if self._board is None:
            return
        with suppress(RayError):
            if self._told is not None and not ray.wait([self._told], timeout=timeout)[0]:
                return
            if self._lines or self._values:
                self._told = self._board.tell.remote(self._lines, self._values)
                self._lines, self._values = [], {}


class FailureTeller(UserCallback):  # type: ignore[misc]
    """Tells the board why workers failed: Ray Train may restart them without a word.

    Ray Train calls it in its controller.
    """

    def __init__(self, board: Any) -> None:
        """Send to the given board."""
        self._board = board

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ARG002
        """Send a line for each worker that failed."""
        lines = [
            (logging.WARNING, f"training worker {rank} failed: {cause(error)}")
            for rank, error in worker_exceptions.items()
        ]
        with suppress(RayError):
            self._board.tell.remote(lines, {})


def cause(error: Exception) -> str:
    """Return the last line of the exception that Ray wrapped, which says what happened."""
    lines = str(getattr(error, "_base_exc", error)).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


@contextmanager
def show_training(config: TrainConfig, *, images: int) -> Iterator[Any]:
    """Show the progress of a training run while the context is open.

    Args:
        config: configuration of the run.
        images: total number of images that it trains on.

    Yields:
        The board to report to, or None if progress is not shown.
    """
    if not is_shown():
        yield None
        return
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = ray.remote(Board).options(num_cpus=0, scheduling_strategy=here).remote()
    ended = threading.Event()
    with show_progress("images trained on", total=images) as line:
        thread = threading.Thread(
            target=_follow, args=(board, ended, line, config), name="progress", daemon=True
        )
        thread.start()
        try:
            yield board
        finally:
            ended.set()
            thread.join()
            with suppress(RayError):
                ray.kill(board)


def _follow(board: Any, ended: threading.Event, line: ProgressLine, config: TrainConfig) -> None:
    """Fetch from the board and show what it holds, until the training has ended."""
    asked, last = None, False
    try:
        while not last:
            last = ended.wait(_FETCH_SECONDS)
            asked = asked or board.fetch.remote()
            if ray.wait([asked], timeout=_ANSWER_SECONDS)[0]:
                answer, asked = asked, None
                with suppress(ActorUnavailableError):  # it may come back
                    lines, values = ray.get(answer)
                    _show(line, lines, values, config=config)
    except RayError as error:
        logger.warning("training continues, but its progress is no longer shown: %s", cause(error))


def _show(
    line: ProgressLine, lines: list[Line], values: Mapping[str, float], *, config: TrainConfig
) -> None:
    for level, text in lines:
        logger.log(level, "%s", text)
    if "step" in values:
        parts = [f"epoch {values['epoch']:.0f} of {config.epochs}"]
        parts += ["validating"] if values["validating"] else []
        parts += [f"loss {values['loss']:.4f}"] if "loss" in values else []
        parts += [f"{config.monitor} {values['score']:.4f}"] if "score" in values else []
        line.move_to(int(values["step"]) * config.batch_size, note=", ".join(parts))
