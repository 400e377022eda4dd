"""The commit: regions/ become images/ and instances/, and every planned region is accounted for.

Each part of the plan is one task whose files have names of their own, so an interrupted commit is
simply repeated.
"""

import json
import logging
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import shapely

from resunet_ray import storage
from resunet_ray.data.stream import run_tasks
from resunet_ray.errors import RunError
from resunet_ray.model.metrics import Counts, score_counts
from resunet_ray.records import from_table, to_table
from resunet_ray.schema import IMAGES, INSTANCES, REGIONS
from resunet_ray.segment import layout
from resunet_ray.segment.planning.plan import Plan, read_chunk
from resunet_ray.segment.rows import (
    ImageScores,
    PixelCounts,
    PixelScores,
    PlannedRegion,
    Region,
    RegionSums,
    SegmentedImage,
    sum_regions,
    sum_seconds,
)
from resunet_ray.segment.work.objects import seam_disagreement

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

_FOCUS_LEAST = 2e-3
"""Focus score below which an image counts as out of focus."""
_CONTRAST_LEAST = 2.0
"""Standard deviation of the grey levels below which an image counts as blank."""
_UNCERTAIN_MOST = 0.1
"""Share of uncertain pixels above which an image counts as uncertain."""


def commit_run(
    output: str, *, run_id: str, folder: str, plan: Plan, digests: dict[str, str]
) -> Counter[str]:
    """Write images/ and instances/ of a run whose chunks are all there.

    Args:
        output: of all runs.
        run_id: of this run.
        folder: of this run, with its plan.
        plan: what was to do. The old rows of images that were tried again are removed.
        digests: `bundle_digest` and `config_digest` of the run.

    Returns:
        The number of images by status.

    Raises:
        RunError: regions are missing, or regions are there that were not planned.
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
            f"{plan.images} images were planned and {statuses.total()} committed: run the same "
            "command again"
        )
    return statuses


def _commit_chunks(
    output: str, *, run_id: str, folder: str, part: int, chunks: range
) -> dict[str, int]:
    """Commit some chunks, which hold whole images."""
    images: dict[str, _Image] = {}
    nuclei = pa.BufferOutputStream()
    with pq.ParquetWriter(nuclei, INSTANCES_SCHEMA, compression="zstd") as writer:
        for chunk in chunks:
            table = _read_regions(
                layout.chunk_uri(output, run_id, chunk), planned=read_chunk(folder, chunk)
            )
            instances = flatten_instances(table)
            writer.write_table(instances)
            _gather(images, table, instances)
    rows = to_table([image.sum_up() for image in images.values()], IMAGES)
    storage.write_bytes(layout.part_uri(output, layout.INSTANCES, run_id, part), nuclei.getvalue())
    # Last: its rows say that the images are done.
    storage.write_table(layout.part_uri(output, layout.IMAGES, run_id, part), rows)
    return dict(Counter(rows["status"].to_pylist()))


def _read_regions(uri: str, *, planned: Sequence[PlannedRegion]) -> pa.Table:
    table = storage.read_table(uri, columns=_READ)
    found = zip(table["image_id"].to_pylist(), table["region_index"].to_pylist(), strict=True)
    if sorted(found) != sorted((it.image.image_id, it.place.region_index) for it in planned):
        raise RunError(
            f"{uri} holds {len(table)} regions, which are not the {len(planned)} that were "
            "planned: delete it, and run the same command again"
        )
    return table


def _gather(images: dict[str, "_Image"], table: pa.Table, instances: pa.Table) -> None:
    """Add the regions of a chunk to their images."""
    ends = np.cumsum(pc.fill_null(pc.list_value_length(table["instances"]), 0).to_numpy())
    areas = instances["area_px"].to_numpy()
    centroids = np.stack(
        [instances[name].to_numpy() for name in ("centroid_y", "centroid_x")], axis=1
    )
    regions = from_table(Region, table.drop_columns(["instances"]))
    for region, start, end in zip(regions, [0, *ends[:-1]], ends, strict=True):
        image = images.setdefault(region.image.image_id, _Image())
        image.regions.append(region)
        image.areas.append(areas[start:end])
        image.centroids.append(centroids[start:end])


@dataclass
class _Image:
    """The regions of one image, with the areas and centroids of their nuclei."""

    regions: list[Region] = field(default_factory=list)
    areas: list[np.ndarray] = field(default_factory=list)
    centroids: list[np.ndarray] = field(default_factory=list)

    def sum_up(self) -> SegmentedImage:
        """Return the row of IMAGES."""
        first = self.regions[0]
        read = [region for region in self.regions if region.findings is not None]
        failed = [region for region in self.regions if region.failure is not None]
        slide = first.place.is_slide
        scores, reasons = None, ["failed"] if failed else first.place.warnings or []
        if read:
            sums = sum_regions([region.findings.sums for region in read if region.findings])
            scores = _score(sums, first, areas=np.concatenate(self.areas), seams=self._seams(read))
            reasons = [
                *_suspicions(scores, contrast=_variance(sums) ** 0.5),
                *(first.place.warnings or ()),
                *(["partial"] if failed else ()),
            ]
        return SegmentedImage(
            image=first.image,
            format=first.place.format,
            is_slide=slide,
            height=first.place.slide_height if slide else first.place.height,
            width=first.place.slide_width if slide else first.place.width,
            num_regions=len(read) + len(failed),
            num_regions_failed=len(failed),
            tissue_fraction=first.place.tissue_fraction,
            status=("partial" if read else "failed") if failed else "ok" if read else "empty",
            scores=scores,
            qc_status="fail" if failed and not read else "warn" if reasons or not read else "pass",
            qc_reasons=reasons,
            failure=failed[0].failure if failed else None,
            attempt=first.attempt,
            seconds=sum_seconds(self.regions),
            finished_at=datetime.now(UTC),
            origin=first.origin,
        )

    def _seams(self, read: Sequence[Region]) -> float | None:
        """How well neighbouring regions of a slide agree, where both were read."""
        if not read[0].place.is_slide:
            return None
        neighbours = np.array(
            [
                point
                for region in read
                if region.findings is not None
                for point in region.findings.neighbours or ()
            ],
            np.float64,
        ).reshape(-1, 2)
        inside = np.zeros(len(neighbours), bool)
        for region in read:
            place = region.place
            corner, size = np.array([place.y, place.x]), np.array([place.height, place.width])
            inside |= ((neighbours >= corner) & (neighbours < corner + size)).all(axis=1)
        return seam_disagreement(np.concatenate(self.centroids), neighbours[inside])


def _variance(sums: RegionSums) -> float:
    """Variance of the grey levels."""
    return max(0.0, sums.grey_square_sum / sums.pixels - (sums.grey_sum / sums.pixels) ** 2)


def _score(
    sums: RegionSums, first: Region, *, areas: np.ndarray, seams: float | None
) -> ImageScores:
    """Compute the scores of an image from the sums of its regions."""
    pixels, mpp, variance = sums.pixels, first.image.mpp, _variance(sums)
    density = median = None
    if mpp is not None:
        mm2 = pixels * (mpp * first.place.scale_to_level0 / 1000) ** 2
        density = sums.num_instances / mm2
        median = float(np.median(areas)) * mpp**2 if len(areas) else None
    return ImageScores(
        num_nuclei=sums.num_instances,
        foreground_fraction=sums.foreground_pixels / pixels,
        mean_confidence=sums.confidence_sum / pixels,
        mean_entropy=sums.entropy_sum / pixels,
        uncertain_fraction=sums.uncertain_pixels / pixels,
        focus_score=sums.laplacian_square_sum / pixels / variance if variance > 0 else 0.0,
        nuclei_per_mm2=density,
        median_nucleus_area_um2=median,
        seam_disagreement=seams,
        truth=None if sums.counts is None else _score_pixels(sums.counts),
    )


def _score_pixels(counts: PixelCounts) -> PixelScores:
    arrays = Counts(*(np.asarray(getattr(counts, name)) for name in Counts._fields))
    return PixelScores(**{name: float(value) for name, value in score_counts(arrays).items()})


def _suspicions(scores: ImageScores, *, contrast: float) -> list[str]:
    """Return why somebody should look at an image."""
    if contrast < _CONTRAST_LEAST:
        return ["blank"]
    reasons = {
        "out_of_focus": scores.focus_score < _FOCUS_LEAST,
        "uncertain": scores.uncertain_fraction > _UNCERTAIN_MOST,
        "no_nuclei": scores.num_nuclei == 0,
    }
    return [name for name, applies in reasons.items() if applies]


def flatten_instances(regions: pa.Table) -> pa.Table:
    """Return the nuclei of some regions, schema INSTANCES."""
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
