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
            Literal[
                "train",
                "memory",
                "segment",
                "slide",
                "scale",
                "overhead",
                "network",
                "tune",
                "faults",
            ]
        ],
        Heading.INPUT,
    ]
    """What to measure, as listed above."""
    output: str
    """Folder for data and runs: new or empty."""
    data: str | None = None
    """A prepared data set (train, tune), or a folder of images (overhead). Default: generated
    images."""
    bundle: str | None = None
    """The bundle to segment with (segment, slide, scale, overhead, faults)."""
    images: int = 200
    """Images to generate, or to take from --data (overhead); memory and segment also use ten times
    as many. A slide is as large as ten times as many, for faults as large as all of them."""
    faults: Annotated[int, Heading.INPUT] = 20
    """How many things to break (faults)."""
    seed: int = 0
    """Which things break in which order (faults)."""
    kill_nodes: bool = False
    """Also kill nodes of the cluster that RAY_ADDRESS names, which must get new ones by itself
    (faults). A cluster that starts with the benchmark loses nodes in any case."""
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
