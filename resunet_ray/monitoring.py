"""What Prometheus is told of a run: the only home of the metrics' names, units and labels.

Each node of Ray serves a gauge as `ray_NAME`, a counter as `ray_NAME_total`.

A counter outlives its process: the node goes on serving it, and what a process had yet to tell when it was killed is missing. So
chunks are counted where each arrives once, in the driver, and not in the actors, which may die, or do a chunk twice.

A gauge is forgotten two of Ray's report intervals (20 seconds) after it was last set. So a thread sets it again every second
while the run lasts, and soon nothing is left of a run that ended, however it did.

Where no Ray was joined, nothing comes of all this.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from ray.util.metrics import Counter, Gauge

_AGAIN_SECONDS = 1.0  # half of the shortest time for which Ray keeps a gauge
_VALIDATION_PREFIX = "val_"  # of the history's columns


@dataclass(frozen=True)
class Run:
    """What tells a run from all others: the labels `output` and `run` of its metrics.

    A node keeps 2000 series of a counter, OpenTelemetry's limit, until its Ray is started anew; what comes later is only in the
    sum. A run takes one for each status, reason or stage.
    """

    output: str
    """Where it writes."""
    name: str
    """Its own below that."""


@dataclass(frozen=True)
class _Metric:
    kind: type[Counter] | type[Gauge]
    name: str
    description: str
    labels: tuple[str, ...] = ()


_IMAGES = _Metric(
    Counter,
    "resunet_segment_images",
    "Images that runs committed, by what became of them.",
    ("status",),
)
_REGIONS = _Metric(
    Counter,
    "resunet_segment_regions",
    "Images, and parts of slides, that went through the actors; of those that failed, where and why.",
    ("status", "error_stage", "error_type"),
)
_MEGAPIXELS = _Metric(Counter, "resunet_segment_megapixels", "Megapixels that were segmented.")
_SECONDS = _Metric(
    Counter,
    "resunet_segment_seconds",
    "Seconds that threads spent on a stage: read, model, post.",
    ("stage",),
)
_NETWORK_SECONDS = _Metric(
    Counter,
    "resunet_segment_network_seconds",
    "Seconds that networks were there to compute, at work or not.",
)
_CHUNKS_LEFT = _Metric(Gauge, "resunet_segment_chunks_left", "Chunks that a run has yet to do.")
_WAITING = _Metric(
    Gauge,
    "resunet_segment_waiting",
    "What waits in an actor for a thread of a stage: model, post.",
    ("stage",),
)

_EPOCH = _Metric(Gauge, "resunet_train_epoch", "Epochs that a training has done.")
_LOSS = _Metric(Gauge, "resunet_train_loss", "Mean training loss of the last epoch.")
_RATE = _Metric(
    Gauge,
    "resunet_train_images_per_second",
    "Images a second in the last epoch, all workers together.",
)
_VALIDATION = _Metric(
    Gauge, "resunet_train_validation", "Scores of the last validation.", ("score",)
)
_OF_COLUMN = {"epoch": _EPOCH, "train_loss": _LOSS, "images_per_second": _RATE}

_Reading = tuple[_Metric, tuple[str, ...], float]
"""A gauge, its own labels, its value."""


def count_chunk(
    run: Run,
    *,
    outcomes: Iterable[tuple[str, str, str, int]],
    pixels: int,
    seconds: Mapping[str, float],
    network_seconds: float,
) -> None:
    """Counts a chunk that is done.

    Args:
        run: whose it is.
        outcomes: status, stage and type of the error (empty where there was none), and how many regions came to that.
        pixels: of the regions that were segmented.
        seconds: that threads spent, by stage.
        network_seconds: for which networks were there since the chunk before, at work or not.
    """
    for status, stage, error, regions in outcomes:
        _count(_REGIONS, run, status, stage, error, value=regions)
    _count(_MEGAPIXELS, run, value=pixels / 1e6)
    for name, value in seconds.items():
        _count(_SECONDS, run, name, value=value)
    _count(_NETWORK_SECONDS, run, value=network_seconds)


def count_images(run: Run, statuses: Mapping[str, int]) -> None:
    """Counts the images of a run that is done.

    Args:
        run: that is done.
        statuses: how many images have which.
    """
    for status, images in statuses.items():
        _count(_IMAGES, run, status, value=images)


@contextmanager
def show_chunks(run: Run, left: Callable[[], int]) -> Iterator[None]:
    """Shows how many chunks are left, while the context lasts."""
    stop = _show(run, lambda: [(_CHUNKS_LEFT, (), left())])
    try:
        yield
    finally:
        stop()


def show_waiting(run: Run, waiting: Mapping[str, Callable[[], int]]) -> Callable[[], None]:
    """Shows what waits for each stage, as long as this process lives, or until what is returned is called.

    Args:
        run: that the process works for.
        waiting: counts it, by stage.
    """
    return _show(run, lambda: [(_WAITING, (stage,), count()) for stage, count in waiting.items()])


@contextmanager
def show_training(run: Run, values: Mapping[str, float]) -> Iterator[None]:
    """Shows how far a training is, while the context lasts.

    Args:
        run: the training.
        values: the last ones of the history's columns; they may change meanwhile.
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
    """Starts to set gauges to what is read, every second; returns what does so a last time."""
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
    if value > 0:  # Ray refuses to count nothing
        _build(metric).inc(value, _tags(metric, run, *labels))


@cache
def _build(metric: _Metric) -> Any:
    """Ray's own object, one in each process."""
    return metric.kind(metric.name, metric.description, ("output", "run", *metric.labels))


def _tags(metric: _Metric, run: Run, *labels: str) -> dict[str, str]:
    values = zip(("output", "run", *metric.labels), (run.output, run.name, *labels), strict=True)
    return {
        name: value.encode("ascii", "backslashreplace").decode() for name, value in values
    }  # Ray takes nothing else
