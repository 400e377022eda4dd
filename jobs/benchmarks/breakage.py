"""What can break while a job works, and how to break it."""

import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from ray.util.state import list_actors, list_jobs

from benchmarks.faulty import Answer

_SECONDS = 15.0  # how long a store or a disk fails
_FULL_BYTES = 4096  # no file grows beyond this in a process whose disk is full
_ACTOR = "Segmenter"

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Store:
    """A store that may be frozen or refuse every request."""

    def __init__(self) -> None:
        self._open, self._refusing = threading.Event(), False
        self._open.set()

    def decide(self, _method: str, _path: str) -> Answer:
        """Answer one request, once it is not frozen any more."""
        self._open.wait()
        return (503, "SlowDown") if self._refusing else None

    def freeze(self) -> bool:
        """Answer nothing for a while."""
        self._open.clear()
        time.sleep(_SECONDS)
        self._open.set()
        return True

    def refuse(self) -> bool:
        """Refuse every request for a while."""
        self._refusing = True
        time.sleep(_SECONDS)
        self._refusing = False
        return True


@dataclass
class Target:
    """A job that works."""

    job: subprocess.Popen[bytes]
    store: Store | None
    rng: random.Random

    def find_actors(self) -> list[tuple[str, int]]:
        """Return node and process of each of its actors that segment."""
        own = {
            job.job_id
            for job in list_jobs(detail=True)
            if job.driver_info is not None and job.driver_info.pid == str(self.job.pid)
        }
        alive = list_actors(filters=[("state", "=", "ALIVE")], detail=True, limit=1000)
        return sorted(
            (str(actor.node_id), int(actor.pid))
            for actor in alive
            if actor.job_id in own and _ACTOR in str(actor.class_name)
        )

    def choose(self, *, elsewhere: bool = False) -> tuple[str, int] | None:
        """Choose one of the actors, on another node than this process if so asked."""
        here = ray.get_runtime_context().get_node_id() if elsewhere else ""
        found = [(node, process) for node, process in self.find_actors() if node != here]
        return self.rng.choice(found) if found else None


def _kill_driver(target: Target) -> bool:
    target.job.kill()
    return True


def _kill_actor(target: Target) -> bool:
    return _visit(target.choose(), _kill)


def _kill_node(target: Target) -> bool:
    """Kill the Ray process that all others of a node depend on."""
    return _visit(target.choose(elsewhere=True), _kill_parent)


def _freeze_store(target: Target) -> bool:
    return target.store is not None and target.store.freeze()


def _refuse_store(target: Target) -> bool:
    return target.store is not None and target.store.refuse()


def _fill_disk(target: Target) -> bool:
    """Let the driver and an actor write nothing more."""
    chosen = target.choose()
    _limit_files(target.job.pid, _FULL_BYTES)
    done = _visit(chosen, _limit_files, _FULL_BYTES)
    time.sleep(_SECONDS)
    _limit_files(target.job.pid, resource.RLIM_INFINITY)
    _visit(chosen, _limit_files, resource.RLIM_INFINITY)
    return done


BREAKAGES: dict[str, Callable[[Target], bool]] = {
    "driver": _kill_driver,
    "actor": _kill_actor,
    "node": _kill_node,
    "store frozen": _freeze_store,
    "store refusing": _refuse_store,
    "disk full": _fill_disk,
}
"""How to break each thing. Each returns whether there was one to break."""


def _visit(chosen: tuple[str, int] | None, change: Callable[..., None], *arguments: int) -> bool:
    """Change an actor's process, from a task on its node."""
    if chosen is None:
        return False
    node, process = chosen
    visit = ray.remote(num_cpus=0, max_retries=0)(change).options(
        scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
    )
    with suppress(RayError):  # who kills the node is killed with it
        ray.get(visit.remote(process, *arguments), timeout=_SECONDS)
    return True


def _kill(process: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def _kill_parent(process: int) -> None:
    stat = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    _kill(int(stat[1]))  # proc(5): ppid


def _limit_files(process: int, size: int) -> None:
    """Limit the size of the files that a process may write, in bytes."""
    with suppress(ProcessLookupError):
        _, most = resource.prlimit(process, resource.RLIMIT_FSIZE)
        resource.prlimit(process, resource.RLIMIT_FSIZE, (size, most))
