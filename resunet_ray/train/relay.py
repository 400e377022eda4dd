"""What a training says while it lasts, carried from its first worker to the process that started it, where a person looks.

    first worker: Reporter ──► Board, an actor without CPUs beside the driver ◄── driver: show_training

The training can do without: nobody waits for the board, and where it is lost, only what is shown is.
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
_TELL_SECONDS = 1.0  # between two looks at the loss, for which a GPU must be waited for
_LOOK_SECONDS = 0.5
_LAST_SECONDS = 2.0  # for the last words; an answer takes milliseconds

Line = tuple[int, str]
"""Level and text of a line of the log."""


class Board:
    """Where the first worker leaves lines and values, and the driver fetches them."""

    def __init__(self) -> None:
        self._lines: list[Line] = []
        self._values: dict[str, float] = {}

    def tell(self, lines: list[Line], values: Mapping[str, float]) -> None:
        """Adds lines; values replace those of the same name."""
        self._lines += lines
        self._values.update(values)

    def fetch(self) -> tuple[list[Line], dict[str, float]]:
        """The lines since the last time, and the latest values."""
        lines, self._lines = self._lines, []
        return lines, self._values


class Reporter(logging.Handler):
    """In a worker: tells the board what this package logs, and how far the training is. A context.

    Of all workers, the first tells all, the others only what is wrong.
    """

    def __init__(self, board: Any, *, rank: int) -> None:
        """Tells nothing yet; without a board (None) it never does."""
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
        self._tell(patience=_LAST_SECONDS)  # once what is under way has arrived
        self._tell(patience=_LAST_SECONDS)

    def emit(self, record: logging.LogRecord) -> None:
        """Tells a line."""
        self._lines.append((record.levelno, record.getMessage()))
        self._tell()

    @property
    def due(self) -> bool:
        """Whether it is time to tell values again."""
        return self._board is not None and self._first and time.monotonic() >= self._due

    def note(self, **values: float) -> None:
        """Tells values, from the first worker."""
        if not self._first:
            return
        with self.lock:  # type: ignore[union-attr]
            self._values |= values
            self._due = time.monotonic() + _TELL_SECONDS
            self._tell()

    def _tell(self, *, patience: float = 0.0) -> None:
        """Sends what has gathered, unless the board has not yet taken what came before: then it goes with the next."""
        if self._board is None:
            return
        with suppress(RayError):
            if self._told is not None and not ray.wait([self._told], timeout=patience)[0]:
                return
            if self._lines or self._values:
                self._told = self._board.tell.remote(self._lines, self._values)
                self._lines, self._values = [], {}


class FailureTeller(UserCallback):  # type: ignore[misc]
    """In Ray Train's controller: tells the board why workers failed, since the training may go on without a word."""

    def __init__(self, board: Any) -> None:
        """Tells the given board."""
        self._board = board

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ARG002
        """Tells of each worker that failed."""
        lines = [
            (logging.WARNING, f"training worker {rank} failed: {cause(error)}")
            for rank, error in worker_exceptions.items()
        ]
        with suppress(RayError):
            self._board.tell.remote(lines, {})


def cause(error: Exception) -> str:
    """The last line of an exception, which says what happened, below Ray's own wrapping."""
    lines = str(getattr(error, "_base_exc", error)).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


@contextmanager
def show_training(config: TrainConfig, *, images: int) -> Iterator[Any]:
    """Shows how far a training is, while the context lasts; gives the board to tell. None: nobody would see it.

    Args:
        config: of the training.
        images: that it trains on in all.
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
    """Fetches what the board has, again and again, and shows it."""
    asked, last = None, False
    try:
        while not last:
            last = ended.wait(_LOOK_SECONDS)
            asked = asked or board.fetch.remote()
            if ray.wait([asked], timeout=_LAST_SECONDS)[0]:
                answer, asked = asked, None
                with suppress(ActorUnavailableError):  # it may come back
                    lines, values = ray.get(answer)
                    _show(line, lines, values, config=config)
    except RayError as error:
        logger.warning(
            "the training goes on, but how far it is cannot be shown any more: %s", cause(error)
        )


def _show(
    line: ProgressLine, lines: list[Line], values: Mapping[str, float], *, config: TrainConfig
) -> None:
    for level, text in lines:
        logger.log(level, "%s", text)
    if "step" in values:
        parts = [
            f"epoch {values['epoch']:.0f} of {config.epochs}{', validating' if values['validating'] else ''}"
        ]
        parts += [f"loss {values['loss']:.4f}"] if "loss" in values else []
        parts += [f"{config.monitor} {values['score']:.4f}"] if "score" in values else []
        line.move_to(int(values["step"]) * config.batch_size, note=", ".join(parts))
