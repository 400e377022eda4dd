"""Speed and memory as ratios of two things measured in one run.

train: images/s of training through Ray over images/s of the same steps on tensors in memory, without Ray.
memory: peak memory of a training job on ten times the data over that on the data.
segment: megapixels/s of a segmentation job, from files to Parquet, over those of the bare network on tensors in memory. Beside it
    the job's speed over that of one image at a time (decode, predict, score, write), and its peak memory on few and many images.
slide: the same for one slide that is all tissue.
scale: a network that costs nothing over --images tiny images, ten and a hundred times as many: seconds of an image at the largest
    number over those at the smallest, memory, and files; draws scale.svg.
tune: seconds of a sweep of one trial over those of the same training by itself, both without the start of Ray.
"""

import os
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import ray
import tifffile
import tyro
from _bare import SIDE
from _job import read_config, run_job
from _memory import PeakMemory
from _scale import measure_scale

from resunet_ray import bundles, storage
from resunet_ray.cluster import MODEL_ENVIRONMENT, connect
from resunet_ray.config import (
    ModelConfig,
    PrepareConfig,
    SegmentConfig,
    SweepConfig,
    TrainConfig,
    save_config,
)
from resunet_ray.data.dataset import DATASET_FILE
from resunet_ray.data.prepare import prepare
from resunet_ray.data.synthetic import generate_image, write_images
from resunet_ray.errors import InputError
from resunet_ray.segment.run import segment
from resunet_ray.sweep.tuner import sweep
from resunet_ray.train.tracking import HISTORY_FILE, read_history, run_folder
from resunet_ray.train.trainer import train

_DISTINCT = 40  # generated images; the others are copies


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """What is measured."""

    what: tyro.conf.Positional[Literal["train", "memory", "segment", "slide", "scale", "tune"]]
    """train, segment, slide: throughput. memory: peak memory of training against the size of the data. tune: what Tune costs."""
    output: str
    """Where data and runs go: a new or empty folder."""
    data: str | None = None
    """A prepared data set (train, tune). None: generated images."""
    bundle: str | None = None
    """What segments (segment, slide, scale)."""
    images: int = 200
    """Images to generate; for memory and segment also ten times as many. A slide shows ten times as many."""
    epochs: int = 8
    """Epochs of the run through Ray (train, tune)."""
    workers: int = 1
    """Training workers of the run through Ray, which share the cores (train)."""


def benchmark_train(config: BenchmarkConfig) -> dict[str, Any]:
    """Bare, through Ray, bare again, so that a machine that slows down is seen. What Ray Data makes ahead counts as well."""
    training = TrainConfig(
        data="",
        output=config.output,
        workers=config.workers,
        epochs=config.epochs,
        validation_interval=config.epochs,
        warmup_epochs=0,
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
    return float(
        _run_alone("training", save_config(training), environment=MODEL_ENVIRONMENT["env_vars"])
    )


def _run_alone(*arguments: str, environment: dict[str, str]) -> str:
    """What _bare.py prints, in a process without Ray."""
    command = [sys.executable, str(Path(__file__).with_name("_bare.py")), *arguments]
    done = subprocess.run(
        command, env={**os.environ, **environment}, check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout.splitlines()[-1]


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
    bundle = _require_bundle(config)
    bare = [_measure_bare_network(bundle)]
    peaks, jobs = [], []
    for count in (config.images, 10 * config.images):
        folder = storage.join(config.output, f"images-{count}")
        _write_copies(folder, count=count)
        with PeakMemory() as peak:
            connect()
            (done,) = segment(
                SegmentConfig(
                    bundle=bundle,
                    input=(folder,),
                    output=storage.join(config.output, f"out-{count}"),
                )
            )
            ray.shutdown()
        peaks.append(peak.gib)
        jobs.append(done)
    bare.append(_measure_bare_network(bundle))
    single = float(_run_alone("one-at-a-time", bundle, folder, environment={}))
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


def benchmark_slide(config: BenchmarkConfig) -> dict[str, Any]:
    """The bare network, the job on one slide, the bare network again."""
    bundle = _require_bundle(config)
    slide = storage.join(config.output, "slide", "slide.tiff")
    _write_slide(Path(slide), side=SIDE * round((10 * config.images) ** 0.5))
    bare = [_measure_bare_network(bundle)]
    with PeakMemory() as peak:
        connect()
        (done,) = segment(
            SegmentConfig(bundle=bundle, input=(slide,), output=storage.join(config.output, "out"))
        )
        ray.shutdown()
    bare.append(_measure_bare_network(bundle))
    return {
        "ratio": round(done.megapixels_per_second / float(np.mean(bare)), 3),
        "unit": "megapixels/s of the job over megapixels/s of the bare network",
        "through_ray": done.megapixels_per_second,
        "bare": [round(rate, 3) for rate in bare],
        "regions": done.regions,
        "seconds": done.seconds,
        "peak_gib": round(peak.gib, 3),
    }


def benchmark_scale(config: BenchmarkConfig) -> dict[str, Any]:
    """What everything but the network takes, as an archive grows."""
    results = measure_scale(
        config.output,
        bundle=_require_bundle(config),
        counts=[config.images * times for times in (1, 10, 100)],
    )
    each = [
        (result.plan_seconds + result.segment_seconds + result.commit_seconds) / result.images
        for result in results
    ]
    return {
        "ratio": round(each[-1] / each[0], 3),
        "unit": f"seconds of an image of {results[-1].images} over those of one of {results[0].images}",
        "images_per_second": [round(1 / seconds, 1) for seconds in each],
        "measured": [
            {name: round(value, 3) for name, value in vars(result).items()} for result in results
        ],
    }


def benchmark_tune(config: BenchmarkConfig) -> dict[str, Any]:
    """The training by itself, a sweep with it for its only trial, and the training again."""
    connect()
    data = config.data or _generate(storage.join(config.output, "data"), count=config.images)
    ray.shutdown()
    training = TrainConfig(
        data=data,
        output="",
        epochs=config.epochs,
        validation_interval=config.epochs,
        warmup_epochs=0,
    )
    alone = [_time_training(replace(training, output=storage.join(config.output, "first")))]
    connect(dashboard=True)
    tuned = replace(training, output=storage.join(config.output, "sweep"))
    start = time.perf_counter()
    sweep(
        SweepConfig(
            training=tuned,
            space=(f"batch_size=choice:{training.batch_size}",),
            trials=1,
            concurrent=1,
            scheduler="none",
        )
    )
    seconds = time.perf_counter() - start
    ray.shutdown()
    alone.append(_time_training(replace(training, output=storage.join(config.output, "second"))))
    return {
        "ratio": round(seconds / float(np.mean(alone)), 3),
        "unit": "seconds of a sweep of one trial over seconds of the same training",
        "tuned_seconds": round(seconds, 1),
        "alone_seconds": [round(value, 1) for value in alone],
    }


def _time_training(training: TrainConfig) -> float:
    """Seconds from a Ray that runs to a bundle."""
    connect()
    start = time.perf_counter()
    train(training)
    seconds = time.perf_counter() - start
    ray.shutdown()
    return seconds


def _require_bundle(config: BenchmarkConfig) -> str:
    if config.bundle is None:
        raise InputError(
            f"{config.what} needs --bundle: an untrained network finds no nuclei to measure"
        )
    return bundles.absolute(config.bundle)


def _write_slide(path: Path, *, side: int) -> None:
    """A pyramid of generated images side by side, of which a few dozen differ."""
    path.parent.mkdir(parents=True)
    rng = np.random.default_rng(0)
    pieces = [
        generate_image(SIDE, SIDE, modality="stained", num_nuclei=40, rng=rng)[0]
        for _ in range(_DISTINCT)
    ]
    count = side // SIDE
    whole = np.vstack(
        [
            np.hstack([pieces[(row * count + column) % _DISTINCT] for column in range(count)])
            for row in range(count)
        ]
    )
    with tifffile.TiffWriter(path) as writer:
        for level in range(3):
            writer.write(
                whole,
                tile=(SIDE, SIDE),
                photometric="rgb",
                compression="zlib",
                subfiletype=int(level > 0),
            )
            whole = cv2.resize(whole, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)


def _write_copies(folder: str, *, count: int) -> None:
    """So many images of 256×256, of which a few dozen differ."""
    write_images(folder, count=min(count, _DISTINCT), height=SIDE, width=SIDE, seed=0)
    first = [
        storage.read_bytes(storage.join(folder, "images", name))
        for name, _ in storage.list_files(storage.join(folder, "images"))
    ]
    for number in range(_DISTINCT, count):
        storage.write_bytes(
            storage.join(folder, "images", f"copy-{number:06d}.png"), first[number % _DISTINCT]
        )
    for name in ("masks", "instances"):
        storage.delete(storage.join(folder, name))


def _measure_bare_network(bundle: str) -> float:
    return float(_run_alone("network", bundle, environment=MODEL_ENVIRONMENT["env_vars"]))


def _generate(uri: str, *, count: int) -> str:
    if not storage.exists(storage.join(uri, DATASET_FILE)):
        raw = storage.join(uri, "raw")
        write_images(raw, count=count, height=SIDE, width=SIDE, seed=0)
        prepare(PrepareConfig(input=(raw,), output=uri))
    return uri


_BENCHMARKS = {
    "train": benchmark_train,
    "memory": benchmark_memory,
    "segment": benchmark_segment,
    "slide": benchmark_slide,
    "scale": benchmark_scale,
    "tune": benchmark_tune,
}


def _work() -> dict[str, Any]:
    config = read_config(BenchmarkConfig, description=__doc__ or "")
    config = replace(config, output=storage.absolute(config.output))
    if storage.list_folders(config.output):
        raise InputError(
            f"{config.output} holds an earlier run, which would be taken for this one: give another --output"
        )
    return _BENCHMARKS[config.what](config)


if __name__ == "__main__":
    run_job("benchmark", _work)
