"""Segmentation while processes are killed and the store and disks fail.

Each round segments one archive and one slide into a new output. A job that ends before its work is
done is started again. In the end the tables must be those of a run that nothing disturbed.
"""

import json
import logging
import os
import random
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import ray
from ray.cluster_utils import Cluster

from benchmarks.bare import SIDE
from benchmarks.breakage import BREAKAGES, Store, Target
from benchmarks.config import BenchmarkConfig
from benchmarks.drawn import write_copies, write_slide
from benchmarks.faulty import faulty_store
from resunet_ray import storage
from resunet_ray.cluster import connect
from resunet_ray.errors import RunError

logger = logging.getLogger(__name__)

_SEGMENT = Path(__file__).parents[1] / "segment.py"
_NODES, _CPUS = 2, 2  # of a cluster that starts with the benchmark, besides its head
_QUIET_SECONDS = (2.0, 8.0)  # between two faults
_MOST_ENDS = 5  # of a job in a row, without a fault in between
_TABLES = {"images": "image_id", "regions": "region_id", "instances": "instance_id"}
_WRONG = ("lost", "doubled", "blamed", "other")


def benchmark_faults(config: BenchmarkConfig) -> dict[str, Any]:
    """Break things while a job works, and compare its tables with those of an undisturbed run."""
    rng = random.Random(config.seed)  # noqa: S311 (the same faults in the same order)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        _write_inputs(config, Path(folder))
        cluster = stack.enter_context(_cluster())
        store, environment = stack.enter_context(_store(config.output))
        left = [
            name
            for name in BREAKAGES
            if (store is not None or not name.startswith("store"))
            and (cluster is not None or config.kill_nodes or name != "node")
        ]
        left = [left[number % len(left)] for number in range(config.faults)]
        rng.shuffle(left)
        planned = Counter(left)
        bench = _Bench(config, Path(folder), environment, store, cluster, rng)
        undisturbed, rounds = bench.run("undisturbed", []), list[_Round]()
        while left:
            rounds.append(bench.run(f"round-{len(rounds) + 1}", left))
    found = [compare_outputs(done.output, undisturbed.output) for done in rounds]
    wrong = {name: sum(counts[name] for counts in found) for name in _WRONG}
    seconds = sum(done.seconds for done in rounds) / len(rounds)
    return {
        **wrong,
        "faults": dict(planned),
        "rounds": len(rounds),
        "starts": sum(done.starts for done in rounds),
        "ratio": round(seconds / undisturbed.seconds, 2),
        "unit": "seconds of a disturbed run over those of an undisturbed one",
        "undisturbed_seconds": round(undisturbed.seconds, 1),
        "exit_code": int(any(wrong.values())),
    }


@dataclass
class _Round:
    """One output."""

    output: str
    seconds: float
    starts: int


@dataclass
class _Bench:
    """Runs jobs, and breaks things meanwhile."""

    config: BenchmarkConfig
    folder: Path
    """For logs."""
    environment: dict[str, str]
    """Of the jobs."""
    store: Store | None
    cluster: Cluster | None
    """One that starts with the benchmark."""
    rng: random.Random
    ends: int = field(default=0, init=False)
    """Of jobs in a row, without a fault in between."""

    def run(self, name: str, faults: list[str]) -> _Round:
        """Segment everything into a new output. Faults that happen are taken off the list."""
        output = storage.join(self.config.output, name)
        log = self.folder / f"{name}.log"
        began, starts, code, self.ends = time.monotonic(), 0, None, 0
        while code != 0:
            starts += 1
            with log.open("ab") as file:
                job = subprocess.Popen(
                    self._command(output), env=self.environment, stdout=file, stderr=file
                )
            try:
                self._disturb(Target(job, self.store, self.rng), faults)
                code = job.wait()
            finally:
                job.kill()
            self.ends += code != 0
            logger.info("the job ended with exit code %d after start %d", code, starts)
            if self.ends > _MOST_ENDS:
                end = log.read_text(errors="replace")[-2000:]
                raise RunError(f"the job ended {self.ends} times with no fault in between:\n{end}")
        return _Round(output, time.monotonic() - began, starts)

    def _command(self, output: str) -> list[str]:
        given = ("--bundle", self.config.bundle_uri, "--output", output)
        inputs = ("--input", storage.join(self.config.output, "in"))
        return [sys.executable, str(_SEGMENT), *given, *inputs]

    def _disturb(self, target: Target, faults: list[str]) -> None:
        """Break one thing after another until the job ends or nothing is left to break."""
        while faults and target.job.poll() is None:
            time.sleep(1)
            if not target.find_actors():
                continue
            time.sleep(self.rng.uniform(*_QUIET_SECONDS))
            if target.job.poll() is None and BREAKAGES[faults[0]](target):
                logger.info("%s, %d faults left", faults.pop(0), len(faults))
                self.ends = 0
            if self.cluster is not None:
                _restore(self.cluster)


@contextmanager
def _cluster() -> Iterator[Cluster | None]:
    """Join the cluster of RAY_ADDRESS, or start one of several nodes on this machine."""
    if os.environ.get("RAY_ADDRESS", "local") != "local":
        connect()
        yield None
        return
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": True}
    )
    try:
        _restore(cluster)
        os.environ["RAY_ADDRESS"] = cluster.address
        connect()
        yield cluster
    finally:
        del os.environ["RAY_ADDRESS"]
        ray.shutdown()
        cluster.shutdown()


def _restore(cluster: Cluster) -> None:
    for node in [node for node in cluster.worker_nodes if not node.any_processes_alive()]:
        cluster.worker_nodes.discard(node)
    alive = {node for node in cluster.worker_nodes if not node.dead_processes()}
    for node in cluster.worker_nodes - alive:
        cluster.remove_node(node, allow_graceful=False)
    for _ in range(_NODES - len(alive)):
        cluster.add_node(num_cpus=_CPUS)


@contextmanager
def _store(output: str) -> Iterator[tuple[Store | None, dict[str, str]]]:
    """Stand between jobs and their store, if it has an endpoint; yield also their environment."""
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    behind = os.environ.get("AWS_ENDPOINT_URL")
    if behind is None or not output.startswith("s3://"):
        logger.warning("no AWS_ENDPOINT_URL, or no s3:// output: the store will not fail")
        yield None, environment
        return
    store = Store()
    host = ray.util.get_node_ip_address()
    with faulty_store(behind, store.decide, host=host) as seen:
        job: dict[str, Any] = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
        variables = job.setdefault("runtime_env", {}).setdefault("env_vars", {})
        variables["AWS_ENDPOINT_URL"] = seen.endpoint
        environment |= {
            "AWS_ENDPOINT_URL": seen.endpoint,
            "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps(job),
        }
        yield store, environment


def _write_inputs(config: BenchmarkConfig, folder: Path) -> None:
    write_copies(str(folder / "drawn"), count=config.images)
    with zipfile.ZipFile(folder / "archive.zip", "w") as archive:
        for path in sorted((folder / "drawn" / "images").iterdir()):
            archive.write(path, path.name)
    write_slide(folder / "slide.tiff", side=SIDE * round(config.images**0.5))
    for name in ("archive.zip", "slide.tiff"):
        storage.upload(folder / name, storage.join(config.output, "in", name))


def compare_outputs(output: str, undisturbed: str) -> Counter[str]:
    """Count rows that are lost, doubled, blamed on an image, or other than they should be."""
    counts = Counter[str](dict.fromkeys(_WRONG, 0))
    for table, key in _TABLES.items():
        keys = _read(output, table, key)
        expected = set(_read(undisturbed, table, key))
        counts["doubled"] += int(keys.duplicated().sum())
        counts["lost"] += len(expected - set(keys))
        counts["other"] += len(set(keys) - expected)
    counts["blamed"] += int(_read(output, "images", "status").isin(["failed", "partial"]).sum())
    return counts


def _read(output: str, table: str, column: str) -> "pd.Series[Any]":
    folder = storage.join(output, table)
    return pd.concat(
        storage.read_table(storage.join(folder, file.path), columns=[column]).to_pandas()[column]
        for file in storage.walk_files(folder)
    )
