"""The commit: regions/ become images/ and instances/, and every planned region is accounted for.

Each part of the plan is one task with files of its own name, so a commit that was interrupted is simply made again.
"""

import json
import logging
import uuid
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import shapely

from resunet_ray import storage
from resunet_ray.errors import RunError
from resunet_ray.model.metrics import SCORE_NAMES, Counts, score_counts
from resunet_ray.schema import IMAGES, INSTANCES, REGIONS
from resunet_ray.segment import layout
from resunet_ray.segment.planning.plan import Plan, read_chunk
from resunet_ray.segment.rows import Row, is_slide
from resunet_ray.segment.work.objects import seam_disagreement
from resunet_ray.tasks import run_tasks

logger = logging.getLogger(__name__)


_READ = [name for name in REGIONS.names if name not in ("mask", "labels", "probability")]
_GEOMETRY = {
    "version": "1.1.0",
    "primary_column": "geometry",
    "columns": {
        "geometry": {
            "encoding": "WKB",
            "geometry_types": ["Polygon"],
            "crs": None,  # pixels of the image, not places on Earth
            "covering": {
                "bbox": {name: ["bbox", name] for name in ("xmin", "ymin", "xmax", "ymax")}
            },
        }
    },
}
"""GeoParquet 1.1.0, `geo` metadata."""

INSTANCES_SCHEMA = INSTANCES.with_metadata(
    {**(INSTANCES.metadata or {}), b"geo": json.dumps(_GEOMETRY).encode()}
)

_SUMS = (
    *(
        "pixels",
        "num_instances",
        "foreground_pixels",
        "uncertain_pixels",
        "confidence_sum",
        "entropy_sum",
    ),
    *("grey_sum", "grey_square_sum", "laplacian_square_sum"),
)
_FOCUS_LEAST = 2e-3
"""Focus score below which an image is called out of focus."""
_CONTRAST_LEAST = 2.0
"""Standard deviation of the grey levels below which an image is called blank."""
_UNCERTAIN_MOST = 0.1
"""Share of uncertain pixels above which an image is called uncertain."""


def commit_run(
    output: str, *, run_id: str, folder: str, plan: Plan, digests: dict[str, str]
) -> Counter[str]:
    """Writes images/ and instances/ of a run whose chunks are all there; returns how many images have which status.

    Args:
        output: of all runs.
        run_id: this one.
        folder: of this one, with its plan.
        plan: what was to do; the old rows of images that are tried again go.
        digests: `bundle_digest` and `config_digest` of the run.

    Raises:
        RunError: regions are missing, or there that were not planned.
    """
    _withdraw(output, ids=plan.retried, run_id=run_id, digests=digests)
    parts = [range(start, end) for start, end in pairwise([*plan.parts, plan.chunks])]

    def commit_part(number: int) -> pa.Table:
        statuses = _commit_chunks(
            output, run_id=run_id, folder=folder, part=number, chunks=parts[number]
        )
        return pa.table({"statuses": [json.dumps(statuses)]})

    done = run_tasks(
        commit_part, count=len(parts), total=len(parts), what="files of images committed"
    )
    statuses: Counter[str] = Counter()
    for text in done["statuses"].to_pylist():
        statuses.update(json.loads(text))
    if statuses.total() != plan.images:
        raise RunError(
            f"{plan.images} images were planned and {statuses.total()} committed: run it again"
        )
    return statuses


def _commit_chunks(
    output: str, *, run_id: str, folder: str, part: int, chunks: range
) -> dict[str, int]:
    """Commits some chunks, which hold whole images."""
    images: dict[str, _Image] = {}
    nuclei = pa.BufferOutputStream()
    with pq.ParquetWriter(nuclei, INSTANCES_SCHEMA, compression="zstd") as writer:
        for chunk in chunks:
            found = _read_regions(
                layout.chunk_uri(output, run_id, chunk), planned=read_chunk(folder, chunk)
            )
            table = flatten_instances(found)
            writer.write_table(table)
            _gather(images, found, table)
    rows = pa.Table.from_pylist([image.row() for image in images.values()], schema=IMAGES)
    storage.write_bytes(layout.part_uri(output, layout.INSTANCES, run_id, part), nuclei.getvalue())
    storage.write_table(
        layout.part_uri(output, layout.IMAGES, run_id, part), rows
    )  # last: its rows say that the images are done
    return dict(Counter(rows["status"].to_pylist()))


def _read_regions(uri: str, *, planned: pa.Table) -> pa.Table:
    found = storage.read_table(uri, columns=_READ)
    if _keys(found) != _keys(planned):
        raise RunError(
            f"{uri} holds {len(found)} regions, and not those {len(planned)} that were planned: "
            "delete it, and run the same command again"
        )
    return found


def _keys(regions: pa.Table) -> list[tuple[str, int]]:
    return sorted(
        zip(regions["image_id"].to_pylist(), regions["region_index"].to_pylist(), strict=True)
    )


@dataclass
class _Image:
    """The regions of one image, and what the sums over its nuclei need."""

    regions: list[Row] = field(default_factory=list)
    areas: list[np.ndarray] = field(default_factory=list)
    centroids: list[np.ndarray] = field(default_factory=list)

    def row(self) -> Row:
        """Its row of IMAGES."""
        first = self.regions[0]
        read = [region for region in self.regions if region["status"] == "ok"]
        failed = [region for region in self.regions if region["status"] == "failed"]
        row = {name: first[name] for name in IMAGES.names if name in first}
        row |= {
            name: sum(region[name] for region in self.regions)
            for name in ("read_seconds", "model_seconds", "post_seconds")
        }
        row |= {
            "num_regions": len(read) + len(failed),
            "num_regions_failed": len(failed),
            "finished_at": datetime.now(UTC),
        }
        row |= {
            "status": "partial"
            if read and failed
            else "failed"
            if failed
            else "ok"
            if read
            else "empty"
        }
        row["is_slide"] = is_slide(first)
        if row["is_slide"]:
            row |= {"height": first["slide_height"], "width": first["slide_width"]}
        if failed:
            row |= {
                name: failed[0][name] for name in ("error_stage", "error_type", "error_message")
            }
        if not read:
            reasons = ["failed"] if failed else first["warnings"]
            return row | {"qc_status": "fail" if failed else "warn", "qc_reasons": reasons}
        row |= _scores(read, areas=np.concatenate(self.areas)) | self._seams(read)
        reasons = (
            _suspicions(row, contrast=row.pop("contrast"))
            + (first["warnings"] or [])
            + (["partial"] if failed else [])
        )
        return row | {"qc_status": "warn" if reasons else "pass", "qc_reasons": reasons}

    def _seams(self, read: list[Row]) -> Row:
        """How well the regions of a slide agree, where both of two neighbours were read."""
        if not is_slide(read[0]):
            return {}
        neighbours = np.array(
            [(y, x) for region in read for y, x in region["neighbours"] or ()], np.float64
        ).reshape(-1, 2)
        inside = np.zeros(len(neighbours), bool)
        for region in read:
            corner, size = (
                np.array([region[name] for name in names]) for names in ("yx", ("height", "width"))
            )
            inside |= ((neighbours >= corner) & (neighbours < corner + size)).all(axis=1)
        return {
            "seam_disagreement": seam_disagreement(
                np.concatenate(self.centroids), neighbours[inside]
            )
        }


def _gather(images: dict[str, _Image], regions: pa.Table, instances: pa.Table) -> None:
    """Adds the regions of a chunk to those of their images."""
    ends = np.cumsum(pc.fill_null(pc.list_value_length(regions["instances"]), 0).to_numpy())
    areas = instances["area_px"].to_numpy()
    centroids = np.stack(
        [instances[name].to_numpy() for name in ("centroid_y", "centroid_x")], axis=1
    )
    for region, start, end in zip(
        regions.drop_columns(["instances"]).to_pylist(), [0, *ends[:-1]], ends, strict=True
    ):
        image = images.setdefault(region["image_id"], _Image())
        image.regions.append(region)
        image.areas.append(areas[start:end])
        image.centroids.append(centroids[start:end])


def _scores(regions: list[Row], *, areas: np.ndarray) -> Row:
    """The scores of an image out of the sums of its regions."""
    total = {name: sum(region[name] for region in regions) for name in _SUMS}
    pixels, scale, mpp = total["pixels"], regions[0]["scale_to_level0"], regions[0]["mpp"]
    mean = total["grey_sum"] / pixels
    variance = max(0.0, total["grey_square_sum"] / pixels - mean**2)
    row: Row = {
        "num_nuclei": total["num_instances"],
        "foreground_fraction": total["foreground_pixels"] / pixels,
        "mean_confidence": total["confidence_sum"] / pixels,
        "mean_entropy": total["entropy_sum"] / pixels,
        "uncertain_fraction": total["uncertain_pixels"] / pixels,
        "focus_score": total["laplacian_square_sum"] / pixels / variance if variance > 0 else 0.0,
        "contrast": variance**0.5,
    }
    if mpp is not None:
        row["nuclei_per_mm2"] = total["num_instances"] / (pixels * (mpp * scale / 1000) ** 2)
        row["median_nucleus_area_um2"] = float(np.median(areas)) * mpp**2 if len(areas) else None
    if regions[0]["tp"] is not None:
        counts = Counts(
            *(
                np.asarray(sum(region[name] for region in regions))
                for name in ("tp", "fp", "fn", "tn")
            )
        )
        row |= {
            name: float(value)
            for name, value in score_counts(counts).items()
            if name in SCORE_NAMES
        }
    return row


def _suspicions(row: Row, *, contrast: float) -> list[str]:
    """Why somebody should look at an image."""
    if contrast < _CONTRAST_LEAST:
        return ["blank"]
    reasons = {
        "out_of_focus": row["focus_score"] < _FOCUS_LEAST,
        "uncertain": row["uncertain_fraction"] > _UNCERTAIN_MOST,
        "no_nuclei": row["num_nuclei"] == 0,
    }
    return [name for name, applies in reasons.items() if applies]


def flatten_instances(regions: pa.Table) -> pa.Table:
    """The nuclei of some regions, schema INSTANCES."""
    parents = pc.list_parent_indices(regions["instances"])
    flat = pc.list_flatten(regions["instances"])
    table = pa.table({field.name: pc.struct_field(flat, field.name) for field in flat.type})
    of = regions.select(["image_id", "run_id", "mpp", "bundle_digest", "config_digest"]).take(
        parents
    )
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
        "instance_id": [
            str(uuid.uuid5(uuid.NAMESPACE_URL, ":".join(map(str, place)))) for place in places
        ],
        "image_id": of["image_id"],
        **{name: of[name] for name in ("run_id", "bundle_digest", "config_digest")},
        "geometry": table["polygon"],
        "area_um2": pa.array(table["area_px"].to_numpy() * mpp**2, from_pandas=True),
        "perimeter_um": pa.array(table["perimeter_px"].to_numpy() * mpp, from_pandas=True),
        "bbox": pa.StructArray.from_arrays(
            [pa.array(column) for column in bounds.T], fields=list(INSTANCES.field("bbox").type)
        ),
        **{
            name: table[name]
            for name in (
                "centroid_y",
                "centroid_x",
                "area_px",
                "eccentricity",
                "score",
                "touches_edge",
            )
        },
    }
    return pa.table({name: columns[name] for name in INSTANCES.names}, schema=INSTANCES_SCHEMA)


def _withdraw(output: str, *, ids: list[str], run_id: str, digests: dict[str, str]) -> None:
    """Takes the rows of images that are tried again out of the tables of earlier runs, so that each image is there once."""
    if not ids:
        return
    wanted = pa.array(ids)
    for folder in (
        layout.REGIONS,
        layout.INSTANCES,
        layout.IMAGES,
    ):  # last what says that they were done
        for file in list(storage.walk_files(storage.join(output, folder))):
            if file.path.startswith(f"{run_id}/") or not file.path.endswith(".parquet"):
                continue
            uri = storage.join(output, folder, file.path)
            keys = storage.read_table(uri, columns=["image_id", *digests])
            old = pc.is_in(keys["image_id"], value_set=wanted)
            for name, value in digests.items():  # another bundle's are its own
                old = pc.and_(old, pc.equal(keys[name], value))
            if pc.any(old).as_py():
                storage.write_table(
                    uri, storage.read_table(uri).filter(pc.invert(old)), rows_per_group=64
                )
