"""Measure speed and memory, mostly as the ratio of two things measured in one run.

train: images/s of training through Ray over those of the same steps on tensors in memory, without
    Ray. Also the job's core-seconds per image.
memory: peak memory of a training job on ten times the data over that on the data.
segment: megapixels/s of a segmentation job, from files to Parquet, over those of the bare network
    on tensors in memory. Also the job's speed over that of one image at a time (decode, predict,
    score, write), and its peak memory on few and on many images.
slide: the same for one slide that is all tissue.
scale: a network that costs nothing over --images tiny images, ten and a hundred times as many:
    seconds per image at the largest number over those at the smallest, memory, and files; draws
    scale.svg.
overhead: core-seconds per megapixel of everything but the network, stage by stage, on one thread,
    over --images images of the folder --data; writes overhead.csv.
network: parameters, multiply-accumulates and images/s of the network with each --model.block and
    --model.bridge, and the latter over those of the default network; writes network.csv.
tune: seconds of a sweep of one trial over those of the same training alone, both without the start
    of Ray.
faults: segment an archive and a slide while drivers, actors and nodes are killed, the store freezes
    or refuses requests, and disks are full. Counts rows that are lost, doubled, blamed on an image,
    or other than those of an undisturbed run (exit code 1 if there are any), and compares seconds.
    The store fails only where it has an AWS_ENDPOINT_URL and --output is in it.
"""

from dataclasses import replace
from typing import Any

from benchmarks.config import BenchmarkConfig
from benchmarks.faults import benchmark_faults
from benchmarks.network import benchmark_network
from benchmarks.overhead import benchmark_overhead
from benchmarks.segmentation import benchmark_scale, benchmark_segment, benchmark_slide
from benchmarks.training import benchmark_memory, benchmark_train, benchmark_tune

from resunet_ray import storage
from resunet_ray.command_line import read_config, run_job
from resunet_ray.errors import InputError

_BENCHMARKS = {
    "train": benchmark_train,
    "memory": benchmark_memory,
    "segment": benchmark_segment,
    "slide": benchmark_slide,
    "scale": benchmark_scale,
    "overhead": benchmark_overhead,
    "network": benchmark_network,
    "tune": benchmark_tune,
    "faults": benchmark_faults,
}


def _work() -> dict[str, Any]:
    config = read_config(BenchmarkConfig, description=__doc__ or "")
    config = replace(config, output=storage.absolute(config.output))
    if storage.list_folders(config.output):
        raise InputError(
            f"{config.output} holds an earlier run, which would distort this one: "
            "give another --output"
        )
    return _BENCHMARKS[config.what](config)


if __name__ == "__main__":
    run_job("benchmark", _work)
