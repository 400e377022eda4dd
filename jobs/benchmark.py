"""Speed and memory as ratios of two things measured in one run.

train: images/s of training through Ray over images/s of the same steps on tensors in memory, without Ray.
memory: peak memory of a training job on ten times the data over that on the data.
"""

import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import ray
import torch
import tyro
from _job import read_config, run_job

from resunet_ray import storage
from resunet_ray.cluster import MODEL_ENVIRONMENT, connect
from resunet_ray.config import ModelConfig, PrepareConfig, TrainConfig, load_config, save_config
from resunet_ray.data.dataset import DATASET_FILE, Dataset
from resunet_ray.data.prepare import prepare
from resunet_ray.data.synthetic import write_images
from resunet_ray.errors import InputError
from resunet_ray.train.loop import train_step
from resunet_ray.train.session import build_session
from resunet_ray.train.tracking import HISTORY_FILE, read_history, run_folder
from resunet_ray.train.trainer import train

_SIDE = 256  # pixels
_BARE_STEPS = 30


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """What is measured."""

    what: tyro.conf.Positional[Literal["train", "memory"]]
    """train: throughput. memory: peak memory against the size of the data."""
    output: str
    """Where data and runs go: a new or empty folder."""
    data: str | None = None
    """A prepared data set (train). None: generated images."""
    images: int = 200
    """Images to generate; for memory also ten times as many."""
    epochs: int = 8
    """Epochs of the run through Ray."""


def benchmark_train(config: BenchmarkConfig) -> dict[str, Any]:
    """Bare, through Ray, bare again, so that a machine that slows down is seen. What Ray Data makes ahead counts as well."""
    training = TrainConfig(
        data="", output=config.output, epochs=config.epochs, validation_interval=config.epochs, warmup_epochs=0
    )
    bare = [_measure_bare(training)]
    connect()
    data = config.data or _generate(storage.join(config.output, "data"), count=config.images)
    training = replace(training, data=data)
    train(training)
    ray.shutdown()
    bare.append(_measure_bare(training))
    history = read_history(storage.join(run_folder(training), HISTORY_FILE))
    images = (history["images_per_second"] * history["seconds"]).sum()
    through_ray = float(images / history["seconds"].sum())
    return {
        "ratio": round(through_ray / float(np.mean(bare)), 3),
        "unit": "images/s through Ray over images/s bare",
        "through_ray": round(through_ray, 2),
        "bare": [round(rate, 2) for rate in bare],
        "seconds": round(float(history["seconds"].sum()), 1),
    }


def _measure_bare(training: TrainConfig) -> float:
    """Images/s of the same steps in a process without Ray."""
    environment = {**os.environ, **MODEL_ENVIRONMENT["env_vars"]}
    done = subprocess.run(
        [sys.executable, __file__, "--bare", save_config(training)], env=environment, check=True, stdout=subprocess.PIPE
    )
    return float(done.stdout)


def run_bare(training: TrainConfig) -> float:
    """Images/s of training steps on random tensors in memory, after three to warm up."""
    torch.set_num_threads(os.cpu_count() or 1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    nowhere = Dataset("", "", None, {}, {})
    session = build_session(training, nowhere, rank=0, workers=1, device=device, resume_from=None)
    generator = torch.Generator().manual_seed(0)
    shape = training.batch_size, training.crop, training.crop
    image = torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, generator=generator)
    mask = torch.randint(0, 2, shape, dtype=torch.uint8, generator=generator)
    session.network.train()
    for step in range(_BARE_STEPS + 3):
        if step == 3:
            start = time.perf_counter()
        float(train_step(session, image, mask))
    return _BARE_STEPS * training.batch_size / (time.perf_counter() - start)


def benchmark_memory(config: BenchmarkConfig) -> dict[str, Any]:
    """Two jobs that differ in the number of images alone; the network is small, so that data would show."""
    peaks = {}
    for count in (config.images, 10 * config.images):
        output = storage.join(config.output, str(count))
        connect()
        data = _generate(storage.join(output, "data"), count=count)
        ray.shutdown()  # what preparing left in the object store is not training's
        connect()
        model = ModelConfig(widths=(16, 32))
        with PeakMemory() as peak:
            train(TrainConfig(data=data, output=output, model=model, epochs=1, warmup_epochs=0))
        ray.shutdown()
        peaks[count] = peak.gib
    (small, first), (large, second) = peaks.items()
    return {
        "ratio": round(second / first, 3),
        "unit": f"peak GiB at {large} images over peak GiB at {small}",
        "peak_gib": [round(first, 3), round(second, 3)],
    }


def _generate(uri: str, *, count: int) -> str:
    if not storage.exists(storage.join(uri, DATASET_FILE)):
        raw = storage.join(uri, "raw")
        write_images(raw, count=count, height=_SIDE, width=_SIDE, seed=0)
        prepare(PrepareConfig(input=(raw,), output=uri))
    return uri


class PeakMemory:
    """The largest sum of proportional set sizes of this process and all below it, sampled twice a second (Linux)."""

    def __enter__(self) -> "PeakMemory":
        self.gib = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(0.5):
            self.gib = max(self.gib, sum(_pss_kib(pid) for pid in _family(os.getpid())) / 2**20)


def _family(root: int) -> list[int]:
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, rest = stat.read_text().split(" (", 1)
        except OSError:  # it ended meanwhile
            continue
        parents[int(pid)] = int(rest.rsplit(") ", 1)[1].split()[1])
    family = {root}
    while grown := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= grown
    return sorted(family)


def _pss_kib(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # it ended meanwhile
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def _work() -> dict[str, Any]:
    config = read_config(BenchmarkConfig, description=__doc__ or "")
    config = replace(config, output=storage.absolute(config.output))
    if storage.list_folders(config.output):
        raise InputError(f"{config.output} holds an earlier run, which would be taken for this one: give another --output")
    return {"train": benchmark_train, "memory": benchmark_memory}[config.what](config)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--bare"]:
        print(run_bare(load_config(sys.argv[2], kind=TrainConfig, source="the command line")))
    else:
        run_job("benchmark", _work)
