"""The configuration of `jobs/segment.py`."""

import hashlib
import json
import re
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Literal, get_args

from resunet_ray.config.checks import (
    ANY,
    NODE_FOLDER,
    TINY,
    require,
    require_focal_plane,
    require_range,
)
from resunet_ray.config.lease import LeaseConfig
from resunet_ray.config.model import Diameter, Engine, Precision
from resunet_ray.config.roles import (
    ADDED,
    DECIDES,
    OF_EACH_IMAGE,
    Decides,
    Heading,
    MayChange,
    OfEachImage,
    Tuning,
    list_fields,
)

ExportKind = Literal["png", "geojson", "ome-zarr", "ome-tiff"]


@dataclass(frozen=True, kw_only=True)
class SegmentConfig(LeaseConfig):
    """One run over an archive.

    The same command again segments only what is new, and first finishes what was interrupted.
    """

    bundle: Annotated[str, Heading.INPUT] = "nuclei"
    """A bundle that `jobs/train.py` wrote, or the name of one that comes with the package."""
    input: tuple[str, ...]
    """What to segment, in any mixture: folders or prefixes, globs, single images, zip or tar, and
    manifests (Parquet or CSV with a column `uri` and, where known, `member`, `mask_uri`, `mpp`)."""
    output: MayChange[str]
    """Where regions/, images/, instances/ and runs/ go. One output collects the runs of many
    nights."""
    region: Annotated[Tuning[int], Heading.SLIDES] = 512
    """Side of the regions that a slide is cut into, pixels. The nuclei do not depend on it."""
    tile: Annotated[Tuning[Decides[int | None]], ADDED] = None
    """Side of the tiles in which the network sees slides and large images, pixels: a multiple of
    16. Larger ones overlap less, which takes less time, and take more memory (cluster/SCALING.md).
    Default: the bundle's."""
    threshold: Annotated[Decides[float | None], Heading.SEGMENTATION] = None
    """Smallest probability of a nucleus pixel. Default: the bundle's."""
    flips: Decides[bool] = False
    """Average the probability over the image's four mirror images: four times the work."""
    diameter: Annotated[Decides[Diameter | str], ADDED] = "auto"
    """Diameter of the nuclei, in pixels (90) or, where the pixel size is known, in microns (12um):
    images with large nuclei are seen smaller. auto: as the bundle estimates it, slides as they are.
    none: never smaller. Where the bundle and an image both know their pixel size, the image is seen
    at the bundle's instead."""
    channel: Annotated[Decides[str | None], ADDED] = None
    """Name or number (from 0) of the channel that shows nuclei. Default: the only channel, or the
    only one that is named after a nuclear stain; other files are refused."""
    z: Annotated[Tuning[Decides[int | Literal["all", "max", "mean"]]], ADDED] = "all"
    """Focal planes of a stack. all: each is an image of its own. max, mean: one image of all. Or
    the number of one, from 0."""
    scale: Annotated[Decides[Literal["plane", "file"]], ADDED] = "plane"
    """Intensity scale of the planes of a stack. plane: each has its own, as it would in a file of
    its own. file: all have one, so that a dark plane stays dark."""
    precision: Tuning[Decides[Precision]] = "auto"
    """What the network is computed in. int8: on CPUs, by OpenVINO, if the bundle keeps its scores
    in it, as `nuclei` does. bf16: autocast. auto: int8 where it can be had, else bf16 if the
    processor computes in it, else fp32."""
    labels: Annotated[Decides[bool], Heading.INPUT] = False
    """Also write the label image of each region."""
    probabilities: Tuning[Decides[bool]] = False
    """Also write the probability map of each region."""
    max_pixels: Annotated[Tuning[Decides[int]], Heading.RUN] = 2**26
    """Fail images whose header claims more pixels, before decoding them; larger TIFFs and OME-Zarr
    are read in parts, as slides are."""
    mpp: Annotated[Decides[float | None], Heading.SLIDES] = None
    """Microns per pixel of all images; overrides manifests."""
    masks: Annotated[OfEachImage[str | None], Heading.INPUT] = None
    """Folder of true masks, or images of numbered nuclei, under the same paths as the images below
    the input: scores are written too."""
    mpp_csv: Annotated[Tuning[OfEachImage[str | None]], Heading.SLIDES] = None
    """CSV with the columns `name` (an image's file name or location) and `mpp`; overrides what the
    files themselves say."""
    missing_mpp: Tuning[Decides[Literal["native", "skip", "error"]]] = "native"
    """Slides of unknown pixel size. native: segment them at their own resolution. skip: leave them
    out. error: fail them."""
    tissue: Tuning[Decides[Literal["auto", "off"]]] = "auto"
    """auto: read only the regions of a slide that contain tissue. off: read all."""
    max_error_fraction: Annotated[Tuning[float], Heading.RUN] = 0.05
    """The job exits with code 3 if more than this share of a run's images fails, or of all listed
    images has failed by now."""
    retry_failed: bool = False
    """Try all images again that failed before."""
    unclear_retries: Tuning[int] = 3
    """How often to try images again that could not be read for a reason that may pass: in the next
    run, a day later, three days later."""
    max_unclear_fraction: Tuning[MayChange[float]] = 0.5
    """If more than this share of the images that are read together, and at least eight of them, are
    missing or denied, none of them is recorded as failed: the run ends, and can be resumed."""
    dry_run: bool = False
    """Only report what there is to do."""
    actors: Annotated[MayChange[int | None], Heading.COMPUTE] = None
    """Most model processes. 0: run everything in this process without Ray, for a debugger or a few
    images. Default: as many as there is room for on the GPUs, or without GPUs one per node, on all
    of its cores."""
    gpu: MayChange[Literal["auto", "on", "off"]] = "auto"
    """A GPU for each model process. auto: if the cluster has GPUs when the work starts."""
    actors_per_gpu: Tuning[MayChange[int]] = 1
    """Model processes that share a GPU. More of them keep it busy where one process, whose threads
    share one Python, does not use all of its node's cores."""
    price_per_hour: Tuning[MayChange[float | None]] = None
    """What a model process costs an hour, in any currency: its node, or its share of one. The run's
    report then says what the run cost."""
    engine: Tuning[MayChange[Engine]] = "auto"
    """What computes the network on CPUs. auto: OpenVINO where it is installed (the extra `cpu`),
    else torch. On GPUs it is always torch."""
    cpus_per_actor: Tuning[MayChange[int]] = 1
    """CPUs that Ray reserves for each model process; with --actors above 1, it uses no others."""
    nodes_seconds: Tuning[MayChange[float | None]] = None
    """How long to wait for nodes if the cluster is too small. Default: half an hour if the cluster
    says that it has an autoscaler, else not at all."""
    readers: Tuning[MayChange[int]] = 4
    """Threads of each model process that read and decode ahead of the model."""
    batch_size: Tuning[MayChange[int | None]] = None
    """Tiles in a batch of the model. Default: 8 on a GPU, where two batches are on their way at a
    time, and 1 on CPUs, where larger is slower."""
    cache: Annotated[Tuning[MayChange[str]], Heading.CACHE] = NODE_FOLDER
    """Folder on each node's disk. Slides from object storage are staged, and compressed tar files
    expanded, in a separate folder for each user below it."""
    cache_gib: Tuning[MayChange[float]] = 50.0
    """Size limit of that folder, GiB. Where it or the disk is full, the least recently used files
    are removed first, and files in use are waited for."""
    export: Annotated[tuple[ExportKind, ...], Heading.INPUT] = ()
    """Also write files for other programs under exports/ (see `jobs/export.py --help`)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.input), "--input is empty: expected at least one location")
        require_range(self, 0, ANY, "actors", "nodes_seconds", "unclear_retries", "price_per_hour")
        require_range(self, 1, ANY, "cpus_per_actor", "actors_per_gpu", "readers")
        require_range(self, 1, ANY, "batch_size", "max_pixels")
        require_range(self, 0, 1, "max_error_fraction", "max_unclear_fraction")
        require_range(self, TINY, 1 - TINY, "threshold")
        require_range(self, TINY, ANY, "mpp")
        require(
            self.diameter in get_args(Literal["auto", "none"])
            or (not isinstance(self.diameter, str) and self.diameter > 0)
            or self._diameter_um is not None,
            f"--diameter {self.diameter}: must be auto, none, a number of pixels (90) or of "
            "microns (12um), more than 0",
        )
        require_range(self, 256, 8192, "region")
        require_focal_plane(self)
        require_range(self, TINY, ANY, "cache_gib")

    @property
    def _diameter_um(self) -> float | None:
        microns = re.fullmatch(r"(\d*\.?\d+)um", str(self.diameter))
        return None if microns is None or not float(microns[1]) else float(microns[1])

    def diameter_at(self, mpp: float | None) -> Diameter:
        """Return the diameter of the nuclei of an image, pixels.

        Args:
            mpp: microns per pixel of the image. If it is unknown, a diameter in microns is `auto`.
        """
        if self._diameter_um is not None:
            return "auto" if mpp is None else self._diameter_um / mpp
        assert not isinstance(self.diameter, str) or self.diameter in ("auto", "none"), "checked"
        return self.diameter  # type: ignore[return-value]

    @property
    def digest(self) -> str:
        """Digest of the settings that decide what is written about an image; every row has it."""
        values = asdict(self) | dict.fromkeys(list_fields(type(self), OF_EACH_IMAGE))
        added = list_fields(type(self), ADDED)
        usual = {field.name: field.default for field in fields(self)}
        decisive = {
            name: values[name]
            for name in list_fields(type(self), DECIDES)
            if not (name in added and values[name] == usual[name])
        }
        return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class GiveUpConfig(LeaseConfig):
    """Give a run up: remove everything that it wrote, so that its images are new again."""

    output: Annotated[str, Heading.INPUT]
    """The output of `jobs/segment.py`."""
    run: str
    """The run: the name of a folder in OUTPUT/runs/."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            re.fullmatch(r"[\w.-]+", self.run) is not None,
            f"--run {self.run!r}: must be the name of a folder in OUTPUT/runs/",
        )


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Files for other programs, written from the tables."""

    output: str
    """The output of `jobs/segment.py`."""
    run: tuple[str, ...] = ()
    """Runs to export. Default: all."""
    format: tuple[ExportKind, ...] = ("png",)
    """png: each region's mask, and its label image if kept. geojson: nuclei as detections for
    QuPath. ome-zarr: a multiscale label image. ome-tiff: the mask as a tiled pyramid."""
