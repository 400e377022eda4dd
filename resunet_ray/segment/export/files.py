"""Exports, from the tables alone: files for other programs.

exports/png/RUN/NAME.mask.png          each region's mask, and NAME.labels.png where labels were kept
exports/geojson/RUN/NAME.geojson.gz    nuclei as detections for QuPath
exports/ome-zarr/RUN/NAME.ome.zarr     label image, OME-Zarr 0.5
exports/ome-tiff/RUN/NAME.ome.tiff     mask, tiled pyramid

NAME is the image's own with the beginning of its id, since two images of different folders may share one.
"""

import itertools
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from resunet_ray import storage
from resunet_ray.config.segment import ExportKind
from resunet_ray.errors import InputError
from resunet_ray.segment import layout
from resunet_ray.segment.export.geojson import build_features, write_features
from resunet_ray.segment.export.pyramid import write_label_zarr, write_mask_tiff
from resunet_ray.segment.planning.plan import Plan
from resunet_ray.segment.rows import Row, is_slide
from resunet_ray.tasks import run_tasks

_FEATURES = 500_000  # in one GeoJSON file; QuPath reads one whole
_ROWS = 4096  # nuclei that are read at once
_PLACE = [
    "image_id",
    "image_uri",
    "member",
    "status",
    "y",
    "x",
    "region_index",
    "num_regions",
    "scale_to_level0",
    "mpp",
]
_SIZE = ["height", "width", "slide_height", "slide_width"]


def export_runs(output: str, *, kinds: Sequence[ExportKind], run_ids: Sequence[str] = ()) -> int:
    """Writes the exports of some runs; returns how many files or, for OME-Zarr, folders.

    Args:
        output: of the runs.
        kinds: what to write.
        run_ids: which runs; none given: all that are done.

    Raises:
        InputError: there is no such run, or none.
    """
    runs = storage.list_folders(storage.join(output, layout.RUNS))
    there = [name for name in runs if storage.exists(storage.join(output, layout.IMAGES, name))]
    if missing := sorted(set(run_ids) - set(there)):
        raise InputError(
            f"{output} has no run {missing[0]} that is done: found {', '.join(there) or 'none'}"
        )
    if not there:
        raise InputError(
            f"{output} holds no run that is done: expected the output of jobs/segment.py"
        )
    parts = [
        (run_id, kind, part, chunks, side)
        for run_id in run_ids or there
        for kind in kinds
        for part, (chunks, side) in enumerate(_parts(layout.record_uri(output, run_id)))
    ]

    def export(number: int) -> pa.Table:
        run_id, kind, part, chunks, side = parts[number]
        folder = storage.join(output, layout.EXPORTS, kind, run_id)
        if kind == "geojson":
            count = _export_geojson(folder, output, run_id=run_id, part=part)
        else:
            count = sum(
                _EXPORTS[kind](folder, rows, side) for rows in _images(output, run_id, chunks)
            )
        return pa.table({"files": [count]})

    done = run_tasks(export, count=len(parts), total=len(parts), what="parts exported")
    return int(sum(done["files"].to_pylist()))


def _parts(uri: str) -> list[tuple[range, int]]:
    """The chunks that were committed together, which hold whole images; and the side of their regions, pixels."""
    record = json.loads(storage.read_bytes(uri))
    plan, side = Plan.read(record["plan"]), record["config"]["region"]
    return [
        (range(start, end), side) for start, end in itertools.pairwise([*plan.parts, plan.chunks])
    ]


def _images(output: str, run_id: str, chunks: range) -> Iterator[Iterator[Row]]:
    """The regions of one image after the other, as far as there is something in them."""
    columns = [*_PLACE, *_SIZE, "mask", "labels", "instances"]
    rows = (
        row
        for chunk in chunks
        for row in storage.read_table(
            layout.chunk_uri(output, run_id, chunk), columns=columns
        ).to_pylist()
    )
    for _, regions in itertools.groupby(
        (row for row in rows if row["status"] == "ok"), key=lambda row: row["image_id"]
    ):
        yield regions


def _name(row: Row) -> str:
    source = (row["member"] or row["image_uri"]).rstrip("/").rsplit("/", 1)[-1]
    return storage.file_name(f"{source.rsplit('.', 1)[0]}.{row['image_id'][:8]}")


def _export_png(folder: str, regions: Iterable[Row], _side: int) -> int:
    count = 0
    for row in regions:
        place = f".y{row['y']}-x{row['x']}" if is_slide(row) else ""
        for kind in ("mask", "labels"):
            if row[kind] is not None:
                storage.write_bytes(
                    storage.join(folder, f"{_name(row)}{place}.{kind}.png"), row[kind]
                )
                count += 1
    return count


def _export_pyramid(
    folder: str, regions: Iterator[Row], *, write: Callable[..., None], suffix: str
) -> int:
    first = next(regions)
    scale = first["scale_to_level0"]
    height, width = (first[f"slide_{side}"] or first[side] for side in ("height", "width"))
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / f"{_name(first)}{suffix}"
        size = {"height": max(1, int(height / scale)), "width": max(1, int(width / scale))}
        write(path, itertools.chain([first], regions), **size, scale=scale, mpp=first["mpp"])
        storage.upload(path, storage.join(folder, path.name))
    return 1


def _export_ome_zarr(folder: str, regions: Iterator[Row], _side: int) -> int:
    return _export_pyramid(folder, regions, write=write_label_zarr, suffix=".ome.zarr")


def _export_ome_tiff(folder: str, regions: Iterator[Row], side: int) -> int:
    return _export_pyramid(
        folder, regions, write=partial(write_mask_tiff, side=side), suffix=".ome.tiff"
    )


def _export_geojson(folder: str, output: str, *, run_id: str, part: int) -> int:
    columns = ["image_id", "image_uri", "member", "status"]
    images = storage.read_table(
        layout.part_uri(output, layout.IMAGES, run_id, part), columns=columns
    )
    wanted = {row["image_id"]: row for row in images.to_pylist() if row["status"] != "failed"}
    count = 0
    with storage.Reader(layout.part_uri(output, layout.INSTANCES, run_id, part)) as file:
        batches = pq.ParquetFile(file).iter_batches(batch_size=_ROWS)
        rows = (row for batch in batches for row in batch.to_pylist())
        for image_id, nuclei in itertools.groupby(rows, key=lambda row: row["image_id"]):
            count += _upload_features(folder, _name(wanted.pop(image_id)), nuclei)
    return count + sum(
        _upload_features(folder, _name(row), ()) for row in wanted.values()
    )  # those without nuclei


def _upload_features(folder: str, name: str, nuclei: Iterable[Row]) -> int:
    with tempfile.TemporaryDirectory() as place:
        paths = write_features(
            build_features(nuclei), folder=Path(place), stem=name, most=_FEATURES
        )
        for path in paths:
            storage.upload(path, storage.join(folder, path.name))
    return len(paths)


_EXPORTS: dict[str, Callable[[str, Iterator[Row], int], int]] = {
    "png": _export_png,
    "ome-zarr": _export_ome_zarr,
    "ome-tiff": _export_ome_tiff,
}
