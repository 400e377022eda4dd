"""The configuration of `jobs/doctor.py`: what it asks, how long it waits, and what it expects."""

from dataclasses import dataclass

from resunet_ray.config.checks import ANY, TINY, require, require_range
from resunet_ray.config.segment import SegmentConfig
from resunet_ray.config.train import TrainConfig

_MOST_SECONDS = 50  # with Python's own start and the end of what hangs, a minute


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """What is examined. Nothing is changed: what is written is removed again."""

    storage: str | None = None
    """Where outputs are to go: this process and every node write, read and remove files there."""
    bundle: str | None = None
    """The bundle that is to be used: this process and every node load it and run its sample."""
    workers: int = TrainConfig.workers
    """Training workers that are to fit."""
    cpus_per_worker: int = TrainConfig.cpus_per_worker
    """CPUs of each."""
    cache: str = SegmentConfig.cache
    """Folder on each node's disk where slides are to be staged."""
    cache_gib: float = SegmentConfig.cache_gib
    """What that folder is to hold."""
    connect_seconds: float = 20.0
    """How long the cluster may take to answer, or a local Ray to start."""
    node_seconds: float = 10.0
    """How long a node may take to start a process that needs no CPU."""
    check_seconds: float = 20.0
    """How long any other check may take."""
    start_seconds: float = 5.0
    """A process that starts no sooner is a warning: Python and its packages lie on a slow disk."""
    clock_seconds: float = 2.0
    """How far a node's clock may be from this one's. Runs are ordered by the time in their names."""
    storage_seconds: float = 2.0
    """A small file that takes longer to write and read is a warning."""
    storage_mib_per_second: float = 10.0
    """Slower storage is a warning."""
    disk_fraction: float = 0.95
    """Ray takes no more objects to a disk that is fuller."""
    disk_gib: float = 5.0
    """Less free disk is a warning."""
    memory_fraction: float = 0.95
    """Ray ends processes on a node whose memory is fuller."""
    memory_gib: float = 2.0
    """Less free memory is a warning: a default training worker takes 1.8 GiB."""
    open_files: int = 8192
    """A lower limit is a warning: Ray recommends so many."""

    def __post_init__(self) -> None:
        require_range(self, 1, ANY, "workers", "cpus_per_worker", "open_files")
        require_range(
            self,
            TINY,
            ANY,
            "connect_seconds",
            "node_seconds",
            "check_seconds",
            "start_seconds",
            "clock_seconds",
        )
        require_range(self, TINY, ANY, "cache_gib", "storage_seconds")
        require_range(self, 0, ANY, "storage_mib_per_second", "disk_gib", "memory_gib")
        require_range(self, 0, 1, "disk_fraction", "memory_fraction")
        total = self.connect_seconds + self.node_seconds + self.check_seconds
        require(
            total <= _MOST_SECONDS,
            f"--connect-seconds, --node-seconds and --check-seconds are {total:g} together: expected at most {_MOST_SECONDS}, "
            "so that all is said within a minute",
        )
