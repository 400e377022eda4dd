"""The commit: regions/ become images/ and instances/, and every planned region is accounted for.

Each part of the plan is one task with files of its own name, so a commit that was interrupted is simply made again.
"""

import json
import logging
import uuid
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import shapely

from resunet_ray import storage
from resunet_ray.data.stream import run_tasks
from resunet_ray.errors import RunError
from resunet_ray.model.metrics import SCORES, Counts, score_counts
from resunet_ray.schema import IMAGES, INSTANCES, REGIONS
from resunet_ray.segment.ledger import IMAGES_FOLDER
from resunet_ray.segment.plan import read_lot
from resunet_ray.segment.segmenter import REGIONS_FOLDER, lot_uri

logger = logging.getLogger(__name__)

INSTANCES_FOLDER = "instances"

_LOTS_PER_FILE = 16
_READ = [name for name in REGIONS.names if name not in ("mask", "labels", "probability")]
_GEOMETRY = {
    "version": "1.1.0",
    "primary_column": "geometry",
    "columns": {
        "geometry": {
            "encoding": "WKB",
            "geometry_types": ["Polygon"],
            "crs": None,  # pixels of the image, not places on Earth
            "covering": {"bbox": {name: ["bbox", name] for name in ("xmin", "ymin", "xmax", "ymax")}},
        }
    },
}
"""GeoParquet 1.1.0, `geo` metadata."""

_FOCUS_LEAST = 2e-3
"""Focus score below which an image is called out of focus."""
_CONTRAST_LEAST = 2.0
"""Standard deviation of the grey levels below which an image is called blank."""
_UNCERTAIN_MOST = 0.1
"""Share of uncertain pixels above which an image is called uncertain."""


def commit_run(
    output: str, *, run_id: str, folder: str, lots: int, regions: int, retried: list[str], digests: dict[str, str]
) -> Counter[str]:
    """Writes images/ and instances/ of a run whose lots are all there; returns how many images have which status.

    Args:
        output: of all runs.
        run_id: this one.
        folder: of this one, with its plan.
        lots: how many were planned.
        regions: how many were planned.
        retried: images that failed before, whose old rows go.
        digests: `bundle_digest` and `config_digest` of the run.

    Raises:
        RunError: regions are missing, or there that were not planned.
    """
    _withdraw(output, ids=retried, run_id=run_id, digests=digests)
    parts = [range(start, min(start + _LOTS_PER_FILE, lots)) for start in range(0, lots, _LOTS_PER_FILE)]

    def commit_part(number: int) -> pa.Table:
        statuses = _commit_lots(output, run_id=run_id, folder=folder, part=number, lots=parts[number])
        return pa.table({"statuses": [json.dumps(statuses)]})

    done = run_tasks(commit_part, count=len(parts), total=len(parts), what="files of images committed")
    statuses: Counter[str] = Counter()
    for text in done["statuses"].to_pylist():
        statuses.update(json.loads(text))
    if statuses.total() != regions:
        raise RunError(f"{regions} regions were planned and {statuses.total()} committed: run it again")
    return statuses


def _commit_lots(output: str, *, run_id: str, folder: str, part: int, lots: range) -> dict[str, int]:
    regions = []
    for lot in lots:
        planned = read_lot(folder, lot)["image_id"].to_pylist()
        found = storage.read_table(lot_uri(output, run_id, lot), columns=_READ)
        if sorted(found["image_id"].to_pylist()) != sorted(planned):
            raise RunError(
                f"{lot_uri(output, run_id, lot)} holds {len(found)} regions, and not those {len(planned)} that were planned: "
                "delete it, and run the same command again"
            )
        regions.append(found)
    table = pa.concat_tables(regions)
    images = pa.Table.from_pylist([_image_row(row) for row in table.drop_columns(["instances"]).to_pylist()], schema=IMAGES)
    images = _with_areas(images, table)
    name = f"{part:05d}.parquet"
    _write_instances(storage.join(output, INSTANCES_FOLDER, run_id, name), table)
    storage.write_table(storage.join(output, IMAGES_FOLDER, run_id, name), images)  # last: its rows say that the images are done
    return dict(Counter(images["status"].to_pylist()))


def _image_row(region: dict[str, Any]) -> dict[str, Any]:
    """The row of an image that is one region."""
    row = {name: region[name] for name in IMAGES.names if name in region}
    row |= {"num_regions": 1, "num_regions_failed": int(region["status"] == "failed"), "finished_at": datetime.now(UTC)}
    if region["status"] == "failed":
        return row | {"qc_status": "fail", "qc_reasons": ["failed"]}
    pixels = region["pixels"]
    mean = region["grey_sum"] / pixels
    variance = max(0.0, region["grey_square_sum"] / pixels - mean**2)
    row |= {
        "num_nuclei": region["num_instances"],
        "foreground_fraction": region["foreground_pixels"] / pixels,
        "mean_confidence": region["confidence_sum"] / pixels,
        "mean_entropy": region["entropy_sum"] / pixels,
        "uncertain_fraction": region["uncertain_pixels"] / pixels,
        "focus_score": region["laplacian_square_sum"] / pixels / variance if variance > 0 else 0.0,
    }
    if region["mpp"] is not None:
        row["nuclei_per_mm2"] = region["num_instances"] / (pixels * (region["mpp"] * region["scale_to_level0"] / 1000) ** 2)
    if region["tp"] is not None:
        counts = Counts(*(np.asarray(region[name]) for name in ("tp", "fp", "fn", "tn")))
        row |= {name: float(value) for name, value in score_counts(counts).items() if name in SCORES}
    reasons = _suspicions(row, contrast=variance**0.5)
    return row | {"qc_status": "warn" if reasons else "pass", "qc_reasons": reasons}


def _suspicions(row: dict[str, Any], *, contrast: float) -> list[str]:
    """Why somebody should look at an image."""
    if contrast < _CONTRAST_LEAST:
        return ["blank"]
    reasons = {
        "out_of_focus": row["focus_score"] < _FOCUS_LEAST,
        "uncertain": row["uncertain_fraction"] > _UNCERTAIN_MOST,
        "no_nuclei": row["num_nuclei"] == 0,
    }
    return [name for name, applies in reasons.items() if applies]


def _with_areas(images: pa.Table, regions: pa.Table) -> pa.Table:
    """The median area of the nuclei of each image, in µm² where the pixel size is known."""
    medians = []
    for mpp, instances in zip(regions["mpp"], regions["instances"], strict=True):
        areas = [] if not instances.is_valid else pc.struct_field(instances.values, "area_px").to_numpy()
        medians.append(float(np.median(areas)) * mpp.as_py() ** 2 if len(areas) and mpp.is_valid else None)
    index = IMAGES.get_field_index("median_nucleus_area_um2")
    return images.set_column(index, IMAGES.field(index), pa.array(medians, pa.float64()))


def _write_instances(uri: str, regions: pa.Table) -> None:
    parents = pc.list_parent_indices(regions["instances"])
    flat = pc.list_flatten(regions["instances"])
    table = pa.table({field.name: pc.struct_field(flat, field.name) for field in flat.type})
    of = regions.select(["image_id", "run_id", "mpp", "bundle_digest", "config_digest"]).take(parents)
    polygons = shapely.from_wkb(table["polygon"].to_numpy())
    bounds = shapely.bounds(polygons) if len(polygons) else np.empty((0, 4))
    mpp = of["mpp"].to_numpy().astype(np.float64)
    places = zip(
        *(of[name].to_pylist() for name in ("image_id", "bundle_digest", "config_digest")),
        np.rint(table["centroid_y"].to_numpy() * 100).astype(np.int64).tolist(),
        np.rint(table["centroid_x"].to_numpy() * 100).astype(np.int64).tolist(),
        strict=True,
    )
    columns = {
        "instance_id": [str(uuid.uuid5(uuid.NAMESPACE_URL, ":".join(map(str, place)))) for place in places],
        "image_id": of["image_id"],
        "run_id": of["run_id"],
        "geometry": table["polygon"],
        "area_um2": pa.array(table["area_px"].to_numpy() * mpp**2, from_pandas=True),
        "perimeter_um": pa.array(table["perimeter_px"].to_numpy() * mpp, from_pandas=True),
        "bbox": pa.StructArray.from_arrays([pa.array(column) for column in bounds.T], fields=list(INSTANCES.field("bbox").type)),
        **{name: table[name] for name in ("centroid_y", "centroid_x", "area_px", "eccentricity", "score", "touches_edge")},
    }
    schema = INSTANCES.with_metadata({**(INSTANCES.metadata or {}), b"geo": json.dumps(_GEOMETRY).encode()})
    storage.write_table(uri, pa.table({name: columns[name] for name in INSTANCES.names}, schema=schema))


def _withdraw(output: str, *, ids: list[str], run_id: str, digests: dict[str, str]) -> None:
    """Takes the rows of images that are tried again out of the tables, so that each image is there once."""
    if not ids:
        return
    wanted = pa.array(ids)
    for folder in (IMAGES_FOLDER, REGIONS_FOLDER):
        for file in list(storage.walk_files(storage.join(output, folder))):
            if file.path.startswith(f"{run_id}/") or not file.path.endswith(".parquet"):
                continue
            uri = storage.join(output, folder, file.path)
            keys = storage.read_table(uri, columns=["image_id", "status", "bundle_digest", "config_digest"])
            old = pc.and_(pc.is_in(keys["image_id"], value_set=wanted), pc.equal(keys["status"], "failed"))
            for name, value in digests.items():  # another bundle's failures are its own
                old = pc.and_(old, pc.equal(keys[name], value))
            if pc.any(old).as_py():
                table = storage.read_table(uri)
                storage.write_table(uri, table.filter(pc.invert(old)), rows_per_group=64)
