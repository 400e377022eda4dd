"""Segmentation against the bare network, one image at a time, and a hundred times the images."""

from pathlib import Path
from typing import Any

import numpy as np
import ray

from benchmarks.bare import SIDE, run_alone
from benchmarks.config import BenchmarkConfig
from benchmarks.drawn import write_copies, write_slide
from benchmarks.scale import measure_scale
from benchmarks.usage import PeakMemory
from resunet_ray import storage
from resunet_ray.cluster import MODEL_ENVIRONMENT, connect
from resunet_ray.config import SegmentConfig
from resunet_ray.segment.run import segment


def benchmark_segment(config: BenchmarkConfig) -> dict[str, Any]:
    """Measure the bare network, the job on few and on many images, the bare network again.

    Then one image at a time.
    """
    bundle = config.bundle_uri
    bare = [_measure_bare_network(bundle)]
    peaks, jobs = [], []
    for count in (config.images, 10 * config.images):
        folder = storage.join(config.output, f"images-{count}")
        output = storage.join(config.output, f"out-{count}")
        write_copies(folder, count=count)
        with PeakMemory() as peak:
            connect()
            (done,) = segment(SegmentConfig(bundle=bundle, input=(folder,), output=output))
            ray.shutdown()
        peaks.append(peak.gib)
        jobs.append(done)
    bare.append(_measure_bare_network(bundle))
    single = run_alone("one-at-a-time", bundle, folder, environment={})
    job = jobs[-1].megapixels_per_second
    return {
        "ratio": round(job / float(np.mean(bare)), 3),
        "unit": "megapixels/s of the job over megapixels/s of the bare network",
        "through_ray": round(job, 3),
        "bare": [round(rate, 3) for rate in bare],
        "seconds": jobs[-1].seconds,
        "model_busy_fraction": jobs[-1].model_busy_fraction,
        "cost": jobs[-1].cost,
        "over_one_at_a_time": round(job / single, 2),
        "peak_gib": [round(peak, 3) for peak in peaks],
    }


def benchmark_slide(config: BenchmarkConfig) -> dict[str, Any]:
    """Measure the bare network, the job on one slide, and the bare network again."""
    bundle = config.bundle_uri
    slide = storage.join(config.output, "slide", "slide.tiff")
    write_slide(Path(slide), side=SIDE * round((10 * config.images) ** 0.5))
    bare = [_measure_bare_network(bundle)]
    output = storage.join(config.output, "out")
    with PeakMemory() as peak:
        connect()
        (done,) = segment(SegmentConfig(bundle=bundle, input=(slide,), output=output))
        ray.shutdown()
    bare.append(_measure_bare_network(bundle))
    return {
        "ratio": round(done.megapixels_per_second / float(np.mean(bare)), 3),
        "unit": "megapixels/s of the job over megapixels/s of the bare network",
        "through_ray": done.megapixels_per_second,
        "bare": [round(rate, 3) for rate in bare],
        "regions": done.regions,
        "seconds": done.seconds,
        "model_busy_fraction": done.model_busy_fraction,
        "cost": done.cost,
        "peak_gib": round(peak.gib, 3),
    }


def benchmark_scale(config: BenchmarkConfig) -> dict[str, Any]:
    """Measure the cost of everything except the network as an archive grows."""
    counts = [config.images * times for times in (1, 10, 100)]
    results = measure_scale(config.output, bundle=config.bundle_uri, counts=counts)
    each = [
        (result.plan_seconds + result.segment_seconds + result.commit_seconds) / result.images
        for result in results
    ]
    return {
        "ratio": round(each[-1] / each[0], 3),
        "unit": f"seconds per image at {results[-1].images} images over those at "
        f"{results[0].images}",
        "images_per_second": [round(1 / seconds, 1) for seconds in each],
        "measured": [
            {name: round(value, 3) for name, value in vars(result).items()} for result in results
        ],
    }


def _measure_bare_network(bundle: str) -> float:
    return run_alone("network", bundle, environment=MODEL_ENVIRONMENT["env_vars"])
