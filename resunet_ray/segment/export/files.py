"""Exports: files for other programs, written from the tables alone.

exports/png/RUN/NAME.mask.png          each region's mask, and NAME.labels.png if labels were kept
exports/geojson/RUN/NAME.geojson.gz    nuclei as detections for QuPath
exports/ome-zarr/RUN/NAME.ome.zarr     label image, OME-Zarr 0.5
exports/ome-tiff/RUN/NAME.ome.tiff     mask, tiled pyramid

NAME is the image's name with the first digits of its id: images in different folders may share a
name.
"""

import itertools
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from resunet_ray import storage
from resunet_ray.config.segment import ExportKind
from resunet_ray.errors import InputError
from resunet_ray.records import from_table
from resunet_ray.schema import REGIONS
from resunet_ray.segment import layout
from resunet_ray.segment.export.geojson import build_features, write_features
from resunet_ray.segment.planning.plan import Plan
from resunet_ray.segment.rows import ImageRef, Region
from resunet_ray.tasks import run_tasks

_FEATURES = 500_000  # in one GeoJSON file, since QuPath reads a file whole
_ROWS = 4096  # nuclei that are read at a time
_COLUMNS = [name for name in REGIONS.names if name != "probability"]


def export_runs(output: str, *, kinds: Sequence[ExportKind], run_ids: Sequence[str] = ()) -> int:
    """Write the exports of some runs; return the number of files, or of folders for OME-Zarr.

    Args:
        output: of the runs.
        kinds: what to write.
        run_ids: which runs; all that are done by default.

    Raises:
        InputError: a run is missing, or no run is done.
    """
    runs = storage.list_folders(storage.join(output, layout.RUNS))
    there = [name for name in runs if storage.exists(storage.join(output, layout.IMAGES, name))]
    if missing := sorted(set(run_ids) - set(there)):
        raise InputError(
            f"{output} has no finished run {missing[0]}: found {', '.join(there) or 'none'}"
        )
    if not there:
        raise InputError(f"{output} holds no finished run: expected the output of jobs/segment.py")
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
                _EXPORTS[kind](folder, regions, side) for regions in _images(output, run_id, chunks)
            )
        return pa.table({"files": [count]})

    done = run_tasks(export, count=len(parts), total=len(parts), what="parts exported")
    return int(sum(done["files"].to_pylist()))


def _parts(uri: str) -> list[tuple[range, int]]:
    """Read the chunks of each part of the plan and the side of a region."""
    record = json.loads(storage.read_bytes(uri))
    plan, side = Plan.read(record["plan"]), record["config"]["region"]
    return [
        (range(start, end), side) for start, end in itertools.pairwise([*plan.parts, plan.chunks])
    ]


def _images(output: str, run_id: str, chunks: range) -> Iterator[Iterator[Region]]:
    """Yield the regions that could be read, image by image."""
    regions = (
        region
        for chunk in chunks
        for region in from_table(
            Region,
            storage.read_table(layout.chunk_uri(output, run_id, chunk), columns=_COLUMNS),
        )
        if region.findings is not None
    )
    for _, of_one in itertools.groupby(regions, key=lambda region: region.image.image_id):
        yield of_one


def _name(image: ImageRef) -> str:
    source = (image.member or image.image_uri).rstrip("/").rsplit("/", 1)[-1]
    return storage.file_name(f"{source.rsplit('.', 1)[0]}.{image.image_id[:8]}")


def _export_png(folder: str, regions: Iterable[Region], _side: int) -> int:
    count = 0
    for region in regions:
        assert region.findings is not None, "it could be read"
        place = f".y{region.place.y}-x{region.place.x}" if region.place.is_slide else ""
        for kind, content in (("mask", region.findings.mask), ("labels", region.findings.labels)):
            if content is not None:
                name = f"{_name(region.image)}{place}.{kind}.png"
                storage.write_bytes(storage.join(folder, name), content)
                count += 1
    return count


def _export_pyramid(
    folder: str, regions: Iterator[Region], *, write: Callable[..., None], suffix: str
) -> int:
    first = next(regions)
    scale = first.place.scale_to_level0
    height, width = (max(1, int(side / scale)) for side in first.place.image_size)
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / f"{_name(first.image)}{suffix}"
        every = itertools.chain([first], regions)
        write(path, every, height=height, width=width, scale=scale, mpp=first.image.mpp)
        storage.upload(path, storage.join(folder, path.name))
    return 1


def _export_ome_zarr(folder: str, regions: Iterator[Region], _side: int) -> int:
    from resunet_ray.segment.export.pyramid import write_label_zarr  # not above: it imports zarr

    return _export_pyramid(folder, regions, write=write_label_zarr, suffix=".ome.zarr")


def _export_ome_tiff(folder: str, regions: Iterator[Region], side: int) -> int:
    from resunet_ray.segment.export.pyramid import write_mask_tiff  # not above: it imports zarr

    write = partial(write_mask_tiff, side=side)
    return _export_pyramid(folder, regions, write=write, suffix=".ome.tiff")


def _export_geojson(folder: str, output: str, *, run_id: str, part: int) -> int:
    table = storage.read_table(
        layout.part_uri(output, layout.IMAGES, run_id, part),
        columns=["image_id", "image_uri", "member", "status"],
    )
    images = from_table(ImageRef, table.filter(pc.not_equal(table["status"], "failed")))
    waiting = {image.image_id: image for image in images}
    count = 0
    with storage.Reader(layout.part_uri(output, layout.INSTANCES, run_id, part)) as file:
        batches = pq.ParquetFile(file).iter_batches(batch_size=_ROWS)
        rows = (row for batch in batches for row in batch.to_pylist())
        for image_id, nuclei in itertools.groupby(rows, key=lambda row: row["image_id"]):
            count += _upload_features(folder, _name(waiting.pop(image_id)), nuclei)
    # Those left have no nuclei.
    return count + sum(_upload_features(folder, _name(image), ()) for image in waiting.values())


def _upload_features(folder: str, name: str, nuclei: Iterable[dict[str, Any]]) -> int:
    with tempfile.TemporaryDirectory() as place:
        paths = write_features(
            build_features(nuclei), folder=Path(place), stem=name, most=_FEATURES
        )
        for path in paths:
            storage.upload(path, storage.join(folder, path.name))
    return len(paths)


_EXPORTS: dict[str, Callable[[str, Iterator[Region], int], int]] = {
    "png": _export_png,
    "ome-zarr": _export_ome_zarr,
    "ome-tiff": _export_ome_tiff,
}
