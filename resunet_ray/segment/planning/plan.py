"""The plan: the listing less what is done, cut into chunks.

A chunk is one task and one file of regions.

    list_new(listing) ─► SlidePlanner.plan(images) ─► drop_done(regions) ─► write_plan(regions)

Each is a stream, so that millions of images take no more memory than a few.
"""

import itertools
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from resunet_ray import storage
from resunet_ray.records import from_table, to_table
from resunet_ray.schema import PLAN
from resunet_ray.segment import layout
from resunet_ray.segment.planning.grid import block_of
from resunet_ray.segment.planning.ledger import ID_BYTES, Ledger, SeenIds, contains, parse_id
from resunet_ray.segment.planning.listed import ListedImage
from resunet_ray.segment.rows import ImageRef, Place, PlannedRegion

_BATCH = 2**16  # images that are compared with the ledger at once
_CHUNKS_PER_FILE = 128
_CHUNK_SIZES = ((1024, 16), (4096, 64), (2**62, 256))
"""Images in a chunk: few at first, to spread over many nodes; later more, for fewer files."""
_CHUNK_BYTES = 2**28
"""A chunk with this many bytes is full: its masks and instances are held until it is written."""
_PART_CHUNKS = 16
"""Chunks that are committed together. All chunks of a slide are."""


@dataclass
class Plan:
    """How much there is to do, and what was left out."""

    images: int = 0
    chunks: int = 0
    regions: int = 0
    parts: list[int] = field(default_factory=list)
    """The first chunk of each part: what is committed together, which holds whole images."""
    listed: int = 0
    done: int = 0
    """Listed, and segmented by an earlier run."""
    failed_before: int = 0
    """Listed, failed in an earlier run, and not tried again."""
    repeated: int = 0
    """Listed more than once."""
    passed_over: dict[str, int] = field(default_factory=dict)
    """Files of the inputs that are not read, by kind."""
    retried: list[str] = field(default_factory=list)
    """Ids of the images that failed before and are tried again."""

    @classmethod
    def read(cls, saved: dict[str, Any]) -> "Plan":
        """Read the plan in a run's record. Version 0.1.0 called chunks lots."""
        return cls(**{{"lots": "chunks"}.get(name, name): value for name, value in saved.items()})


def list_new(
    listing: Iterable[ListedImage], plan: Plan, *, ledger: Ledger, retry_failed: bool
) -> Iterator[PlannedRegion]:
    """List the images that are to be segmented, each as one region.

    Args:
        listing: the inputs' images.
        plan: counts what is listed and what is left out.
        ledger: what is done.
        retry_failed: include all images that failed before, not only those that are due.
    """
    seen, again = SeenIds(), ledger.again(retry_failed=retry_failed)
    again_ids = np.array(sorted(again), f"S{ID_BYTES}")
    for batch in _batches(listing, _BATCH):
        names = [image.image_id for image in batch]
        ids = np.array(names, f"S{ID_BYTES}")
        # A file of planes is done as soon as it was planned, and is opened again for any of them.
        planned = contains(ledger.done, ids)
        first, done = seen.add(ids), planned & ~contains(again_ids, ids)
        plan.listed += len(batch)
        plan.repeated += int((~first).sum())
        plan.done += int((first & done).sum())
        for number in np.flatnonzero(first & ~done):
            name = bytes(ids[number])
            attempts = ledger.failed.get(name, 0)
            if attempts and name not in again:
                plan.failed_before += 1
                continue
            if attempts and not planned[number]:
                plan.retried.append(names[number].hex())
            yield _plan_image(batch[number], names[number], attempt=attempts + 1)


def drop_done(
    regions: Iterable[PlannedRegion], plan: Plan, *, ledger: Ledger, retry_failed: bool
) -> Iterator[PlannedRegion]:
    """Leave out the planes that are done of files that are opened again; see `list_new`."""
    again = ledger.again(retry_failed=retry_failed)
    for region in regions:
        if region.image.file_id is None:
            yield region
            continue
        name = parse_id(region.image.image_id)
        attempts = ledger.failed.get(name, 0)
        if attempts:
            if name in again:
                plan.retried += [region.image.image_id] if region.place.region_index == 0 else []
                yield replace(region, attempt=attempts + 1)
        elif not contains(ledger.done, np.array([name], f"S{ID_BYTES}"))[0]:
            yield replace(region, attempt=1)


def write_plan(folder: str, regions: Iterable[PlannedRegion], plan: Plan) -> None:
    """Write the plan of a run, file by file.

    Args:
        folder: the run's.
        regions: those of one image in succession.
        plan: counts what is written.
    """
    for number, chunks in enumerate(_cut(regions, plan)):
        sink = pa.BufferOutputStream()
        with pq.ParquetWriter(sink, PLAN, compression="zstd") as writer:
            for chunk in chunks:
                writer.write_table(chunk, row_group_size=len(chunk))
        storage.write_bytes(layout.plan_uri(folder, number), bytes(sink.getvalue()))


def count_plan(regions: Iterable[PlannedRegion], plan: Plan) -> None:
    """Count what `write_plan` would write."""
    for _ in _cut(regions, plan):
        pass


def read_chunk(folder: str, chunk: int) -> list[PlannedRegion]:
    """Read the regions of one chunk."""
    number, row_group = divmod(chunk, _CHUNKS_PER_FILE)
    table = storage.read_table(layout.plan_uri(folder, number), row_group=row_group)
    return from_table(PlannedRegion, table)


def count_regions(folder: str, chunks: Sequence[int]) -> int:
    """Count the regions of some chunks."""
    regions = 0
    for number, members in itertools.groupby(sorted(chunks), key=lambda it: it // _CHUNKS_PER_FILE):
        metadata = storage.read_metadata(layout.plan_uri(folder, number))
        regions += sum(metadata.row_group(chunk % _CHUNKS_PER_FILE).num_rows for chunk in members)
    return regions


def _batches(items: Iterable[ListedImage], size: int) -> Iterator[list[ListedImage]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def _plan_image(image: ListedImage, image_id: bytes, *, attempt: int) -> PlannedRegion:
    ref = ImageRef(
        image_id=image_id.hex(),
        image_uri=image.uri,
        member=image.member,
        member_offset=image.offset,
        source_bytes=image.size,
        source_etag=image.etag,
        source_mtime=image.mtime,
        mask_uri=image.mask_uri,
        mpp=image.mpp,
        mpp_source=image.mpp_source,
    )
    planned = PlannedRegion(
        image=ref,
        place=Place(format=image.format),
        attempt=attempt,
        source_fingerprint=image.source_fingerprint,
        mask_fingerprint=image.mask_fingerprint,
    )
    return planned if image.error is None else planned.failed(image.error, stage="list")


def _cut(regions: Iterable[PlannedRegion], plan: Plan) -> Iterator[list[pa.Table]]:
    """Cut regions into chunks and yield those of one file at a time.

    A chunk never mixes archives or slides, so that each is opened once.
    """
    chunks: list[pa.Table] = []
    part = 0  # chunks in the current part
    for _, group in itertools.groupby(regions, key=_chunk_key):
        while chunk := _take_chunk(
            group, size=next(size for limit, size in _CHUNK_SIZES if plan.chunks < limit)
        ):
            slide, first = chunk[0].place.is_slide, chunk[0].place.region_index == 0
            if not plan.parts or (first if slide else part >= _PART_CHUNKS):
                plan.parts.append(plan.chunks)
                part = 0
            part = _PART_CHUNKS if slide else part + 1
            plan.images += sum(region.place.region_index == 0 for region in chunk)
            plan.chunks += 1
            plan.regions += len(chunk)
            chunks.append(to_table(chunk, PLAN))
            if len(chunks) == _CHUNKS_PER_FILE:
                yield chunks
                chunks = []
    if chunks:
        yield chunks


def _chunk_key(region: PlannedRegion) -> Hashable:
    if region.place.is_slide:
        return region.image.image_id, block_of(*region.place.corner)
    return region.image.image_uri if region.image.member is not None else None


def _take_chunk(regions: Iterator[PlannedRegion], *, size: int) -> list[PlannedRegion]:
    chunk, held = [], 0
    for region in regions:
        chunk.append(region)
        slide = region.place.is_slide
        held += 0 if slide else region.image.source_bytes or 0
        if (len(chunk) == size and not slide) or held >= _CHUNK_BYTES:
            break
    return chunk
