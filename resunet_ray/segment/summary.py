"""What an image comes to: its row of images/, from the sums of its regions."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from resunet_ray.model.metrics import Counts, score_counts
from resunet_ray.records import from_table
from resunet_ray.segment.rows import (
    ImageScores,
    PixelCounts,
    PixelScores,
    Region,
    RegionSums,
    SegmentedImage,
    sum_seconds,
)
from resunet_ray.segment.work.objects import seam_disagreement

_OF_NUCLEI = "true_nuclei", "matched_nuclei", "matched_iou_sum"
_FOCUS_LEAST = 2e-3
"""Focus score below which an image counts as out of focus."""
_CONTRAST_LEAST = 2.0
"""Standard deviation of the grey levels below which an image counts as blank."""
_UNCERTAIN_MOST = 0.1
"""Share of uncertain pixels above which an image counts as uncertain."""


def gather_regions(images: dict[str, "ImageRegions"], table: pa.Table, instances: pa.Table) -> None:
    """Add the regions of a chunk to their images."""
    ends = np.cumsum(pc.fill_null(pc.list_value_length(table["instances"]), 0).to_numpy())
    areas = instances["area_px"].to_numpy()
    centroids = np.stack(
        [instances[name].to_numpy() for name in ("centroid_y", "centroid_x")], axis=1
    )
    regions = from_table(Region, table.drop_columns(["instances"]))
    for region, start, end in zip(regions, [0, *ends][:-1], ends, strict=True):
        image = images.setdefault(region.image.image_id, ImageRegions())
        image.regions.append(region)
        image.areas.append(areas[start:end])
        image.centroids.append(centroids[start:end])


@dataclass
class ImageRegions:
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
            sums = _sum_regions([region.findings.sums for region in read if region.findings])
            scores = _score(
                sums, first, areas=np.concatenate(self.areas), seams=self._seam_disagreement(read)
            )
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
            diameter_px=first.place.diameter_px,
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

    def _seam_disagreement(self, read: Sequence[Region]) -> float | None:
        """Share of the objects seen across seams that no region owns; both sides were read."""
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
        **_score_nuclei(sums),
    )


def _score_nuclei(sums: RegionSums) -> dict[str, float]:
    """Return the scores of the nuclei; nothing if the true ones are not numbered."""
    if sums.true_nuclei is None or sums.matched_nuclei is None or sums.matched_iou_sum is None:
        return {}
    both = sums.true_nuclei + sums.num_instances
    if not both:
        return {"ap50": 1.0, "pq": 1.0}
    return {
        "ap50": sums.matched_nuclei / (both - sums.matched_nuclei),
        "pq": sums.matched_iou_sum / (both / 2),
    }


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


def _sum_regions(sums: Sequence[RegionSums]) -> RegionSums:
    """The sums of some regions together; no counts where one of them has none."""

    def add(kind: type[Any], parts: Sequence[Any]) -> Any:
        return {
            # Null in regions that an earlier version wrote.
            name: sum(getattr(part, name) or 0 for part in parts)
            for name in kind.__dataclass_fields__
            if name not in ("counts", *_OF_NUCLEI)
        }

    counts = [part.counts for part in sums if part.counts is not None]
    whole = PixelCounts(**add(PixelCounts, counts)) if len(counts) == len(sums) else None
    # Only a plain image is compared with true nuclei, and it is one region.
    nuclei = {name: getattr(sums[0], name) for name in _OF_NUCLEI if len(sums) == 1}
    return RegionSums(**add(RegionSums, sums), **nuclei, counts=whole)
