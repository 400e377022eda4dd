"""Numbered tasks: Ray Data calls a function with 0, 1, 2 … and collects the rows it returns."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

import numpy as np
import pyarrow as pa
import ray
import ray.data

from resunet_ray.progress import is_verbose, show_progress

Columns = dict[str, np.ndarray]
"""Rows as Ray Data carries them in NumPy: one array per column."""


def run_tasks(task: Callable[[int], pa.Table], *, count: int, total: int, what: str) -> pa.Table:
    """Run tasks and return the rows of all of them, in no particular order.

    Tasks run on the cluster's CPUs if this process has joined Ray, otherwise one after another in
    this process.

    Args:
        task: number → rows.
        count: number of tasks.
        total: expected number of rows over all tasks; 0 if unknown.
        what: progress label that says what the rows are and what is done to them: "images checked".
    """
    return pa.concat_tables(stream_tasks(task, count=count, total=total, what=what))


def stream_tasks(
    task: Callable[[int], pa.Table], *, count: int, total: int, what: str, in_order: bool = False
) -> Iterator[pa.Table]:
    """Run tasks like `run_tasks`, but yield rows as they arrive.

    The rows of one task come as one table or, if there are many, as several.

    Args:
        task: number → rows.
        count: number of tasks.
        total: expected number of rows over all tasks; 0 if unknown.
        what: progress label that says what the rows are and what is done to them: "images checked".
        in_order: yield rows in the order of the tasks.
    """
    if not ray.is_initialized():
        yield from map(task, range(count))
        return
    data = map_numbers(task, count=count)
    data.context.execution_options.preserve_order = in_order
    yield from _iterate(data, total=total, what=what)


def map_numbers(task: Callable[[int], pa.Table | Columns], *, count: int) -> ray.data.Dataset:
    """Return a lazy Ray Data set of the rows of `count` tasks, one block per task."""

    def call(batch: Columns) -> pa.Table | Columns:
        (number,) = batch["id"]
        return task(int(number))

    return count_up(count).map_batches(call, batch_size=None)


def count_up(count: int) -> ray.data.Dataset:
    """Return the numbers 0 to `count` − 1 in a column `id`, one block each, to map to work."""
    data = ray.data.range(count, override_num_blocks=count)
    data.context.enable_progress_bars = is_verbose()
    return data


def collect(data: ray.data.Dataset, *, total: int, what: str) -> pa.Table:
    """Return all rows of a lazy Ray Data set, showing progress.

    Args:
        data: must fit into this process's memory.
        total: expected number of rows; 0 if unknown.
        what: progress label that says what the rows are and what is done to them: "images scored".
    """
    return pa.concat_tables(_iterate(data, total=total, what=what))


def _iterate(data: ray.data.Dataset, *, total: int, what: str) -> Iterator[pa.Table]:
    with show_progress(what, total=total) as line:
        for part in data.iter_batches(batch_size=None, batch_format="pyarrow"):
            line.advance(len(part))
            yield part


Item = TypeVar("Item")
Done = TypeVar("Done")


def map_ahead(
    pool: Executor, function: Callable[[Item], Done], items: Iterable[Item], *, depth: int
) -> Iterator[Done]:
    """Yield `function(item)` for each item, in order.

    At most `depth` results are in progress or waiting to be taken; `Executor.map` would start all
    of them at once and hold every result.
    """
    begun: deque[Future[Done]] = deque()
    for item in items:
        begun.append(pool.submit(function, item))
        if len(begun) >= depth:
            yield begun.popleft().result()
    while begun:
        yield begun.popleft().result()
