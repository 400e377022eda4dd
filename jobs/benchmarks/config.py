"""The configuration of `jobs/benchmark.py`."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from resunet_ray import bundles
from resunet_ray.config.roles import Heading
from resunet_ray.errors import InputError


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """What to measure."""

    what: Annotated[
        tyro.conf.Positional[
            Literal["train", "memory", "segment", "slide", "scale", "network", "tune"]
        ],
        Heading.INPUT,
    ]
    """What to measure, as listed above."""
    output: str
    """Folder for data and runs: new or empty."""
    data: str | None = None
    """A prepared data set (train, tune). Default: generated images."""
    bundle: str | None = None
    """The bundle to segment with (segment, slide, scale)."""
    images: int = 200
    """Images to generate; memory and segment also use ten times as many. A slide is as large as ten
    times as many."""
    epochs: Annotated[int, Heading.TRAINING] = 8
    """Epochs of the run through Ray (train, tune)."""
    workers: Annotated[int, Heading.COMPUTE] = 1
    """Training workers of the run through Ray, which share the cores (train)."""

    @property
    def bundle_uri(self) -> str:
        """Location of the bundle.

        Raises:
            InputError: none is given.
        """
        if self.bundle is None:
            raise InputError(
                f"{self.what} needs --bundle: an untrained network finds no nuclei to measure"
            )
        return bundles.absolute(self.bundle)
