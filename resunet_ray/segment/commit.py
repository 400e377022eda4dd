"""The commit: regions/ become images/ and instances/, and every planned region is accounted for.

Each part of the plan is one task whose files have names of their own, so an interrupted commit is
simply repeated. An image that changed after it was listed gets no row: a later run lists it anew.
"""

import json
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from resunet_ray import storage
from resunet_ray.errors import RunError
from resunet_ray.records import to_table
from resunet_ray.schema import IMAGES, REGIONS
from resunet_ray.segment import layout
from resunet_ray.segment.nuclei import INSTANCES_SCHEMA, flatten_instances
from resunet_ray.segment.planning.plan import Plan, read_chunk
from resunet_ray.segment.rows import PlannedRegion
from resunet_ray.segment.summary import ImageRegions, gather_regions
from resunet_ray.segment.work.chunk_file import read_changed, withdraw_changed
from resunet_ray.tasks import run_tasks

_READ = [name for name in REGIONS.names if name not in ("mask", "labels", "probability")]


def chunks_done(output: str, run_id: str) -> set[int]:
    """Return the numbers of the chunks whose files are there."""
    folder = storage.join(output, layout.REGIONS, run_id)
    if not storage.exists(folder):
        return set()
    return {
        int(name.removesuffix(".parquet"))
        for name, _ in storage.list_files(folder)
        if name.endswith(".parquet")
    }


def commit_run(
    output: str, *, run_id: str, folder: str, plan: Plan, digests: dict[str, str]
) -> tuple[Counter[str], int]:
    """Write images/ and instances/ of a run whose chunks are all there.

    Args:
        output: of all runs.
        run_id: of this run.
        folder: of this run, with its plan.
        plan: what was to do. The old rows of images that were tried again are removed.
        digests: `bundle_digest` and `config_digest` of the run.

    Returns:
        The number of images by status, `changed` being those without a row, and of the failed ones
        whose cause is unclear.

    Raises:
        RunError: regions are missing, or regions are there that were not planned.
    """
    _withdraw(output, ids=plan.retried, run_id=run_id, digests=digests)
    parts = [range(start, end) for start, end in pairwise([*plan.parts, plan.chunks])]

    def commit_part(number: int) -> pa.Table:
        statuses, unclear = _commit_chunks(
            output, run_id=run_id, folder=folder, part=number, chunks=parts[number]
        )
        return pa.table({"statuses": [json.dumps(statuses)], "unclear": [unclear]})

    done = run_tasks(
        commit_part, count=len(parts), total=len(parts), what="files of images committed"
    )
    statuses: Counter[str] = Counter()
    for text in done["statuses"].to_pylist():
        statuses.update(json.loads(text))
    if statuses.total() != plan.images:
        raise RunError(
            f"{plan.images} images were planned and {statuses.total()} committed: run the same "
            "command again"
        )
    return statuses, sum(done["unclear"].to_pylist())


def _commit_chunks(
    output: str, *, run_id: str, folder: str, part: int, chunks: range
) -> tuple[dict[str, int], int]:
    """Commit some chunks, which hold whole images."""
    images: dict[str, ImageRegions] = {}
    changed: set[str] = set()
    nuclei = pa.BufferOutputStream()
    with pq.ParquetWriter(nuclei, INSTANCES_SCHEMA, compression="zstd") as writer:
        for chunk in chunks:
            table = _read_regions(
                layout.chunk_uri(output, run_id, chunk), planned=read_chunk(folder, chunk)
            )
            changed |= read_changed(table)
            instances = flatten_instances(table)
            writer.write_table(instances)
            gather_regions(images, table, instances)
    if torn := changed & images.keys():  # slides that changed between two of their chunks
        for chunk in chunks:
            withdraw_changed(layout.chunk_uri(output, run_id, chunk), torn)
        return _commit_chunks(output, run_id=run_id, folder=folder, part=part, chunks=chunks)
    rows = to_table([image.sum_up() for image in images.values()], IMAGES)
    storage.write_bytes(layout.part_uri(output, layout.INSTANCES, run_id, part), nuclei.getvalue())
    # Last: its rows say that the images are done.
    storage.write_table(layout.part_uri(output, layout.IMAGES, run_id, part), rows)
    unclear = rows["error_kind"].to_pylist().count("unclear")
    gone = {"changed": len(changed)} if changed else {}
    return {**Counter(rows["status"].to_pylist()), **gone}, unclear


def _read_regions(uri: str, *, planned: Sequence[PlannedRegion]) -> pa.Table:
    table = storage.read_table(uri, columns=_READ)
    changed = read_changed(table)
    found = zip(table["image_id"].to_pylist(), table["region_index"].to_pylist(), strict=True)
    expected = [
        (it.image.image_id, it.place.region_index)
        for it in planned
        if it.image.image_id not in changed
    ]
    if sorted(found) != sorted(expected):
        raise RunError(
            f"{uri} holds {len(table)} regions, which are not the {len(expected)} that were "
            "planned: delete it, and run the same command again"
        )
    return table


def _withdraw(output: str, *, ids: list[str], run_id: str, digests: dict[str, str]) -> None:
    """Remove images that were tried again from the tables of earlier runs."""
    if not ids:
        return
    wanted = pa.array(ids)
    # images/ comes last: its rows say that the images were done.
    for folder in (layout.REGIONS, layout.INSTANCES, layout.IMAGES):
        for file in list(storage.walk_files(storage.join(output, folder))):
            if file.path.startswith(f"{run_id}/") or not file.path.endswith(".parquet"):
                continue
            uri = storage.join(output, folder, file.path)
            keys = storage.read_table(uri, columns=["image_id", *digests])
            old = pc.is_in(keys["image_id"], value_set=wanted)
            for name, value in digests.items():  # rows of another bundle stay
                old = pc.and_(old, pc.equal(keys[name], value))
            if pc.any(old).as_py():
                storage.write_table(
                    uri, storage.read_table(uri).filter(pc.invert(old)), rows_per_group=64
                )
