"""The configuration of `jobs/evaluate.py`."""

from dataclasses import dataclass
from typing import Literal

from resunet_ray.config.checks import ANY, require_range


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """How a bundle is scored against labelled images."""

    bundle: str = "nuclei"
    """The bundle that `jobs/train.py` wrote, or the name of one that comes with the package."""
    data: str
    """What `jobs/prepare.py` wrote."""
    output: str
    """Where score.csv, scores.parquet, pictures/ and report.html go."""
    split: str = "test"
    """Split of the data that is scored."""
    protocol: Literal["native", "baseline"] = "native"
    """native: at the image's own resolution, with the bundle's threshold. baseline: as the baseline did it, image and mask
    resized bilinearly to 256×256, mask > 0.5, probability > 0.5."""
    flips: bool = False
    """Average the probability over the image's four mirror images: four times the work."""
    actors: int | None = None
    """Model processes. None: one for each GPU, or one that uses every core."""
    history: str | None = None
    """history.csv of the training run, to draw its curves. None: the one beside the bundle, if it is there."""

    def __post_init__(self) -> None:
        require_range(self, 1, ANY, "actors")
