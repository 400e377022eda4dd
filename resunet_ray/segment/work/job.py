"""What every actor of a run needs to know, and what it therefore writes in each row."""

from dataclasses import dataclass

from resunet_ray import __version__, monitoring
from resunet_ray.config import SegmentConfig
from resunet_ray.schema import PLAN, REGIONS
from resunet_ray.segment.rows import Row


@dataclass(frozen=True)
class Job:
    """A run as its actors know it."""

    run_id: str
    session: str
    """Names the driver."""
    folder: str
    """The run's own, with its plan."""
    output: str
    config: SegmentConfig
    bundle_digest: str
    chunks: tuple[int, ...]
    """Those that are not done; a task is the number of one among them."""
    gpu: bool
    """Whether each actor has one."""
    threads: int | None
    """Cores that compute the network in each actor, where there is no GPU. None: all of its node."""

    @property
    def watched(self) -> monitoring.Run:
        """What its metrics are known by."""
        return monitoring.Run(output=self.output, name=self.run_id)

    def begin_row(self, planned: Row) -> Row:
        """The row of REGIONS of a planned region, with what is known before it is read."""
        row: Row = dict.fromkeys(REGIONS.names)
        row |= {name: planned[name] for name in PLAN.names if name in row and name in planned}
        return row | {
            "region_id": f"{planned['image_id']}-{planned['region_index']}",
            "status": "failed"
            if planned["error_type"]
            else "empty"
            if planned["num_regions"] == 0
            else None,
            "read_seconds": 0.0,
            "model_seconds": 0.0,
            "post_seconds": 0.0,
            "run_id": self.run_id,
            "bundle_digest": self.bundle_digest,
            "config_digest": self.config.digest,
            "code_version": __version__,
        }
