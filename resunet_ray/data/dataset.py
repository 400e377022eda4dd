"""A prepared data set, and which of its rows are read in which order.

The order of every epoch is a function of the seed and the epoch alone. Each worker reads its own share of that order, so a
resumed run sees what the uninterrupted one would have seen, no row is dropped to make shares equal, and none is seen twice.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from resunet_ray import storage
from resunet_ray.errors import InputError

DATASET_FILE = "dataset.json"

Row = dict[str, Any]


@dataclass(frozen=True)
class Span:
    """Consecutive rows of one Parquet row group, to be read by one task."""

    epoch: int
    shard: str
    row_group: int
    first: int
    """Number of the row group's first row within the split."""
    wanted: tuple[int, ...]
    """Rows to read, as numbers within the row group; a row that stands here twice is seen twice."""


@dataclass(frozen=True)
class Dataset:
    """What `prepare` wrote."""

    uri: str
    digest: str
    mpp: float | None
    splits: dict[str, int]
    shards: dict[str, list[int]]
    """Rows of each row group of each file."""

    def groups(self, split: str) -> list[tuple[str, int, int, int]]:
        """The row groups of a split: (file, row group, number of its first row within the split, rows)."""
        found, first = [], 0
        for shard in sorted(name for name in self.shards if name.rsplit("-", 1)[0] == split):
            for row_group, rows in enumerate(self.shards[shard]):
                found.append((shard, row_group, first, rows))
                first += rows
        return found

    def read_column(self, split: str, column: str) -> pd.Series:
        """One column of a split, in the order of its rows."""
        names = sorted({shard for shard, *_ in self.groups(split)})
        tables = [
            storage.read_table(storage.join(self.uri, name), columns=[column]) for name in names
        ]
        values: pd.Series = pa.concat_tables(tables)[column].to_pandas()
        return values


def open_dataset(uri: str, *, needs: tuple[str, ...] = ()) -> Dataset:
    """The data set at a location.

    Args:
        uri: the output of `prepare`.
        needs: splits that must have rows.

    Raises:
        InputError: it is missing or unfinished, or a split that is needed is empty.
    """
    uri = storage.absolute(uri)
    if not storage.exists(storage.join(uri, DATASET_FILE)):
        raise InputError(
            f"{uri} holds no {DATASET_FILE}: expected the output of a finished jobs/prepare.py"
        )
    content = json.loads(storage.read_bytes(storage.join(uri, DATASET_FILE)))
    dataset = Dataset(
        uri, **{name: content[name] for name in ("digest", "mpp", "splits", "shards")}
    )
    there = {name for name, _ in storage.list_files(uri, recursive=False)}
    if missing := sorted(dataset.shards.keys() - there):
        raise InputError(
            f"{uri} lacks {missing[0]}, which its {DATASET_FILE} names ({len(missing)} in all): copy it whole"
        )
    for split in needs:
        if not dataset.splits.get(split):
            known = ", ".join(f"{name} ({count})" for name, count in dataset.splits.items())
            raise InputError(f"{uri} has no images in split {split!r}: found {known}")
    return dataset


def plan_epoch(
    dataset: Dataset,
    split: str,
    *,
    epoch: int,
    seed: int,
    rank: int,
    workers: int,
    size: int,
    weights: np.ndarray | None,
) -> list[Span]:
    """What one worker reads in one training epoch: its share of all row groups in random order.

    Args:
        dataset: the data.
        split: which of its splits.
        epoch: number of the epoch.
        seed: the run's seed.
        rank: which worker, from 0.
        workers: how many there are.
        size: rows of the epoch over all workers, divisible by `workers`; all ranks get `size / workers`.
        weights: how often each row is drawn, relative to the others; None: each once, short of a remainder that differs
            from epoch to epoch.
    """
    rng = np.random.default_rng([seed, epoch])
    groups = dataset.groups(split)
    rows = sum(count for *_, count in groups)
    repeats = _draw_repeats(rows, size=size, weights=weights, rng=rng)
    draws = [
        (index, row)
        for index in rng.permutation(len(groups))
        for row in _rows_of(groups[index], repeats)
    ]
    share = size // workers
    mine = draws[rank * share : (rank + 1) * share]
    wanted: dict[int, list[int]] = {}
    for index, row in mine:
        wanted.setdefault(int(index), []).append(row)
    return [
        Span(epoch, groups[i][0], groups[i][1], groups[i][2], tuple(members))
        for i, members in wanted.items()
    ]


def _rows_of(group: tuple[str, int, int, int], repeats: np.ndarray) -> Iterator[int]:
    _, _, first, rows = group
    for row in range(rows):
        yield from [row] * int(repeats[first + row])


def _draw_repeats(
    rows: int, *, size: int, weights: np.ndarray | None, rng: np.random.Generator
) -> np.ndarray:
    """How often each row is seen, `size` in all, as near to its weight as whole numbers allow (systematic sampling)."""
    order = rng.permutation(rows)
    share = np.ones(rows) if weights is None else weights
    edges = np.cumsum(share[order]) / share.sum() * size
    edges[-1] = size
    drawn = np.diff(
        np.floor(edges + 1e-9 + (rng.random() if weights is not None else 0.0)), prepend=0
    )
    drawn[-1] += size - drawn.sum()
    repeats = np.empty(rows, dtype=np.int64)
    repeats[order] = drawn
    return repeats


def plan_once(dataset: Dataset, split: str, *, rank: int = 0, workers: int = 1) -> list[Span]:
    """What one worker reads so that all of them together read every row of a split exactly once."""
    return [
        Span(0, shard, row_group, first, wanted)
        for shard, row_group, first, rows in dataset.groups(split)
        if (wanted := tuple(row for row in range(rows) if (first + row) % workers == rank))
    ]


def read_span(dataset: Dataset, span: Span, *, columns: list[str]) -> Iterator[tuple[int, Row]]:
    """The wanted rows, in the order of the plan, each with its number within the row group."""
    rows = storage.read_table(
        storage.join(dataset.uri, span.shard), columns=columns, row_group=span.row_group
    ).to_pylist()
    yield from ((number, rows[number]) for number in span.wanted)
