"""The configuration of `jobs/prepare.py`."""

from dataclasses import dataclass
from typing import Annotated, Literal

from resunet_ray.config.checks import (
    ANY,
    NODE_FOLDER,
    TINY,
    require,
    require_default,
    require_focal_plane,
    require_range,
)
from resunet_ray.config.layouts import parse_layout
from resunet_ray.config.lease import LeaseConfig
from resunet_ray.config.roles import Heading, Tuning


@dataclass(frozen=True, kw_only=True)
class PrepareConfig(LeaseConfig):
    """How to turn a folder or an archive of images and masks into Parquet shards."""

    input: Annotated[tuple[str, ...], Heading.INPUT]
    """Images and masks: folders (images/ beside masks/, or one folder per image as in BBBC038), zip
    or tar. Another arrangement is described by --layout."""
    output: str
    """Where the data set goes: a new or empty folder or prefix."""
    layout: tuple[str, ...] = ()
    """Which files belong together: a published data set (bbbc038, bbbc039, cellbindb, consep, ctc,
    ctc-silver, monuseg, monuseg-test, nuinsseg, s-bsst265, stardist, tnbc), or patterns:
    images=PATTERN and one of masks=, labels=, areas= and nuclei=, in which {name} pairs files
    ("images=**/Tissue Images/{id}.tif" "labels=**/label/{id}.mat"). See docs/datasets.md."""
    channel: str | None = None
    """Name or number (from 0) of the channel that shows nuclei. Default: the only channel, or the
    only one that is named after a nuclear stain; other images are rejected."""
    z: Tuning[int | Literal["all", "max", "mean"]] = "all"
    """Focal planes of a stack. max, mean: one image of all. Or the number of one, from 0. all:
    images of several planes are rejected."""
    split: Annotated[Literal["baseline", "fraction", "group", "file"], Heading.SPLIT] = "baseline"
    """baseline: by sorted name, 20% test, then 20% of the rest validation, as scikit-learn draws
    them with seed 42. fraction: by --val-fraction, --test-fraction and --seed. group: the same, but
    rows of one group stay together. file: from --split-file."""
    val_fraction: float = 0.2
    """Share of the images for validation (fraction, group)."""
    test_fraction: float = 0.2
    """Share of the images for the test (fraction, group)."""
    seed: int = 0
    """Seed of the split (fraction, group)."""
    group_column: str | None = None
    """Column of --metadata: rows with equal values stay in one split (group)."""
    split_file: str | None = None
    """JSON object with the image ids of each split (file):
    {"train": [...], "val": [...], "test": [...]}. Images that it does not list are left out."""
    metadata: Annotated[str | None, Heading.INPUT] = None
    """CSV with a column `id` and, where known, `modality`, `mpp` and the group column."""
    max_reject_fraction: Annotated[float, Heading.RUN] = 0.0
    """The job fails if more than this share of the images is rejected; rejects.parquet says which
    and why."""
    max_pixels: Tuning[int] = 2**28
    """Reject images whose header claims more pixels, before decoding them."""
    cache: Annotated[Tuning[str], Heading.CACHE] = NODE_FOLDER
    """Folder on each node's disk. Compressed tar files are expanded in a separate folder for each
    user below it."""
    cache_gib: Tuning[float] = 50.0
    """Size limit of that folder, GiB. Where it or the disk is full, the least recently used files
    are removed first, and files in use are waited for."""
    rows_per_group: Annotated[Tuning[int], Heading.INPUT] = 16
    """Images in one Parquet row group, which one read task takes at a time."""
    rows_per_shard: Tuning[int] = 512
    """Most images in one Parquet file; large images fill it with fewer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layout:
            parse_layout(self.layout)
        require(bool(self.input), "--input is empty: expected at least one folder or archive")
        require(
            self.val_fraction > 0
            and self.test_fraction >= 0
            and self.val_fraction + self.test_fraction < 1,
            f"--val-fraction {self.val_fraction} and --test-fraction {self.test_fraction}: "
            "expected 0 < val, 0 <= test and a sum below 1, so that images are left for training",
        )
        if self.split in ("baseline", "file"):
            because = f"by --split {self.split}"
            require_default(self, because, "seed", "val_fraction", "test_fraction")
        require_range(self, 0, 1, "max_reject_fraction")
        require_focal_plane(self)
        require_range(self, 1, ANY, "max_pixels", "rows_per_group", "rows_per_shard")
        require_range(self, TINY, ANY, "cache_gib")
        require(
            (self.split == "file") == (self.split_file is not None),
            f"--split {self.split} and --split-file {self.split_file}: "
            "give both --split file and --split-file, or neither",
        )
        require(
            (self.split == "group") == (self.group_column is not None),
            f"--split {self.split} and --group-column {self.group_column}: "
            "give both --split group and --group-column, or neither",
        )
        require(
            self.group_column is None or self.metadata is not None,
            f"--group-column {self.group_column} needs --metadata, the CSV with that column",
        )
