"""Speed and memory as ratios of two things measured in one run.

train: images/s of training through Ray over images/s of the same steps on tensors in memory, without Ray.
memory: peak memory of a training job on ten times the data over that on the data.
segment: megapixels/s of a segmentation job, from files to Parquet, over those of the bare network on tensors in memory. Beside it
    the job's speed over that of one image at a time (decode, predict, score, write), and its peak memory on few and many images.
"""

import copy
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
from resunet_ray.bundle import load_bundle
from resunet_ray.cluster import MODEL_ENVIRONMENT, connect
from resunet_ray.config import ModelConfig, PrepareConfig, SegmentConfig, TrainConfig, load_config, save_config
from resunet_ray.data.dataset import DATASET_FILE, Dataset
from resunet_ray.data.images import decode_image, encode_png
from resunet_ray.data.prepare import prepare
from resunet_ray.data.synthetic import write_images
from resunet_ray.errors import InputError
from resunet_ray.model.instances import threshold_mask
from resunet_ray.model.metrics import count_pixels, score_counts
from resunet_ray.segment.run import segment
from resunet_ray.train.loop import train_step
from resunet_ray.train.session import build_session
from resunet_ray.train.tracking import HISTORY_FILE, read_history, run_folder
from resunet_ray.train.trainer import train

_SIDE = 256  # pixels
_BARE_STEPS = 30
_BARE_TILES = 96
_DISTINCT = 40  # generated images; the others are copies
_SINGLE_IMAGES = 100


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """What is measured."""

    what: tyro.conf.Positional[Literal["train", "memory", "segment"]]
    """train, segment: throughput. memory: peak memory of training against the size of the data."""
    output: str
    """Where data and runs go: a new or empty folder."""
    data: str | None = None
    """A prepared data set (train). None: generated images."""
    bundle: str | None = None
    """What segments (segment)."""
    images: int = 200
    """Images to generate; for memory and segment also ten times as many."""
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
    return float(_run_alone("--bare-train", save_config(training), environment=MODEL_ENVIRONMENT["env_vars"]))


def _run_alone(*arguments: str, environment: dict[str, str]) -> str:
    """What this file prints in a process without Ray."""
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, env={**os.environ, **environment}, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.splitlines()[-1]


def run_bare_training(training: TrainConfig) -> float:
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


def benchmark_segment(config: BenchmarkConfig) -> dict[str, Any]:
    """The bare network, the job on few and on many images, the bare network again, one image at a time."""
    if config.bundle is None:
        raise InputError("segment needs --bundle: an untrained network finds no nuclei to measure")
    bundle = storage.absolute(config.bundle)
    bare = [_measure_bare_network(bundle)]
    peaks, jobs = [], []
    for count in (config.images, 10 * config.images):
        folder = storage.join(config.output, f"images-{count}")
        _write_copies(folder, count=count)
        with PeakMemory() as peak:
            connect()
            (done,) = segment(SegmentConfig(bundle=bundle, input=(folder,), output=storage.join(config.output, f"out-{count}")))
            ray.shutdown()
        peaks.append(peak.gib)
        jobs.append(done)
    bare.append(_measure_bare_network(bundle))
    single = float(_run_alone("--one-at-a-time", bundle, folder, environment={}))
    job = jobs[-1].megapixels_per_second
    return {
        "ratio": round(job / float(np.mean(bare)), 3),
        "unit": "megapixels/s of the job over megapixels/s of the bare network",
        "through_ray": round(job, 3),
        "bare": [round(rate, 3) for rate in bare],
        "seconds": jobs[-1].seconds,
        "model_busy_fraction": jobs[-1].model_busy_fraction,
        "over_one_at_a_time": round(job / single, 2),
        "peak_gib": [round(peak, 3) for peak in peaks],
    }


def _write_copies(folder: str, *, count: int) -> None:
    """So many images of 256×256, of which a few dozen differ."""
    write_images(folder, count=min(count, _DISTINCT), height=_SIDE, width=_SIDE, seed=0)
    first = [
        storage.read_bytes(storage.join(folder, "images", name)) for name, _ in storage.list_files(storage.join(folder, "images"))
    ]
    for number in range(_DISTINCT, count):
        storage.write_bytes(storage.join(folder, "images", f"copy-{number:06d}.png"), first[number % _DISTINCT])
    for name in ("masks", "instances"):
        storage.delete(storage.join(folder, name))


def _measure_bare_network(bundle: str) -> float:
    return float(_run_alone("--bare-network", bundle, environment=MODEL_ENVIRONMENT["env_vars"]))


def run_bare_network(uri: str) -> float:
    """Megapixels/s of the network on random tiles in memory, at the best of some batch sizes and precisions."""
    torch.set_num_threads(os.cpu_count() or 1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bundle = load_bundle(uri, device=device)
    half = copy.deepcopy(bundle.network).to(torch.bfloat16)
    best = 0.0
    for batch_size in (1, 4, 16):
        x = torch.rand((batch_size, bundle.info.model.in_channels, _SIDE, _SIDE), device=device)
        x = x.contiguous(memory_format=torch.channels_last)
        for network, tiles in ((half, x.bfloat16()), (bundle.network, x)):
            steps = max(2, _BARE_TILES // batch_size)
            with torch.inference_mode():
                for step in range(steps + 2):
                    if step == 2:
                        start = time.perf_counter()
                    float(network(tiles).sum())
            best = max(best, steps * batch_size * _SIDE**2 / 1e6 / (time.perf_counter() - start))
    return best


def run_one_at_a_time(uri: str, folder: str) -> float:
    """Megapixels/s of a loop over single images, as the report's notebook had it: decode, predict, score, write."""
    bundle = load_bundle(uri)
    files = [storage.join(folder, "images", name) for name, _ in storage.list_files(storage.join(folder, "images"))][
        :_SINGLE_IMAGES
    ]
    pixels, start = 0, time.perf_counter()
    for number, file in enumerate(files):
        image = decode_image(storage.read_bytes(file), name=file)
        (probability,) = bundle.predict([image], batch_size=1, precision="fp32")
        mask = threshold_mask(probability, threshold=bundle.info.instances.threshold)
        score_counts(count_pixels(mask, mask))
        storage.write_bytes(storage.join(folder, "single", f"{number}.png"), encode_png(mask * np.uint8(255)))
        pixels += mask.size
    return pixels / 1e6 / (time.perf_counter() - start)


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
    return {"train": benchmark_train, "memory": benchmark_memory, "segment": benchmark_segment}[config.what](config)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--bare-train", training]:
            print(run_bare_training(load_config(training, kind=TrainConfig, source="the command line")))
        case ["--bare-network", bundle]:
            print(run_bare_network(bundle))
        case ["--one-at-a-time", bundle, folder]:
            print(run_one_at_a_time(bundle, folder))
        case _:
            run_job("benchmark", _work)
