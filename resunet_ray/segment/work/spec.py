"""What every actor of a run needs to know, and writes into each row."""

from dataclasses import dataclass

from resunet_ray import __version__, monitoring
from resunet_ray.config import SegmentConfig
from resunet_ray.segment.rows import Origin


@dataclass(frozen=True)
class RunSpec:
    """A run as its actors know it."""

    run_id: str
    session: str
    """Identifies the driver."""
    folder: str
    """The run's folder, which holds the plan."""
    output: str
    config: SegmentConfig
    bundle_digest: str
    chunks: tuple[int, ...]
    """Chunks to segment; a task is an index into them."""
    gpu: bool
    """Whether each actor has a GPU."""
    threads: int | None
    """Cores on which each actor computes the network without a GPU; None: all cores of its node."""

    @property
    def watched(self) -> monitoring.Run:
        """The labels of its metrics."""
        return monitoring.Run(output=self.output, name=self.run_id)

    @property
    def origin(self) -> Origin:
        """The origin of its rows."""
        return Origin(
            run_id=self.run_id,
            bundle_digest=self.bundle_digest,
            config_digest=self.config.digest,
            code_version=__version__,
        )
