"""The plan: what was found less what is done, cut into lots. One lot is one task, one file of regions, one commit."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from resunet_ray import storage
from resunet_ray.schema import PLAN
from resunet_ray.segment.ledger import ID_BYTES, Ledger, SeenIds, contains
from resunet_ray.segment.listing import Found

PLAN_FOLDER = "plan"

_BATCH = 2**16  # images that are compared with the ledger at once
_LOTS_PER_FILE = 128
_LOT_SIZES = ((1024, 16), (4096, 64), (2**62, 256))
"""Images in one lot: small first, for few images on many nodes; larger when there are many, for fewer files."""
_LOT_BYTES = 2**28
"""A lot of so many bytes is full, however few images it has: its masks and instances are held until it is written."""


@dataclass
class Plan:
    """How much there is to do, and what was left out."""

    lots: int = 0
    regions: int = 0
    listed: int = 0
    done: int = 0
    """Listed, and segmented by an earlier run."""
    failed_before: int = 0
    """Listed, failed in an earlier run, and not tried again."""
    repeated: int = 0
    """Listed more than once."""
    retried: list[str] = field(default_factory=list)
    """Ids of the images that failed before and are tried again."""


def write_plan(folder: str | None, found: Iterable[Found], *, ledger: Ledger, retry_failed: bool) -> Plan:
    """Writes the plan of a run, file by file, in memory that does not grow with it.

    Args:
        folder: the run's; None: only count.
        found: the listing.
        ledger: what is done.
        retry_failed: plan what failed before again.
    """
    plan = Plan()
    files = _cut(_new(found, plan, ledger=ledger, retry_failed=retry_failed), plan)
    for number, lots in enumerate(files):
        if folder is not None:
            storage.write_bytes(_file_uri(folder, number), _encode(lots))
    return plan


def read_lot(folder: str, lot: int) -> pa.Table:
    """The rows of one lot, schema PLAN."""
    number, row_group = divmod(lot, _LOTS_PER_FILE)
    return storage.read_table(_file_uri(folder, number), row_group=row_group)


def count_regions(folder: str, lots: Sequence[int]) -> int:
    """How many regions some lots have together."""
    regions = 0
    for number, members in itertools.groupby(sorted(lots), key=lambda lot: lot // _LOTS_PER_FILE):
        metadata = storage.read_metadata(_file_uri(folder, number))
        regions += sum(metadata.row_group(lot % _LOTS_PER_FILE).num_rows for lot in members)
    return regions


def _file_uri(folder: str, number: int) -> str:
    return storage.join(folder, PLAN_FOLDER, f"{number:05d}.parquet")


def _new(found: Iterable[Found], plan: Plan, *, ledger: Ledger, retry_failed: bool) -> Iterator[tuple[Found, bytes, int]]:
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


def _cut(images: Iterable[tuple[Found, bytes, int]], plan: Plan) -> Iterator[list[pa.Table]]:
    """Lots, as many as one file takes at a time. A lot never mixes archives, so that each is opened once."""
    lots: list[pa.Table] = []
    for _, group in itertools.groupby(images, key=lambda item: item[0].uri if item[0].member is not None else None):
        while rows := _take_lot(group, size=next(size for limit, size in _LOT_SIZES if plan.lots < limit)):
            lots.append(_table(rows))
            plan.lots += 1
            plan.regions += len(rows)
            if len(lots) == _LOTS_PER_FILE:
                yield lots
                lots = []
    if lots:
        yield lots


def _take_lot(images: Iterator[tuple[Found, bytes, int]], *, size: int) -> list[tuple[Found, bytes, int]]:
    rows, held = [], 0
    for image in images:
        rows.append(image)
        held += image[0].size or 0
        if len(rows) == size or held >= _LOT_BYTES:
            break
    return rows


def _table(rows: list[tuple[Found, bytes, int]]) -> pa.Table:
    return pa.Table.from_pylist(
        [
            {
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
                "attempt": attempt,
                "error_stage": None if image.error is None else "list",
                "error_type": None if image.error is None else type(image.error).__name__,
                "error_message": None if image.error is None else str(image.error),
            }
            for image, name, attempt in rows
        ],
        schema=PLAN,
    )


def _encode(lots: list[pa.Table]) -> bytes:
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, PLAN, compression="zstd") as writer:
        for lot in lots:
            writer.write_table(lot, row_group_size=len(lot))
    return bytes(sink.getvalue())
