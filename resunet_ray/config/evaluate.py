"""The configuration of `jobs/evaluate.py`."""

from dataclasses import dataclass
from typing import Annotated, Literal

from resunet_ray.config.checks import ANY, require_range
from resunet_ray.config.lease import LeaseConfig
from resunet_ray.config.model import Engine
from resunet_ray.config.roles import Heading, Tuning


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(LeaseConfig):
    """How to score a bundle against labelled images."""

    bundle: Annotated[str, Heading.INPUT] = "nuclei"
    """A bundle that `jobs/train.py` wrote, or the name of one that comes with the package."""
    data: str
    """A data set that `jobs/prepare.py` wrote."""
    output: str
    """Folder for score.csv, scores.parquet, outcomes.parquet, pictures/ and report.html."""
    split: Annotated[str, Heading.SCORING] = "test"
    """Split of the data to score."""
    protocol: Literal["native", "baseline"] = "native"
    """native: at the image's own resolution, with the bundle's threshold. baseline: as the baseline
    was scored, image and mask resized bilinearly to 256×256, mask > 0.5, probability > 0.5."""
    flips: bool = False
    """Average the probability over the image's four mirror images: four times the work."""
    actors: Annotated[int | None, Heading.COMPUTE] = None
    """Model processes. Default: one per GPU, or a single one that uses every core."""
    engine: Tuning[Engine] = "auto"
    """What computes the network on CPUs. auto: OpenVINO where it is installed (the extra `cpu`),
    else torch. On GPUs it is always torch."""
    history: Annotated[Tuning[str | None], Heading.INPUT] = None
    """history.csv of the training run, to draw its curves. Default: the one beside the bundle, if
    there is one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(self, 1, ANY, "actors")
