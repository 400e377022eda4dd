"""The rows of the tables: what is planned, what is found in a region, and what an image comes to.

`PLAN` holds `PlannedRegion`, `REGIONS` holds `Region`, `IMAGES` holds `SegmentedImage`.
`resunet_ray.records` reads and writes them; schema.py says what each column means.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal, Self

import pyarrow as pa

from resunet_ray.data.raster.scene import Plane
from resunet_ray.intensity import Range
from resunet_ray.model.tiling import Box
from resunet_ray.segment.failures import Failure


@dataclass(frozen=True, kw_only=True)
class ImageRef:
    """Which image: where its bytes are, and what is known beside them."""

    image_id: str
    image_uri: str
    member: str | None = None
    member_offset: int | None = None
    source_bytes: int | None = None
    source_etag: str | None = None
    source_mtime: datetime | None = None
    mask_uri: str | None = None
    mpp: float | None = None
    mpp_source: str | None = None
    file_id: str | None = None
    """Of the file, if the image is one of its planes."""
    scene: int | None = None
    t: int | None = None
    z: int | None = None
    channel: str | None = None

    @property
    def plane(self) -> Plane:
        """Which plane of its file; the channel does not count."""
        return Plane(scene=self.scene or 0, t=self.t or 0, z=self.z or 0)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a region lies, in level-0 pixels, and what its image is. By default not yet opened."""

    region_index: int = 0
    num_regions: int = 1
    y: int = 0
    x: int = 0
    height: int | None = None
    width: int | None = None
    scale_to_level0: float = 1.0
    slide_height: int | None = None
    slide_width: int | None = None
    format: str | None = None
    level_low: float | None = None
    level_high: float | None = None
    diameter_px: float | None = None
    tissue_fraction: float | None = None
    warnings: list[str] | None = None

    @property
    def is_slide(self) -> bool:
        """Whether the image is read in parts."""
        return self.slide_height is not None

    @property
    def levels(self) -> Range | None:
        """The image's range of intensities."""
        if self.level_low is None or self.level_high is None:
            return None
        return self.level_low, self.level_high

    @property
    def corner(self) -> tuple[int, int]:
        """Row and column of the first pixel, in pixels that the network sees."""
        return round(self.y / self.scale_to_level0), round(self.x / self.scale_to_level0)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the whole image, in level-0 pixels."""
        height, width = self.slide_height or self.height, self.slide_width or self.width
        assert height is not None, "the image has been opened"
        assert width is not None
        return height, width

    def at(self, window: Box) -> Self:
        """Place a window, given in pixels that the network sees."""
        scale = self.scale_to_level0
        top, left = round(window.top * scale), round(window.left * scale)
        height, width = round(window.bottom * scale) - top, round(window.right * scale) - left
        return replace(self, y=top, x=left, height=height, width=width)

    def window(self, *, height: int, width: int, side: int) -> Box:
        """Return the window that `at` placed.

        Args:
            height: of the image, in pixels that the network sees.
            width: of the image.
            side: of a region.
        """
        top, left = (
            round(start / self.scale_to_level0 / side) * side for start in (self.y, self.x)
        )
        return Box(top, min(top + side, height), left, min(left + side, width))


@dataclass(frozen=True, kw_only=True)
class PlannedRegion:
    """A region to segment. If it failed while it was planned, that is all that becomes of it."""

    image: ImageRef
    place: Place = Place()
    tissue: bytes | None = None
    """Where there is tissue in and around it (see `Gate`); None: everywhere."""
    attempt: int = 1
    source_fingerprint: str | None = None
    """Of the file as it was listed; None in plans of 0.1.0, whose images are not compared."""
    mask_fingerprint: str | None = None
    """Of the true mask."""
    failure: Failure | None = None

    def failed(self, error: Exception, *, stage: str) -> Self:
        """The same region with what went wrong."""
        uri = None if stage == "list" else self.image.image_uri
        return replace(self, failure=Failure.of(error, stage=stage, uri=uri))


@dataclass(frozen=True, kw_only=True)
class PixelCounts:
    """Pixels compared with a true mask."""

    tp: int
    fp: int
    fn: int
    tn: int


@dataclass(frozen=True, kw_only=True)
class RegionSums:
    """What the scores of an image are computed from: each is added over its regions."""

    pixels: int
    num_instances: int
    foreground_pixels: int
    uncertain_pixels: int
    confidence_sum: float
    entropy_sum: float
    grey_sum: float
    grey_square_sum: float
    laplacian_square_sum: float
    counts: PixelCounts | None = None
    true_nuclei: int | None = None
    matched_nuclei: int | None = None
    matched_iou_sum: float | None = None


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What was found in a region."""

    sums: RegionSums
    mask: bytes | None = None
    """PNG; None only where the column was not read."""
    labels: bytes | None = None
    probability: bytes | None = None
    instances: pa.StructArray | None = None
    """Of type INSTANCE; None only where the column was not read."""
    neighbours: list[list[float]] | None = None


@dataclass(frozen=True, kw_only=True)
class Seconds:
    """Time that threads spent on it."""

    read_seconds: float = 0.0
    model_seconds: float = 0.0
    post_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What wrote a row."""

    run_id: str
    bundle_digest: str
    config_digest: str
    code_version: str


RegionStatus = Literal["ok", "failed", "empty", "changed"]
"""Rows are never `changed`: what a region of this status shows is no longer there."""


@dataclass(frozen=True, kw_only=True)
class Region:
    """A region that was segmented, or could not be."""

    region_id: str
    image: ImageRef
    place: Place
    status: RegionStatus
    findings: Findings | None
    failure: Failure | None
    attempt: int
    seconds: Seconds
    origin: Origin

    @classmethod
    def of(
        cls,
        planned: PlannedRegion,
        *,
        findings: Findings | None = None,
        failure: Failure | None = None,
        seconds: Seconds = Seconds(),
        origin: Origin,
    ) -> Self:
        """Build a region from findings, a failure, or neither if there was nothing to read."""
        status: RegionStatus = "failed" if failure else "ok" if findings else "empty"
        if failure is not None and failure.error_kind == "changed":
            status = "changed"
        return cls(
            region_id=f"{planned.image.image_id}-{planned.place.region_index}",
            image=planned.image,
            place=planned.place,
            status=status,
            findings=findings,
            failure=failure,
            attempt=planned.attempt,
            seconds=seconds,
            origin=origin,
        )


@dataclass(frozen=True, kw_only=True)
class PixelScores:
    """The baseline's five scores of an image."""

    accuracy: float
    f1: float
    jaccard: float
    recall: float
    precision: float


@dataclass(frozen=True, kw_only=True)
class ImageScores:
    """What was measured over all regions of an image that could be read."""

    num_nuclei: int
    foreground_fraction: float
    mean_confidence: float
    mean_entropy: float
    uncertain_fraction: float
    focus_score: float
    nuclei_per_mm2: float | None = None
    median_nucleus_area_um2: float | None = None
    seam_disagreement: float | None = None
    truth: PixelScores | None = None
    ap50: float | None = None
    pq: float | None = None


@dataclass(frozen=True, kw_only=True)
class SegmentedImage:
    """An image that is done."""

    image: ImageRef
    format: str | None
    is_slide: bool
    height: int | None
    width: int | None
    num_regions: int
    num_regions_failed: int
    diameter_px: float | None
    tissue_fraction: float | None
    status: Literal["ok", "partial", "failed", "empty"]
    scores: ImageScores | None
    qc_status: Literal["pass", "warn", "fail"]
    qc_reasons: list[str]
    failure: Failure | None
    attempt: int
    seconds: Seconds
    finished_at: datetime
    origin: Origin


def sum_seconds(regions: Sequence[Region]) -> Seconds:
    """The time of some regions together."""
    names = Seconds.__dataclass_fields__
    return Seconds(**{name: sum(getattr(it.seconds, name) for it in regions) for name in names})
