"""The configuration of `jobs/segment.py`."""

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from typing import Literal

from resunet_ray.config.checks import ANY, NODE_FOLDER, TINY, require, require_range
from resunet_ray.config.roles import (
    DECIDES,
    OF_EACH_IMAGE,
    Decides,
    OfEachImage,
    Todays,
    list_fields,
)

ExportKind = Literal["png", "geojson", "ome-zarr", "ome-tiff"]


@dataclass(frozen=True, kw_only=True)
class SegmentConfig:
    """One run over an archive. The same command again does only what is new, and finishes first what was interrupted."""

    bundle: str = "nuclei"
    """The bundle that `jobs/train.py` wrote, or the name of one that comes with the package."""
    input: tuple[str, ...]
    """What to segment, mixed as you like: folders or prefixes, globs, single images, zip or tar, manifests (Parquet or CSV with a
    column `uri`, and where known `member`, `mask_uri`, `mpp`)."""
    output: Todays[str]
    """Where regions/, images/, instances/ and runs/ go. One output collects the runs of many nights."""
    region: int = 512
    """Side of the regions that a slide is cut into, pixels. The same nuclei are found whatever it is."""
    threshold: Decides[float | None] = None
    """Threshold in place of the bundle's."""
    flips: Decides[bool] = False
    """Average the probability over the image's four mirror images: four times the work."""
    precision: Decides[Literal["auto", "fp32", "bf16"]] = "auto"
    """bf16: autocast. auto: bf16 where the processor computes in it, else fp32."""
    labels: Decides[bool] = False
    """Write the label image of each region too."""
    probabilities: Decides[bool] = False
    """Write the probability of each region too."""
    max_pixels: Decides[int] = 2**26
    """An image whose header claims more pixels fails before it is decoded; a TIFF of more is read in parts, as a slide is."""
    mpp: Decides[float | None] = None
    """Microns per pixel of all images; over what a manifest says."""
    masks: OfEachImage[str | None] = None
    """Folder of true masks, each with its image's path below the input: their scores are written as well."""
    mpp_csv: OfEachImage[str | None] = None
    """CSV with the columns `name` (a slide's file name or location) and `mpp`: over what the slides' own metadata say."""
    missing_mpp: Decides[Literal["native", "skip", "error"]] = "native"
    """What becomes of a slide whose pixel size is unknown: segmented at its own resolution, left out, or failed."""
    tissue: Decides[Literal["auto", "off"]] = "auto"
    """auto: only regions of a slide with tissue are read. off: all."""
    max_error_fraction: float = 0.05
    """When more than this share of a run's images fails, the job ends with exit code 3."""
    retry_failed: bool = False
    """Try the images again that failed before."""
    dry_run: bool = False
    """Only say what there is to do."""
    actors: Todays[int | None] = None
    """Most model processes. None: one for each GPU, or one for each node, which computes on all of its cores. 0: all is done in
    this process, without Ray: for a debugger, or a few images."""
    gpu: Todays[Literal["auto", "on", "off"]] = "auto"
    """A GPU for each model process. auto: if the cluster has them when the work begins."""
    cpus_per_actor: Todays[int] = 1
    """CPUs that Ray sets aside for each, and that each computes on where their number is given."""
    nodes_seconds: Todays[float | None] = None
    """How long to wait for nodes where the cluster is too small. None: half an hour if it says that it has an autoscaler."""
    readers: Todays[int] = 4
    """Threads of an actor that read and decode ahead of the model."""
    batch_size: Todays[int | None] = None
    """Tiles of a model batch. None: 16 on a GPU, 1 on CPUs, where more is slower."""
    cache: Todays[str] = NODE_FOLDER
    """Folder on each node's disk: slides from object storage are staged, and compressed
    tar files expanded, in one of this user's own below it."""
    cache_gib: Todays[float] = 50.0
    """What that one may hold; what was not used for longest leaves it."""
    lease: bool = True
    """Off: nothing keeps two runs over one output apart (for storage without conditional writes)."""
    lease_seconds: float = 60.0
    """A run that shows no sign of life for so long may be followed by another."""
    export: tuple[ExportKind, ...] = ()
    """Also writes files for other programs under exports/ (see `jobs/export.py --help`)."""

    def __post_init__(self) -> None:
        require(bool(self.input), "--input names nothing: expected at least one location")
        require_range(self, 0, ANY, "actors", "nodes_seconds")
        require_range(self, 1, ANY, "cpus_per_actor", "readers", "batch_size", "max_pixels")
        require_range(self, 0, 1, "max_error_fraction")
        require_range(self, TINY, 1 - TINY, "threshold")
        require_range(self, TINY, ANY, "mpp")
        require_range(self, 5, ANY, "lease_seconds")
        require_range(self, 256, 8192, "region")
        require_range(self, TINY, ANY, "cache_gib")

    @property
    def digest(self) -> str:
        """Names what this configuration decides; it stands in every row."""
        values = asdict(self) | dict.fromkeys(list_fields(type(self), OF_EACH_IMAGE))
        decisive = {name: values[name] for name in list_fields(type(self), DECIDES)}
        return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class GiveUpConfig:
    """Gives a run up: all that it wrote is removed, and its images are new again."""

    output: str
    """The output of `jobs/segment.py`."""
    run: str
    """The run: a folder's name in OUTPUT/runs/."""
    lease: bool = True
    """Off: nothing keeps another run away meanwhile (for storage without conditional writes)."""
    lease_seconds: float = 60.0
    """A run that shows no sign of life for so long counts as dead."""

    def __post_init__(self) -> None:
        require(
            re.fullmatch(r"[\w.-]+", self.run) is not None,
            f"--run {self.run!r}: expected the name of one folder",
        )
        require_range(self, TINY, ANY, "lease_seconds")


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Files for other programs, made of what is in the tables."""

    output: str
    """The output of `jobs/segment.py`."""
    run: tuple[str, ...] = ()
    """Runs to export. None given: all."""
    format: tuple[ExportKind, ...] = ("png",)
    """png: each region's mask, and label image where one was kept. geojson: nuclei as detections for QuPath. ome-zarr: a
    multiscale label image. ome-tiff: the mask as a tiled pyramid."""
