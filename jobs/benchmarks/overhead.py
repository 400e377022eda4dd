"""What an image costs beside the network: core-seconds of one thread, stage by stage."""

import logging
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, Literal, TypeVar

import cv2
import numpy as np
import pandas as pd

from benchmarks.config import BenchmarkConfig
from benchmarks.drawn import write_copies
from resunet_ray import storage
from resunet_ray.bundle import Bundle, load_bundle
from resunet_ray.data.images import decode_image, encode_png
from resunet_ray.errors import ImageError, InputError
from resunet_ray.intensity import measure_range
from resunet_ray.model.instances import find_instances
from resunet_ray.model.measures import measure_instances
from resunet_ray.records import to_table
from resunet_ray.schema import REGIONS
from resunet_ray.segment.nuclei import flatten_instances
from resunet_ray.segment.rows import (
    Findings,
    ImageRef,
    Origin,
    Place,
    PlannedRegion,
    Region,
)
from resunet_ray.segment.work.region import sum_region

logger = logging.getLogger(__name__)

_ROUNDS = 3
_ROWS = 64  # images whose rows become one table
_METHODS: tuple[Literal["components", "watershed"], ...] = ("components", "watershed")
_COLUMN = "core_seconds_per_megapixel"

Result = TypeVar("Result")


class _Stages:
    """Core-seconds of each stage, over all images."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def time(self, stage: str, work: Callable[[], Result]) -> Result:
        """Do some work several times; the fastest counts, as other work may have disturbed one."""
        taken = []
        for _ in range(_ROUNDS):
            start = time.thread_time()
            result = work()
            taken.append(time.thread_time() - start)
        self.seconds[stage] += min(taken)
        return result


def benchmark_overhead(config: BenchmarkConfig) -> dict[str, Any]:
    """Take images through every stage but the network, one by one, and write overhead.csv."""
    cv2.setNumThreads(1)
    bundle = load_bundle(config.bundle_uri)
    folder = config.data or _generate(config)
    stages, others = _Stages(), _Stages()
    regions = []
    for uri in _choose_images(folder, count=config.images):
        with suppress(ImageError):
            regions.append(_process(uri, bundle, stages=stages, others=others))
    if not regions:
        raise InputError(f"{folder} holds no image: expected a folder of images")
    for start in range(0, len(regions), _ROWS):
        _build_rows(regions[start : start + _ROWS], stages=stages)
    sums = [region.findings.sums for region in regions if region.findings]
    megapixels = sum(one.pixels for one in sums) / 1e6
    seconds = {
        **stages.seconds,
        "total outside the network": sum(stages.seconds.values()),
        **others.seconds,
    }
    table = pd.DataFrame(
        {"stage": seconds.keys(), _COLUMN: np.array([*seconds.values()]) / megapixels}
    )
    logger.info("%s", table.round(4).to_string(index=False))
    storage.write_bytes(
        storage.join(config.output, "overhead.csv"), table.to_csv(index=False).encode()
    )
    return {
        "unit": "core-seconds per megapixel",
        "stages": dict(table.round(4).itertuples(index=False)),
        "images": len(regions),
        "megapixels": round(megapixels, 2),
        "nuclei_per_megapixel": round(sum(one.num_instances for one in sums) / megapixels),
    }


def _generate(config: BenchmarkConfig) -> str:
    folder = storage.join(config.output, "data")
    write_copies(folder, count=config.images)
    return storage.join(folder, "images")


def _choose_images(folder: str, *, count: int) -> list[str]:
    """Return some files of a folder, evenly spread over their names."""
    files = sorted(storage.join(folder, file.path) for file in storage.walk_files(folder))
    count = min(count, len(files))
    return [files[number * len(files) // count] for number in range(count)]


def _process(uri: str, bundle: Bundle, *, stages: _Stages, others: _Stages) -> Region:
    content = storage.read_bytes(uri)
    stretched = bundle.info.preprocess.intensity == "percentiles"
    image = stages.time("decode", lambda: decode_image(content, name=uri, stored=not stretched))
    levels = None
    if stretched:
        levels = stages.time("range of intensities", lambda: measure_range(image))
    (found,) = bundle.predict([image], batch_size=1, ranges=[levels])
    own = bundle.info.instances
    for method in _METHODS:
        other = replace(own, method=method)
        others.time(f"instances by {method}", partial(find_instances, found, config=other))
    labels = stages.time("instances", lambda: find_instances(found, config=own))
    instances = stages.time(
        "measures and polygons", lambda: measure_instances(labels, found.probability)
    )
    mask = (labels > 0).astype(np.uint8)
    sums = stages.time(
        "sums for the scores",
        lambda: sum_region(mask, found.probability, image, num_instances=len(instances)),
    )
    encoded = stages.time("mask as PNG", lambda: encode_png(mask * np.uint8(255)))
    return Region.of(
        PlannedRegion(image=ImageRef(image_id="", image_uri=uri), place=Place()),
        findings=Findings(sums=sums, mask=encoded, instances=instances),
        origin=Origin(run_id="", bundle_digest="", config_digest="", code_version=""),
    )


def _build_rows(regions: list[Region], *, stages: _Stages) -> None:
    table = stages.time("rows to Arrow", lambda: to_table(regions, REGIONS))
    stages.time("rows to Arrow", lambda: flatten_instances(table))
