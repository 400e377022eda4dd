"""The configuration of `jobs/prepare.py`."""

from dataclasses import dataclass
from typing import Literal

from resunet_ray.config.checks import (
    ANY,
    NODE_FOLDER,
    TINY,
    require,
    require_default,
    require_range,
)


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """How a folder or an archive of images and masks becomes Parquet shards."""

    input: tuple[str, ...]
    """Where images and masks lie: folders (images/ beside masks/, or one folder an image as in BBBC038), zip or tar."""
    output: str
    """Where the data set goes: a new or empty folder or prefix."""
    split: Literal["baseline", "fraction", "group", "file"] = "baseline"
    """baseline: sorted names, 20% test, then 20% of the rest validation, as scikit-learn draws them with seed 42.
    fraction: by --val-fraction, --test-fraction and --seed. group: the same, but rows of one group stay together.
    file: from --split-file."""
    val_fraction: float = 0.2
    """Share of the images for validation (fraction, group)."""
    test_fraction: float = 0.2
    """Share of the images for the test (fraction, group)."""
    seed: int = 0
    """Seed of the split (fraction, group)."""
    group_column: str | None = None
    """Column of --metadata whose equal values stay in one split (group)."""
    split_file: str | None = None
    """JSON object that lists the image ids of each split: {"train": [...], "val": [...], "test": [...]} (file).
    An image that it does not list is left out."""
    metadata: str | None = None
    """CSV with a column `id` and, where known, `modality`, `mpp` and the group column."""
    max_reject_fraction: float = 0.0
    """The job fails when more than this share of the images is rejected; rejects.parquet says which and why."""
    max_pixels: int = 2**28
    """An image whose header claims more pixels is refused before it is decoded."""
    cache: str = NODE_FOLDER
    """Folder on each node's disk: compressed tar files are expanded in one of this user's own below it."""
    cache_gib: float = 50.0
    """What that one may hold; what was not used for longest leaves it."""
    rows_per_group: int = 16
    """Images in one Parquet row group: what one read task takes at a time."""
    rows_per_shard: int = 512
    """Images in one Parquet file, at most: large ones fill it sooner."""

    def __post_init__(self) -> None:
        require(bool(self.input), "--input names nothing: expected at least one folder or archive")
        require(
            self.val_fraction > 0
            and self.test_fraction >= 0
            and self.val_fraction + self.test_fraction < 1,
            f"--val-fraction {self.val_fraction} and --test-fraction {self.test_fraction} leave no image for training: "
            "expected 0 < val, 0 <= test and a sum below 1",
        )
        if self.split in ("baseline", "file"):
            require_default(
                self, f"by --split {self.split}", "seed", "val_fraction", "test_fraction"
            )
        require_range(self, 0, 1, "max_reject_fraction")
        require_range(self, 1, ANY, "max_pixels", "rows_per_group", "rows_per_shard")
        require_range(self, TINY, ANY, "cache_gib")
        require(
            (self.split == "file") == (self.split_file is not None),
            f"--split {self.split} and --split-file {self.split_file}: they go together, give both or neither",
        )
        require(
            (self.split == "group") == (self.group_column is not None),
            f"--split {self.split} and --group-column {self.group_column}: they go together, give both or neither",
        )
        require(
            self.group_column is None or self.metadata is not None,
            f"--group-column {self.group_column} needs --metadata, the CSV that holds it",
        )
