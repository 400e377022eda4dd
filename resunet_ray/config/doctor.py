"""The configuration of `jobs/doctor.py`: what it checks, how long it waits, and what it expects.

With the default deadlines, it answers within a minute, whatever hangs.
"""

from dataclasses import dataclass
from typing import Annotated

from resunet_ray.config.checks import ANY, TINY, require_range
from resunet_ray.config.roles import Heading, Tuning
from resunet_ray.config.segment import SegmentConfig
from resunet_ray.config.train import TrainConfig


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """What the doctor checks. It changes nothing: it removes the files that it writes."""

    storage: Annotated[str | None, Heading.INPUT] = None
    """Where outputs will go: this process and every node write, read and remove a file there."""
    bundle: str | None = None
    """The bundle to be used: this process and every node load it and run its sample."""
    workers: Annotated[int, Heading.COMPUTE] = TrainConfig.workers
    """Training workers that must fit on the cluster."""
    cpus_per_worker: int = TrainConfig.cpus_per_worker
    """CPUs of each worker."""
    cache: Annotated[str, Heading.CACHE] = SegmentConfig.cache
    """Folder on each node's disk where slides will be staged."""
    cache_gib: float = SegmentConfig.cache_gib
    """Size limit of the cache in that folder, GiB."""
    connect_seconds: Annotated[Tuning[float], Heading.DEADLINES] = 20.0
    """How long to wait for the cluster to answer, or for a local Ray to start."""
    node_seconds: Tuning[float] = 10.0
    """How long to wait for a node to start a process that needs no CPU."""
    check_seconds: Tuning[float] = 20.0
    """How long to wait for any other check."""
    start_seconds: Annotated[Tuning[float], Heading.THRESHOLDS] = 5.0
    """Warn if a process takes longer to start: Python and its packages are on a slow disk."""
    storage_seconds: Tuning[float] = 2.0
    """Warn if writing and reading a small file takes longer."""
    storage_mib_per_second: Tuning[float] = 10.0
    """Warn if storage is slower."""
    disk_fraction: Tuning[float] = 0.95
    """Fail if a disk is fuller: Ray stores no more objects on it."""
    disk_gib: Tuning[float] = 5.0
    """Warn if less disk space is free."""
    memory_fraction: Tuning[float] = 0.95
    """Fail if more of a node's memory is in use: Ray kills processes there."""
    memory_gib: Tuning[float] = 2.0
    """Warn if less memory is free: a default training worker takes 1.8 GiB."""
    open_files: Tuning[int] = 8192
    """Warn if the limit of open files is lower: Ray recommends this one."""

    def __post_init__(self) -> None:
        waits = ("connect_seconds", "node_seconds", "check_seconds")
        limits = ("storage_mib_per_second", "disk_gib", "memory_gib")
        require_range(self, 1, ANY, "workers", "cpus_per_worker", "open_files")
        require_range(self, TINY, ANY, *waits, "start_seconds", "cache_gib", "storage_seconds")
        require_range(self, 0, ANY, *limits)
        require_range(self, 0, 1, "disk_fraction", "memory_fraction")
