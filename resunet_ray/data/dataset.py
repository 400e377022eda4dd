"""A prepared data set: its rows, and which of them are read in which order.

The order of every epoch depends on the seed and the epoch alone. Each worker reads its own share
of that order, so that a resumed run sees what an uninterrupted one would have seen. Without
weights, no row is seen twice in an epoch, and less than a batch is left out.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
from jaxtyping import Int32, UInt8

from resunet_ray import storage
from resunet_ray.data.images import decode_stored
from resunet_ray.errors import InputError

DATASET_FILE = "dataset.json"


@dataclass(frozen=True, kw_only=True)
class RowGroup:
    """Consecutive rows of one Parquet file: what one read takes."""

    shard: str
    number: int
    """Its number within the file."""
    first: int
    """Number of its first row within the split."""
    rows: int


@dataclass(frozen=True, kw_only=True)
class Span:
    """Rows of one row group that one task reads."""

    epoch: int
    group: RowGroup
    wanted: tuple[int, ...]
    """Rows to read, as numbers within the row group; a row listed twice is seen twice."""


@dataclass(frozen=True, kw_only=True)
class StoredPair:
    """An image and its mask, encoded as in a shard: what training reads of a row."""

    index: int
    """Its number within the split."""
    image: bytes
    mask: bytes

    def decode(self) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]]:
        """Return the image and its mask, 0 or 1."""
        return decode_stored(self.image), decode_stored(self.mask) // 255


@dataclass(frozen=True, kw_only=True)
class StoredImage(StoredPair):
    """The same with all that is known: what validation, scoring and heads read."""

    image_id: str
    modality: str | None
    mpp: float | None
    labels: bytes | None

    def decode_labels(self) -> Int32[np.ndarray, "h w"] | None:
        """Return the number of the nucleus at each pixel, 0 for background; None if unknown."""
        return None if self.labels is None else decode_stored(self.labels).astype(np.int32)


Stored = TypeVar("Stored", bound=StoredPair)


@dataclass(frozen=True)
class Dataset:
    """A data set that `prepare` wrote."""

    uri: str
    digest: str
    mpp: float | None
    """Microns per pixel; None if unknown or if images differ."""
    splits: dict[str, int]
    """Number of images in each split."""
    shards: dict[str, list[int]]
    """Rows in each row group of each file."""

    def groups(self, split: str) -> list[RowGroup]:
        """Return the row groups of a split."""
        found, first = [], 0
        for shard in sorted(name for name in self.shards if name.rsplit("-", 1)[0] == split):
            for number, rows in enumerate(self.shards[shard]):
                found.append(RowGroup(shard=shard, number=number, first=first, rows=rows))
                first += rows
        return found

    def read_column(self, split: str, column: str) -> pd.Series:
        """Return one column of a split, in the order of its rows."""
        names = sorted({group.shard for group in self.groups(split)})
        tables = [
            storage.read_table(storage.join(self.uri, name), columns=[column]) for name in names
        ]
        values: pd.Series = pa.concat_tables(tables)[column].to_pandas()
        return values

    def count_missing(self, split: str, column: str) -> int:
        """Return how many rows of a split have no value in a column, from the files' footers."""
        missing = 0
        for name in sorted({group.shard for group in self.groups(split)}):
            footer = storage.read_metadata(storage.join(self.uri, name))
            position = footer.schema.to_arrow_schema().get_field_index(column)
            for number in range(footer.num_row_groups):
                missing += footer.row_group(number).column(position).statistics.null_count
        return missing


def open_dataset(uri: str, *, needs: tuple[str, ...] = ()) -> Dataset:
    """Open the data set at a location.

    Args:
        uri: the output of `prepare`.
        needs: splits that must have images.

    Raises:
        InputError: the data set is missing, unfinished or incomplete, or a needed split is empty.
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
    present = {name for name, _ in storage.list_files(uri, recursive=False)}
    if missing := sorted(dataset.shards.keys() - present):
        raise InputError(
            f"{uri} lacks {missing[0]}, which its {DATASET_FILE} lists "
            f"({len(missing)} missing in all): copy the whole data set"
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
    """Plan what one worker reads in an epoch: its share of all row groups, in random order.

    Args:
        dataset: the data set.
        split: name of the split.
        epoch: number of the epoch.
        seed: the run's seed.
        rank: number of this worker, from 0.
        workers: number of workers.
        size: rows in the epoch over all workers, divisible by `workers`; each rank gets `size /
            workers`.
        weights: how often each row is drawn relative to the others. None: once each, except for a
            remainder that is left out and differs from epoch to epoch.
    """
    rng = np.random.default_rng([seed, epoch])
    groups = dataset.groups(split)
    rows = sum(group.rows for group in groups)
    repeats = _draw_repeats(rows, size=size, weights=weights, rng=rng)
    draws = [
        (int(number), row)
        for number in rng.permutation(len(groups))
        for row in _repeat_rows(groups[number], repeats)
    ]
    share = size // workers
    wanted: dict[int, list[int]] = {}
    for number, row in draws[rank * share : (rank + 1) * share]:
        wanted.setdefault(number, []).append(row)
    return [
        Span(epoch=epoch, group=groups[number], wanted=tuple(members))
        for number, members in wanted.items()
    ]


def _repeat_rows(group: RowGroup, repeats: np.ndarray) -> Iterator[int]:
    for row in range(group.rows):
        yield from [row] * int(repeats[group.first + row])


def _draw_repeats(
    rows: int, *, size: int, weights: np.ndarray | None, rng: np.random.Generator
) -> np.ndarray:
    """Draw how often each row is seen, `size` in all, by systematic sampling.

    Each count is as near to the row's weight as whole numbers allow.
    """
    order = rng.permutation(rows)
    share = np.ones(rows) if weights is None else weights
    edges = np.cumsum(share[order]) / share.sum() * size
    edges[-1] = size
    start = rng.random() if weights is not None else 0.0
    drawn = np.diff(np.floor(edges + 1e-9 + start), prepend=0)
    drawn[-1] += size - drawn.sum()
    repeats = np.empty(rows, dtype=np.int64)
    repeats[order] = drawn
    return repeats


def plan_once(dataset: Dataset, split: str, *, rank: int = 0, workers: int = 1) -> list[Span]:
    """Plan what one worker reads so that all workers together read each row exactly once."""
    return [
        Span(epoch=0, group=group, wanted=wanted)
        for group in dataset.groups(split)
        if (
            wanted := tuple(
                row for row in range(group.rows) if (group.first + row) % workers == rank
            )
        )
    ]


def read_span(dataset: Dataset, span: Span, *, kind: type[Stored]) -> Iterator[Stored]:
    """Yield the wanted rows of a span, in the order of the plan.

    Args:
        dataset: the data set.
        span: the rows to read.
        kind: what to make of each row: only the columns that it has as fields are read.
    """
    columns = [field.name for field in fields(kind) if field.name != "index"]
    uri = storage.join(dataset.uri, span.group.shard)
    rows = storage.read_table(uri, columns=columns, row_group=span.group.number).to_pylist()
    for number in span.wanted:
        yield kind(index=span.group.first + number, **rows[number])
