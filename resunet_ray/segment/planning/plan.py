"""The plan: what was found less what is done, cut into chunks. One chunk is one task, one file of regions, one commit."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from resunet_ray import storage
from resunet_ray.schema import PLAN
from resunet_ray.segment import layout
from resunet_ray.segment.planning.grid import block_of
from resunet_ray.segment.planning.ledger import ID_BYTES, Ledger, SeenIds, contains
from resunet_ray.segment.planning.listing import Found
from resunet_ray.segment.planning.survey import may_be_slide
from resunet_ray.segment.rows import Row, fail, is_slide

_BATCH = 2**16  # images that are compared with the ledger at once
_CHUNKS_PER_FILE = 128
_CHUNK_SIZES = ((1024, 16), (4096, 64), (2**62, 256))
"""Images in one chunk: small first, for few images on many nodes; larger when there are many, for fewer files."""
_SURVEYED = 512  # files that are looked at together
_CHUNK_BYTES = 2**28
"""A chunk of so many bytes is full, however few images it has: its masks and instances are held until it is written."""


_PART_CHUNKS = 16
"""Chunks that are committed together; those of a slide are whatever their number."""

Survey = Callable[[list[Row]], Iterator[Iterator[Row]]]
"""Rows of files that may be slides → for each file, in no order, the rows of its regions; each is to be taken before the next."""


@dataclass
class Plan:
    """How much there is to do, and what was left out."""

    images: int = 0
    chunks: int = 0
    regions: int = 0
    parts: list[int] = field(default_factory=list)
    """First chunks of what is committed together: whole images."""
    listed: int = 0
    done: int = 0
    """Listed, and segmented by an earlier run."""
    failed_before: int = 0
    """Listed, failed in an earlier run, and not tried again."""
    repeated: int = 0
    """Listed more than once."""
    retried: list[str] = field(default_factory=list)
    """Ids of the images that failed before and are tried again."""

    @classmethod
    def read(cls, saved: dict[str, Any]) -> "Plan":
        """That in a run's record. Version 0.1.0 said lots."""
        return cls(**{{"lots": "chunks"}.get(name, name): value for name, value in saved.items()})


def write_plan(
    folder: str,
    found: Iterable[Found],
    *,
    ledger: Ledger,
    retry_failed: bool,
    survey: Survey | None = None,
) -> Plan:
    """Writes the plan of a run, file by file, in memory that does not grow with it.

    Args:
        folder: the run's.
        found: the listing.
        ledger: what is done.
        retry_failed: plan what failed before again.
        survey: looks at what may be slides; None: each counts as one region.
    """
    plan = Plan()
    rows = (_row(*new) for new in _new(found, plan, ledger=ledger, retry_failed=retry_failed))
    files = _cut(_surveyed(rows, survey), plan)
    for number, chunks in enumerate(files):
        storage.write_bytes(layout.plan_uri(folder, number), _encode(chunks))
    return plan


def count_plan(found: Iterable[Found], *, ledger: Ledger, retry_failed: bool) -> Plan:
    """What `write_plan` would plan; what may be a slide counts as one region."""
    plan = Plan()
    rows = (_row(*new) for new in _new(found, plan, ledger=ledger, retry_failed=retry_failed))
    for _ in _cut(rows, plan):
        pass
    return plan


def _surveyed(rows: Iterable[Row], survey: Survey | None) -> Iterator[Row]:
    """The rows, those of files that may be slides after a look at them: what turns out to be a plain image last."""
    waiting: list[Row] = []
    for row in rows:
        if survey is None or not may_be_slide(row):
            yield row
            continue
        waiting.append(row)
        if len(waiting) == _SURVEYED:
            yield from _look(waiting, survey)
            waiting = []
    if survey is not None and waiting:
        yield from _look(waiting, survey)


def _look(rows: list[Row], survey: Survey) -> Iterator[Row]:
    plain: list[Row] = []
    for found in survey(rows):
        first = next(found)
        if is_slide(first):
            yield first
            yield from found
        else:
            plain += [first, *found]
    yield from plain


def read_chunk(folder: str, chunk: int) -> pa.Table:
    """The rows of one chunk, schema PLAN."""
    number, row_group = divmod(chunk, _CHUNKS_PER_FILE)
    return storage.read_table(layout.plan_uri(folder, number), row_group=row_group)


def count_regions(folder: str, chunks: Sequence[int]) -> int:
    """How many regions some chunks have together."""
    regions = 0
    for number, members in itertools.groupby(
        sorted(chunks), key=lambda chunk: chunk // _CHUNKS_PER_FILE
    ):
        metadata = storage.read_metadata(layout.plan_uri(folder, number))
        regions += sum(metadata.row_group(chunk % _CHUNKS_PER_FILE).num_rows for chunk in members)
    return regions


def _new(
    found: Iterable[Found], plan: Plan, *, ledger: Ledger, retry_failed: bool
) -> Iterator[tuple[Found, bytes, int]]:
    """What is to be done: image, id, number of the attempt."""
    seen = SeenIds()
    for batch in _batches(found, _BATCH):
        names = [image.image_id for image in batch]
        ids = np.array(names, f"S{ID_BYTES}")
        first, done = seen.add(ids), contains(ledger.done, ids)
        plan.listed += len(batch)
        plan.repeated += int((~first).sum())
        plan.done += int((first & done).sum())
        for number in np.flatnonzero(first & ~done):
            attempts = ledger.failed.get(bytes(ids[number]), 0)
            if attempts and not retry_failed:
                plan.failed_before += 1
                continue
            if attempts:
                plan.retried.append(names[number].hex())
            yield batch[number], names[number], attempts + 1


def _batches(items: Iterable[Found], size: int) -> Iterator[list[Found]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def _cut(rows: Iterable[Row], plan: Plan) -> Iterator[list[pa.Table]]:
    """Chunks, as many as one file takes at a time. A chunk never mixes archives or slides, so that each is opened once."""
    chunks: list[pa.Table] = []
    part = 0  # chunks that are in it
    for _, group in itertools.groupby(rows, key=_chunk_key):
        while chunk := _take_chunk(
            group, size=next(size for limit, size in _CHUNK_SIZES if plan.chunks < limit)
        ):
            slide, first = is_slide(chunk[0]), chunk[0]["region_index"] == 0
            if not plan.parts or (first if slide else part >= _PART_CHUNKS):
                plan.parts.append(plan.chunks)
                part = 0
            part = _PART_CHUNKS if slide else part + 1
            plan.images += sum(row["region_index"] == 0 for row in chunk)
            plan.chunks += 1
            plan.regions += len(chunk)
            chunks.append(pa.Table.from_pylist(chunk, schema=PLAN))
            if len(chunks) == _CHUNKS_PER_FILE:
                yield chunks
                chunks = []
    if chunks:
        yield chunks


def _chunk_key(row: Row) -> Any:
    if is_slide(row):
        return row["image_id"], block_of(
            *(round(row[name] / row["scale_to_level0"]) for name in "yx")
        )
    return row["image_uri"] if row["member"] is not None else None


def _take_chunk(rows: Iterator[Row], *, size: int) -> list[Row]:
    chunk, held = [], 0
    for row in rows:
        chunk.append(row)
        held += 0 if is_slide(row) else row["source_bytes"] or 0
        if (len(chunk) == size and not is_slide(row)) or held >= _CHUNK_BYTES:
            break
    return chunk


def _row(image: Found, name: bytes, attempt: int) -> Row:
    """Of an image that is one region, as far as it is known before it is opened."""
    row: Row = dict.fromkeys(PLAN.names) | {
        "image_id": name.hex(),
        "image_uri": image.uri,
        "member": image.member,
        "member_offset": image.offset,
        "source_bytes": image.size,
        "source_etag": image.etag,
        "source_mtime": image.mtime,
        "mask_uri": image.mask_uri,
        "mpp": image.mpp,
        "mpp_source": image.mpp_source,
        "region_index": 0,
        "num_regions": 1,
        "y": 0,
        "x": 0,
        "scale_to_level0": 1.0,
        "attempt": attempt,
    }
    if image.error is not None:
        fail(row, stage="list", error=image.error)
    return row


def _encode(chunks: list[pa.Table]) -> bytes:
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, PLAN, compression="zstd") as writer:
        for chunk in chunks:
            writer.write_table(chunk, row_group_size=len(chunk))
    return bytes(sink.getvalue())
