"""The metrics of a run for Prometheus: their names, units and labels are defined only here.

Each Ray node serves a gauge as `ray_NAME` and a counter as `ray_NAME_total`.

A counter outlives its process: the node keeps serving it. What a process had not yet reported when
it was killed is lost. Chunks are therefore counted in the driver, where each arrives once, and not
in the actors, which may die or do a chunk twice.

Ray drops a gauge two report intervals (20 seconds) after it was last set. A thread therefore sets
it again every second while the run lasts, and the gauges of a run disappear soon after it ends, for
whatever reason.

Without Ray, nothing is reported.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from ray.util.metrics import Counter, Gauge

_AGAIN_SECONDS = 1.0  # half of the shortest time that Ray keeps a gauge
_VALIDATION_PREFIX = "val_"  # of columns of the history


@dataclass(frozen=True)
class Run:
    """Identifies a run by the labels `output` and `run` of its metrics.

    A node keeps at most 2000 series of a counter (OpenTelemetry's limit) until its Ray restarts.
    Later series are only included in the sum. A run uses one series per status, reason or stage.
    """

    output: str
    """Where the run writes."""
    name: str
    """Name of the run, unique within its output."""


@dataclass(frozen=True)
class _Metric:
    kind: type[Counter] | type[Gauge]
    name: str
    description: str
    labels: tuple[str, ...] = ()


_IMAGES = _Metric(
    Counter,
    "resunet_segment_images",
    "Images committed by runs, by status.",
    ("status",),
)
_REGIONS = _Metric(
    Counter,
    "resunet_segment_regions",
    "Images and slide regions processed by the actors; for failures, the stage and the error.",
    ("status", "error_stage", "error_type"),
)
_MEGAPIXELS = _Metric(Counter, "resunet_segment_megapixels", "Megapixels segmented.")
_SECONDS = _Metric(
    Counter,
    "resunet_segment_seconds",
    "Seconds that threads spent on a stage: read, model or post.",
    ("stage",),
)
_NETWORK_SECONDS = _Metric(
    Counter,
    "resunet_segment_network_seconds",
    "Seconds that networks were available, busy or idle.",
)
_CHUNKS_LEFT = _Metric(Gauge, "resunet_segment_chunks_left", "Chunks that a run has left to do.")
_WAITING = _Metric(
    Gauge,
    "resunet_segment_waiting",
    "Items waiting in an actor for a thread of a stage: model or post.",
    ("stage",),
)

_EPOCH = _Metric(Gauge, "resunet_train_epoch", "Epochs that a training run has completed.")
_LOSS = _Metric(Gauge, "resunet_train_loss", "Mean training loss of the last epoch.")
_RATE = _Metric(
    Gauge,
    "resunet_train_images_per_second",
    "Images per second in the last epoch, over all workers.",
)
_VALIDATION = _Metric(
    Gauge, "resunet_train_validation", "Scores of the last validation.", ("score",)
)
_OF_COLUMN = {"epoch": _EPOCH, "train_loss": _LOSS, "images_per_second": _RATE}

_Reading = tuple[_Metric, tuple[str, ...], float]
"""A gauge, the values of its own labels, its value."""


def count_chunk(
    run: Run,
    *,
    outcomes: Iterable[tuple[str, str, str, int]],
    pixels: int,
    seconds: Mapping[str, float],
    network_seconds: float,
) -> None:
    """Count a finished chunk.

    Args:
        run: the run it belongs to.
        outcomes: status, stage and type of the error (empty if none), and the number of regions
            with that outcome.
        pixels: pixels of the segmented regions.
        seconds: seconds that threads spent, by stage.
        network_seconds: seconds that networks were available since the previous chunk, busy or
            idle.
    """
    for status, stage, error, regions in outcomes:
        _count(_REGIONS, run, status, stage, error, value=regions)
    _count(_MEGAPIXELS, run, value=pixels / 1e6)
    for name, value in seconds.items():
        _count(_SECONDS, run, name, value=value)
    _count(_NETWORK_SECONDS, run, value=network_seconds)


def count_images(run: Run, statuses: Mapping[str, int]) -> None:
    """Count the images of a finished run.

    Args:
        run: the finished run.
        statuses: number of images by status.
    """
    for status, images in statuses.items():
        _count(_IMAGES, run, status, value=images)


@contextmanager
def show_chunks(run: Run, left: Callable[[], int]) -> Iterator[None]:
    """Report how many chunks are left while the context lasts."""
    stop = _show(run, lambda: [(_CHUNKS_LEFT, (), left())])
    try:
        yield
    finally:
        stop()


def show_waiting(run: Run, waiting: Mapping[str, Callable[[], int]]) -> Callable[[], None]:
    """Report what waits for each stage until the returned function is called or the process ends.

    Args:
        run: the run that this process works for.
        waiting: functions that count what is waiting, by stage.
    """
    return _show(run, lambda: [(_WAITING, (stage,), count()) for stage, count in waiting.items()])


@contextmanager
def show_training(run: Run, values: Mapping[str, float]) -> Iterator[None]:
    """Report the progress of a training run while the context lasts.

    Args:
        run: the training run.
        values: latest value of each column of the history. They may change meanwhile.
    """
    stop = _show(run, lambda: _read_columns(dict(values)))
    try:
        yield
    finally:
        stop()


def _read_columns(values: dict[str, float]) -> Iterator[_Reading]:
    for column, value in values.items():
        if column in _OF_COLUMN:
            yield _OF_COLUMN[column], (), value
        elif column.startswith(_VALIDATION_PREFIX):
            yield _VALIDATION, (column.removeprefix(_VALIDATION_PREFIX),), value


def _show(run: Run, read: Callable[[], Iterable[_Reading]]) -> Callable[[], None]:
    """Set gauges to what is read, every second. Returns a function that does so one last time."""
    ended = threading.Event()

    def repeat() -> None:
        over = last = False
        while not last:
            last = over
            for metric, labels, value in read():
                _build(metric).set(value, _tags(metric, run, *labels))
            over = over or ended.wait(_AGAIN_SECONDS)

    def stop() -> None:
        ended.set()
        thread.join()

    thread = threading.Thread(target=repeat, name="metrics", daemon=True)
    thread.start()
    return stop


def _count(metric: _Metric, run: Run, *labels: str, value: float) -> None:
    if value > 0:  # Ray refuses an increment of zero
        _build(metric).inc(value, _tags(metric, run, *labels))


@cache
def _build(metric: _Metric) -> Any:
    """Return Ray's metric object, one per process."""
    return metric.kind(metric.name, metric.description, ("output", "run", *metric.labels))


def _tags(metric: _Metric, run: Run, *labels: str) -> dict[str, str]:
    values = zip(("output", "run", *metric.labels), (run.output, run.name, *labels), strict=True)
    # Ray accepts only ASCII.
    return {name: value.encode("ascii", "backslashreplace").decode() for name, value in values}
