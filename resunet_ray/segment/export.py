"""Exports, from the tables alone: masks and label images as PNG files."""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from resunet_ray import storage
from resunet_ray.data.stream import run_tasks
from resunet_ray.errors import InputError
from resunet_ray.segment.segmenter import REGIONS_FOLDER

EXPORTS_FOLDER = "exports"


def export_png(output: str, *, run_ids: Sequence[str] = ()) -> int:
    """Writes exports/png/RUN/NAME.mask.png, and NAME.labels.png where labels were kept; returns how many files.

    NAME is the image's own with the beginning of its id, since two images of different folders may share one.

    Args:
        output: of the runs.
        run_ids: which of them; none given: all.

    Raises:
        InputError: there is no such run.
    """
    regions = storage.join(output, REGIONS_FOLDER)
    there = storage.list_folders(regions) if storage.exists(regions) else []
    if missing := sorted(set(run_ids) - set(there)):
        raise InputError(f"{output} has no regions of run {missing[0]}: found {', '.join(there) or 'none'}")
    if not there:
        raise InputError(f"{output} holds no regions: expected the output of jobs/segment.py")
    files = [
        storage.join(run_id, name)
        for run_id in run_ids or there
        for name, _ in storage.list_files(storage.join(regions, run_id))
        if name.endswith(".parquet")
    ]

    def export(number: int) -> pa.Table:
        run_id = files[number].split("/")[0]
        columns = ["image_id", "image_uri", "member", "mask", "labels"]
        count = 0
        for row in storage.read_table(storage.join(regions, files[number]), columns=columns).to_pylist():
            for name, content in _pictures(row):
                storage.write_bytes(storage.join(output, EXPORTS_FOLDER, "png", run_id, name), content)
                count += 1
        return pa.table({"files": [count]})

    done = run_tasks(export, count=len(files), total=len(files), what="files of regions exported")
    return int(sum(done["files"].to_pylist()))


def _pictures(row: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    source = (row["member"] or row["image_uri"]).rstrip("/").rsplit("/", 1)[-1]
    stem = f"{source.rsplit('.', 1)[0]}.{row['image_id'][:8]}"
    for kind in ("mask", "labels"):
        if row[kind] is not None:
            yield f"{stem}.{kind}.png", row[kind]
