"""Rows as a stream: Ray Data's tasks read and transform them on the CPUs, ahead of whoever consumes them."""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import ray.data

from resunet_ray.data.dataset import Dataset, Row, Span, read_span

logger = logging.getLogger(__name__)

_PROGRESS_SECONDS = 5


@runtime_checkable
class Transform(Protocol):
    """One stored row → the row to give on."""

    def __call__(self, row: Row, *, epoch: int, index: int, draw: int) -> Row:
        """Transforms a row.

        Args:
            row: the columns asked for.
            epoch: of the plan.
            index: number of the row within the split.
            draw: 0 where the row is seen for the first time in its span, then 1, 2 …
        """


def stream_spans(
    dataset: Dataset, spans: Iterable[Span], *, columns: list[str], transform: Transform, portion: int
) -> Iterator[dict[str, np.ndarray]]:
    """The rows of some spans as blocks of columns, in the order of the spans: one Ray task a span.

    Ray Data works on one portion while the one before is consumed, and rests when both are there. One data set over all spans
    would do that by itself, but in Ray 2.60 its executor never sleeps while it waits for a slow consumer: measured in a training
    process on two cores, it took 60% of one, and training ran at half its speed.

    Args:
        dataset: the data.
        spans: what to read.
        columns: columns to read.
        transform: applied to each row, in the task that read it.
        portion: rows that are made at once, more or less; up to twice as many wait in the object store.
    """

    def materialise(part: list[Span]) -> ray.data.Dataset:
        def read(number: int) -> dict[str, list[Any]]:
            rows = list(_transform_span(dataset, part[number], columns=columns, transform=transform))
            return {name: [row[name] for row in rows] for name in rows[0]}

        data = _map_numbers(read, len(part))
        data.context.execution_options.preserve_order = True
        return data.materialize()

    with ThreadPoolExecutor(max_workers=1) as pool:
        coming: deque[Future[ray.data.Dataset]] = deque()
        for part in _portions(spans, rows=portion):
            coming.append(pool.submit(materialise, part))
            if len(coming) == 2:
                yield from coming.popleft().result().iter_batches(batch_size=None, batch_format="numpy")
        for last in coming:
            yield from last.result().iter_batches(batch_size=None, batch_format="numpy")


def _portions(spans: Iterable[Span], *, rows: int) -> Iterator[list[Span]]:
    part: list[Span] = []
    for span in spans:
        part.append(span)
        if sum(len(member.wanted) for member in part) >= rows:
            yield part
            part = []
    if part:
        yield part


def run_tasks(task: Callable[[int], pa.Table], *, count: int, total: int, what: str) -> pa.Table:
    """Runs a function on the numbers 0 … `count` − 1 on the cluster's CPUs and puts the rows together, in no order.

    Args:
        task: number → rows.
        count: how many.
        total: rows to expect in all, for the log.
        what: they are, for the log.
    """
    return collect(_map_numbers(task, count), total=total, what=what)


def _map_numbers(task: Callable[[int], Any], count: int) -> ray.data.Dataset:
    def call(batch: dict[str, np.ndarray]) -> Any:
        (number,) = batch["id"]
        return task(int(number))

    data = ray.data.range(count, override_num_blocks=count).map_batches(call, batch_size=None)
    data.context.enable_progress_bars = False
    return data


def collect(data: ray.data.Dataset, *, total: int, what: str) -> pa.Table:
    """All rows of a lazy Ray Data set; how far it has come is logged every few seconds.

    Args:
        data: whose rows fit into this process.
        total: rows to expect.
        what: they are, for the log.
    """
    parts, done, shown = [], 0, time.monotonic()
    for part in data.iter_batches(batch_size=None, batch_format="pyarrow"):
        parts.append(part)
        done += len(part)
        if time.monotonic() - shown > _PROGRESS_SECONDS or done == total:
            shown = time.monotonic()
            logger.info("%d of %d %s", done, total, what)
    return pa.concat_tables(parts)


def _transform_span(dataset: Dataset, span: Span, *, columns: list[str], transform: Transform) -> Iterator[Row]:
    """The rows of one span, read and transformed here and now, without Ray."""
    draws: Counter[int] = Counter()
    for number, row in read_span(dataset, span, columns=columns):
        yield transform(row, epoch=span.epoch, index=span.first + number, draw=draws[number])
        draws[number] += 1
