"""What a run cost follows from what its chunks say."""

import time

import pytest

from resunet_ray.segment.rows import Seconds
from resunet_ray.segment.work.sums import ChunkResult, ChunkSums, CoreClock


def test_the_cost_of_a_run_is_that_of_its_actors() -> None:
    """Two actors for 90 s over 4 images of 2 megapixels."""
    sums = ChunkSums(actors=2)
    for begun, ended, cores in ((100.0, 130.0, 40.0), (120.0, 190.0, 60.0)):
        sums.add(
            ChunkResult(
                outcomes=[("ok", "", "", 2)],
                pixels=4_000_000,
                networks=1,
                begun=begun,
                ended=ended,
                core_seconds=cores,
                seconds=Seconds(read_seconds=0, model_seconds=0, post_seconds=0),
            )
        )
    on_cpus = {
        "core_seconds": 100,
        "core_seconds_per_image": 25,
        "core_seconds_per_megapixel": 12.5,
    }
    assert sums.cost(gpus=0, images=4, price_per_hour=None) == on_cpus
    assert sums.cost(gpus=1, images=4, price_per_hour=0.8) == on_cpus | {
        "gpu_seconds": 180,
        "gpu_seconds_per_image": 45,
        "gpu_seconds_per_megapixel": 22.5,
        "price": pytest.approx(0.04),
    }
    assert sums.cost(gpus=0.5, images=4, price_per_hour=None)["gpu_seconds"] == 90
    assert ChunkSums(actors=1).cost(gpus=0, images=0, price_per_hour=None) == {"core_seconds": 0}


def test_cpu_time_is_counted_once() -> None:
    clock, begun = CoreClock(), time.process_time()
    taken = 0.0
    while time.process_time() < begun + 0.2:
        taken += clock.take()
    assert taken + clock.take() == pytest.approx(time.process_time() - begun, abs=0.05)
