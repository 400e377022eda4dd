"""A prepared data set, and its rows as a stream that Ray Data reads and decodes on the CPUs.

The order of every epoch is a function of the seed and the epoch alone. Each worker streams its own share of that order, so a
resumed run sees what the uninterrupted one would have seen, no row is dropped to make shares equal, and none is seen twice.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
from jaxtyping import Int32, UInt8
from ray.data import ExecutionResources

from resunet_ray import storage
from resunet_ray.data.images import decode_stored
from resunet_ray.errors import InputError

DATASET_FILE = "dataset.json"

_AHEAD_BYTES = 2**28
"""Decoded rows that wait in the object store for one reader, bytes: 1,000 crops of 256×256."""

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
        tables = [storage.read_table(storage.join(self.uri, name), columns=[column]) for name in names]
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
        raise InputError(f"{uri} holds no {DATASET_FILE}: expected the output of a finished jobs/prepare.py")
    dataset = Dataset(uri=uri, **json.loads(storage.read_bytes(storage.join(uri, DATASET_FILE))))
    for split in needs:
        if not dataset.splits.get(split):
            known = ", ".join(f"{name} ({count})" for name, count in dataset.splits.items())
            raise InputError(f"{uri} has no images in split {split!r}: found {known}")
    return dataset


def plan_epoch(
    dataset: Dataset, split: str, *, epoch: int, seed: int, rank: int, workers: int, size: int, weights: np.ndarray | None
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
    lots = [(index, row) for index in rng.permutation(len(groups)) for row in _rows_of(groups[index], repeats)]
    share = size // workers
    mine = lots[rank * share : (rank + 1) * share]
    wanted: dict[int, list[int]] = {}
    for index, row in mine:
        wanted.setdefault(int(index), []).append(row)
    return [Span(epoch, groups[i][0], groups[i][1], groups[i][2], tuple(members)) for i, members in wanted.items()]


def _rows_of(group: tuple[str, int, int, int], repeats: np.ndarray) -> Iterator[int]:
    _, _, first, rows = group
    for row in range(rows):
        yield from [row] * int(repeats[first + row])


def _draw_repeats(rows: int, *, size: int, weights: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    """How often each row is seen, `size` in all, as near to its weight as whole numbers allow (systematic sampling)."""
    order = rng.permutation(rows)
    share = np.ones(rows) if weights is None else weights
    edges = np.cumsum(share[order]) / share.sum() * size
    edges[-1] = size
    drawn = np.diff(np.floor(edges + 1e-9 + (rng.random() if weights is not None else 0.0)), prepend=0)
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
    dataset: Dataset, spans: list[Span], *, columns: list[str], transform: Transform, num_cpus: float = 1.0
) -> ray.data.Dataset:
    """A lazy Ray Data set with one task for each span, in the order of the spans.

    Args:
        dataset: the data.
        spans: what to read; at least one.
        columns: columns to read.
        transform: applied to each row, in the task that read it.
        num_cpus: CPUs that Ray sets aside for each task.
    """

    def read(batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        (number,) = batch["id"]
        rows = list(_read_span(dataset, spans[number], columns=columns, transform=transform))
        return {name: [row[name] for row in rows] for name in rows[0]}

    data = ray.data.range(len(spans), override_num_blocks=len(spans)).map_batches(read, batch_size=None, num_cpus=num_cpus)
    options = data.context.execution_options
    options.preserve_order = True
    # Tasks run ahead of a slow reader until this is full: without it, until the whole object store is.
    options.resource_limits = ExecutionResources(object_store_memory=_AHEAD_BYTES)
    data.context.enable_progress_bars = False
    return data


def _read_span(dataset: Dataset, span: Span, *, columns: list[str], transform: Transform) -> Iterator[Row]:
    filesystem, path = storage.open_filesystem(storage.join(dataset.uri, span.shard))
    with filesystem.open_input_file(path) as file:
        rows = pq.ParquetFile(file).read_row_group(span.row_group, columns=columns).to_pylist()
    draws: Counter[int] = Counter()
    for number in span.wanted:
        yield transform(rows[number], epoch=span.epoch, index=span.first + number, draw=draws[number])
        draws[number] += 1


LABELLED = ["image_id", "modality", "image", "mask", "labels"]


def decode_labelled(row: Row, *, epoch: int, index: int, draw: int) -> Row:  # noqa: ARG001 (a Transform)
    """A `Transform`: image, mask and labels as raw bytes, since arrays of differing shapes have no stable Arrow type."""
    cv2.setNumThreads(1)  # Ray runs one task on each CPU
    image = decode_stored(row["image"])
    labels = decode_stored(row["labels"]).astype(np.int32).tobytes() if row["labels"] is not None else b""
    return {
        "index": index,
        "image_id": row["image_id"],
        "modality": row["modality"] or "",
        "height": image.shape[0],
        "width": image.shape[1],
        "image": image.tobytes(),
        "mask": (decode_stored(row["mask"]) // 255).tobytes(),
        "labels": labels,
    }


@dataclass(frozen=True)
class Labelled:
    """One image and its truth, in memory."""

    index: int
    """Its number within the split."""
    image_id: str
    modality: str | None
    image: UInt8[np.ndarray, "h w 3"]
    mask: UInt8[np.ndarray, "h w"]
    """0 or 1."""
    labels: Int32[np.ndarray, "h w"] | None


def labelled_images(block: dict[str, Any]) -> Iterator[Labelled]:
    """The images of a block of rows that `decode_labelled` made."""
    for number, index in enumerate(block["index"]):
        shape = int(block["height"][number]), int(block["width"][number])
        labels = block["labels"][number]
        yield Labelled(
            index=int(index),
            image_id=str(block["image_id"][number]),
            modality=str(block["modality"][number]) or None,
            image=np.frombuffer(block["image"][number], np.uint8).reshape(*shape, 3),
            mask=np.frombuffer(block["mask"][number], np.uint8).reshape(shape),
            labels=np.frombuffer(labels, np.int32).reshape(shape) if labels else None,
        )


def read_images(dataset: Dataset, spans: list[Span]) -> Iterator[Labelled]:
    """The images of some spans, read here and now, without Ray."""
    for span in spans:
        for row in _read_span(dataset, span, columns=LABELLED, transform=decode_labelled):
            yield from labelled_images({name: [value] for name, value in row.items()})
