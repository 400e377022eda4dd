"""Training through Ray against the bare loop, its memory against the data, and a sweep's cost."""

import time
from dataclasses import replace
from typing import Any

import numpy as np
import ray

from benchmarks.bare import SIDE, run_alone
from benchmarks.config import BenchmarkConfig
from benchmarks.usage import PeakMemory, core_seconds
from resunet_ray import storage
from resunet_ray.cluster import MODEL_ENVIRONMENT, connect
from resunet_ray.config import ModelConfig, PrepareConfig, SweepConfig, TrainConfig, save_config
from resunet_ray.data.dataset import DATASET_FILE
from resunet_ray.data.prepare import prepare
from resunet_ray.data.synthetic import write_images
from resunet_ray.sweep.tuner import sweep
from resunet_ray.train.tracking import HISTORY_FILE, read_history, run_folder
from resunet_ray.train.trainer import train


def benchmark_train(config: BenchmarkConfig) -> dict[str, Any]:
    """Measure bare, through Ray, and bare again, to see whether the machine slows down.

    What Ray Data makes ahead counts as well, and as core-seconds also start and validation.
    """
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
    before = core_seconds()
    train(training)
    took = core_seconds() - before
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
        "core_seconds_per_image": round(took / float(images), 4),
    }


def _measure_bare(training: TrainConfig) -> float:
    """Return images/s of the same steps in a process without Ray."""
    environment = MODEL_ENVIRONMENT["env_vars"]
    return run_alone("training", save_config(training), environment=environment)


def benchmark_memory(config: BenchmarkConfig) -> dict[str, Any]:
    """Measure two jobs that differ only in the number of images.

    The network is small, so that any growth with the data would show.
    """
    peaks = {}
    for count in (config.images, 10 * config.images):
        output = storage.join(config.output, str(count))
        connect()
        data = _generate(storage.join(output, "data"), count=count)
        ray.shutdown()  # what prepare left in the object store does not count
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


def benchmark_tune(config: BenchmarkConfig) -> dict[str, Any]:
    """Measure the training alone, a sweep with it as its only trial, and the training again."""
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
    """Return the seconds from a running Ray to the bundle."""
    connect()
    start = time.perf_counter()
    train(training)
    seconds = time.perf_counter() - start
    ray.shutdown()
    return seconds


def _generate(uri: str, *, count: int) -> str:
    if not storage.exists(storage.join(uri, DATASET_FILE)):
        raw = storage.join(uri, "raw")
        write_images(raw, count=count, height=SIDE, width=SIDE, seed=0)
        prepare(PrepareConfig(input=(raw,), output=uri))
    return uri
