"""Rows as a stream: Ray Data's tasks read and transform them on the CPUs, ahead of whoever consumes them."""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import ray
import ray.data

from resunet_ray.data.dataset import Dataset, Row, Span, read_span
from resunet_ray.progress import is_verbose, show_progress

_FIRST_PORTION = 1 / 8  # of the others


@runtime_checkable
class Transform(Protocol):
    """One stored row → the rows to give on."""

    def __call__(self, row: Row, *, epoch: int, index: int, draws: int) -> Iterator[Row]:
        """Transforms a row.

        Args:
            row: the columns asked for.
            epoch: of the plan.
            index: number of the row within the split.
            draws: how many rows to make of it.
        """


def stream_spans(
    dataset: Dataset,
    spans: Iterable[Span],
    *,
    columns: list[str],
    transform: Transform,
    portion: int,
) -> Iterator[dict[str, np.ndarray]]:
    """The rows of some spans as blocks of columns, in the order of the spans: one Ray task a span.

    Ray Data works on one portion while the one before is consumed, and rests when both are there; the first is small, so that the
    consumer starts early. One data set over all spans
    would do that by itself, but in Ray 2.60 its executor never sleeps while it waits for a slow consumer: measured in a training
    process on two cores, it took 60% of one, and training ran at half its speed.

    Args:
        dataset: the data.
        spans: what to read.
        columns: columns to read.
        transform: applied to each row, in the task that read it.
        portion: rows that are made at once, more or less, after the first; up to twice as many wait in the object store.
    """

    def materialise(part: list[Span]) -> ray.data.Dataset:
        def read(number: int) -> dict[str, list[Any]]:
            rows = list(
                _transform_span(dataset, part[number], columns=columns, transform=transform)
            )
            return {name: [row[name] for row in rows] for name in rows[0]}

        data = _map_numbers(read, len(part))
        data.context.execution_options.preserve_order = True
        return data.materialize()

    with ThreadPoolExecutor(max_workers=1) as pool:
        coming: deque[Future[ray.data.Dataset]] = deque()
        for part in _portions(spans, rows=portion):
            coming.append(pool.submit(materialise, part))
            if len(coming) == 2:
                yield from (
                    coming.popleft().result().iter_batches(batch_size=None, batch_format="numpy")
                )
        for last in coming:
            yield from last.result().iter_batches(batch_size=None, batch_format="numpy")


def _portions(spans: Iterable[Span], *, rows: int) -> Iterator[list[Span]]:
    part: list[Span] = []
    grown = False
    for span in spans:
        part.append(span)
        if sum(len(member.wanted) for member in part) >= (rows if grown else rows * _FIRST_PORTION):
            yield part
            part, grown = [], True
    if part:
        yield part


def run_tasks(task: Callable[[int], pa.Table], *, count: int, total: int, what: str) -> pa.Table:
    """Runs a function on the numbers 0 … `count` − 1 and puts the rows together, in no order.

    Where Ray was joined, on the cluster's CPUs; else one after the other in this process.

    Args:
        task: number → rows.
        count: how many.
        total: rows to expect in all; 0: nobody knows.
        what: they are, and what becomes of them: "images checked".
    """
    return pa.concat_tables(stream_tasks(task, count=count, total=total, what=what))


def stream_tasks(
    task: Callable[[int], pa.Table], *, count: int, total: int, what: str, in_order: bool = False
) -> Iterator[pa.Table]:
    """The same, but the rows as they come: those of one task in one table or, where they are many, in several.

    Args:
        task: number → rows.
        count: how many.
        total: rows to expect in all; 0: nobody knows.
        what: they are, and what becomes of them: "images checked".
        in_order: those of one task after those of the one before.
    """
    if not ray.is_initialized():
        yield from map(task, range(count))
        return
    data = _map_numbers(task, count)
    data.context.execution_options.preserve_order = in_order
    yield from _iterate(data, total=total, what=what)


def count_up(count: int) -> ray.data.Dataset:
    """The numbers 0 … `count` − 1 in a column `id`, one block each, to be mapped to work."""
    data = ray.data.range(count, override_num_blocks=count)
    data.context.enable_progress_bars = is_verbose()
    return data


def _map_numbers(task: Callable[[int], Any], count: int) -> ray.data.Dataset:
    def call(batch: dict[str, np.ndarray]) -> Any:
        (number,) = batch["id"]
        return task(int(number))

    return count_up(count).map_batches(call, batch_size=None)


def collect(data: ray.data.Dataset, *, total: int, what: str) -> pa.Table:
    """All rows of a lazy Ray Data set, which shows how far it is.

    Args:
        data: whose rows fit into this process.
        total: rows to expect; 0: nobody knows.
        what: they are, and what becomes of them: "images scored".
    """
    return pa.concat_tables(_iterate(data, total=total, what=what))


def _iterate(data: ray.data.Dataset, *, total: int, what: str) -> Iterator[pa.Table]:
    with show_progress(what, total=total) as line:
        for part in data.iter_batches(batch_size=None, batch_format="pyarrow"):
            line.advance(len(part))
            yield part


def _transform_span(
    dataset: Dataset, span: Span, *, columns: list[str], transform: Transform
) -> Iterator[Row]:
    """The rows of one span, read and transformed here and now, without Ray."""
    draws = Counter(span.wanted)
    for number, row in read_span(dataset, replace(span, wanted=tuple(draws)), columns=columns):
        yield from transform(row, epoch=span.epoch, index=span.first + number, draws=draws[number])
