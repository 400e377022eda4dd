"""The configuration of `jobs/doctor.py`: what it looks at, how long it waits, what it expects."""

from dataclasses import dataclass

from resunet_ray.config.checks import ANY, TINY, require, require_range
from resunet_ray.config.segment import SegmentConfig
from resunet_ray.config.train import TrainConfig

_MOST_SECONDS = 50  # with Python's own start and the end of what hangs, a minute


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """What to look at. Nothing changes: the files it writes are removed again."""

    storage: str | None = None
    """Where outputs will go: this process and every node write, read and remove files there."""
    bundle: str | None = None
    """The bundle to be used: this process and every node load it and run its sample."""
    workers: int = TrainConfig.workers
    """Training workers that must fit."""
    cpus_per_worker: int = TrainConfig.cpus_per_worker
    """CPUs of each training worker."""
    cache: str = SegmentConfig.cache
    """Folder on each node's disk where slides will be staged."""
    cache_gib: float = SegmentConfig.cache_gib
    """Room that folder must have."""
    connect_seconds: float = 20.0
    """How long to wait for the cluster to answer, or for a local Ray to start."""
    node_seconds: float = 10.0
    """How long to wait for a node to start a process that needs no CPU."""
    check_seconds: float = 20.0
    """How long to wait for any other check."""
    start_seconds: float = 5.0
    """Warn if a process takes longer to start: Python and its packages are on a slow disk."""
    storage_seconds: float = 2.0
    """Warn if a small file takes longer to write and read."""
    storage_mib_per_second: float = 10.0
    """Warn if storage is slower."""
    disk_fraction: float = 0.95
    """Fail if more of a disk is used: Ray puts no more objects there."""
    disk_gib: float = 5.0
    """Warn if less disk is free."""
    memory_fraction: float = 0.95
    """Fail if more of a node's memory is used: Ray ends processes there."""
    memory_gib: float = 2.0
    """Warn if less memory is free: a default training worker takes 1.8 GiB."""
    open_files: int = 8192
    """Warn if a process may open fewer files: Ray recommends this many."""

    def __post_init__(self) -> None:
        waits = ("connect_seconds", "node_seconds", "check_seconds")
        limits = ("storage_mib_per_second", "disk_gib", "memory_gib")
        require_range(self, 1, ANY, "workers", "cpus_per_worker", "open_files")
        require_range(self, TINY, ANY, *waits, "start_seconds", "cache_gib", "storage_seconds")
        require_range(self, 0, ANY, *limits)
        require_range(self, 0, 1, "disk_fraction", "memory_fraction")
        total = sum(getattr(self, name) for name in waits)
        require(
            total <= _MOST_SECONDS,
            f"--connect-seconds, --node-seconds and --check-seconds are {total:g} together: "
            f"expected at most {_MOST_SECONDS}, so that the job ends within a minute",
        )
