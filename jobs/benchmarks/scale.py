"""Runs over many tiny images with a free network: what is left is everything around the network.

That is listing, plan, chunks, files, commit and ledger.
"""

import io
import logging
import sys
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import ray
from matplotlib.figure import Figure

from benchmarks.usage import PeakMemory
from resunet_ray import storage
from resunet_ray.cluster import connect
from resunet_ray.config import SegmentConfig
from resunet_ray.data.images import encode_png
from resunet_ray.model.prediction import Prediction
from resunet_ray.segment import run
from resunet_ray.segment.work import actors
from resunet_ray.segment.work.sample import Sample
from resunet_ray.segment.work.segmenter import Segmenter

logger = logging.getLogger(__name__)

_SIDE = 16  # pixels: as little work as an image can be
_MEMBERS = 100_000  # of one archive


class FreeSegmenter(Segmenter):
    """A segmenter whose network costs nothing and finds nothing."""

    def _predict(self, group: list[Sample]) -> list[Sample]:
        for sample in group:
            if sample.image is not None:
                sample.prediction = Prediction(np.zeros((1, *sample.image.shape[:2]), np.float32))
        return group


@dataclass
class Scaled:
    """What a number of images cost."""

    images: int
    plan_seconds: float
    segment_seconds: float
    commit_seconds: float
    again_seconds: float
    """The same command again, with nothing left to do."""
    driver_gib: float
    all_gib: float
    """The driver with all of Ray's processes."""
    files: int
    """Files that the run left in storage."""
    mib: float
    """Size of the files."""


def measure_scale(folder: str, *, bundle: str, counts: list[int]) -> list[Scaled]:
    """Segment each number of images, from separate archives to tables, and draw `scale.svg`."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    actors.Segmenter = FreeSegmenter  # type: ignore[attr-defined]
    results = []
    for count in counts:
        results.append(_measure(storage.join(folder, str(count)), bundle=bundle, count=count))
        logger.info("%s", results[-1])
    storage.write_bytes(storage.join(folder, "scale.svg"), _draw(results))
    return results


def _measure(folder: str, *, bundle: str, count: int) -> Scaled:
    _write_archives(Path(folder) / "in", count=count)
    config = SegmentConfig(
        bundle=bundle, input=(storage.join(folder, "in"),), output=storage.join(folder, "out")
    )
    connect()
    with PeakMemory() as everything, PeakMemory(alone=True) as driver:
        whole, (done,) = _time(config)
    assert done.images == {"ok": count}, done.images
    again, _ = _time(config)
    ray.shutdown()
    files = list(storage.walk_files(config.output))
    segmenting, commit = done.seconds["segment"], done.seconds["commit"]
    return Scaled(
        images=count,
        plan_seconds=whole - segmenting - commit,
        segment_seconds=segmenting,
        commit_seconds=commit,
        again_seconds=again,
        driver_gib=driver.gib,
        all_gib=everything.gib,
        files=len(files),
        mib=sum(file.size for file in files) / 2**20,
    )


def _time(config: SegmentConfig) -> tuple[float, list[run.SegmentationResult]]:
    start = time.perf_counter()
    done = run.segment(config)
    return time.perf_counter() - start, done


def _write_archives(folder: Path, *, count: int) -> None:
    folder.mkdir(parents=True)
    image = encode_png(np.full((_SIDE, _SIDE, 3), 200, np.uint8))
    for number, start in enumerate(range(0, count, _MEMBERS)):
        with zipfile.ZipFile(folder / f"{number:04d}.zip", "w") as archive:
            for member in range(start, min(count, start + _MEMBERS)):
                archive.writestr(f"{member:08d}.png", image)


def _draw(results: list[Scaled]) -> bytes:
    """Draw seconds, memory and files against the number of images."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    images = [result.images for result in results]
    for axes, title, fields in zip(
        figure.subplots(1, 3),
        ("seconds", "peak GiB", "files in storage"),
        (
            ("plan_seconds", "segment_seconds", "commit_seconds", "again_seconds"),
            ("driver_gib", "all_gib"),
            ("files",),
        ),
        strict=True,
    ):
        for name in fields:
            axes.plot(
                images,
                [getattr(result, name) for result in results],
                marker="o",
                label=name.partition("_")[0],
            )
        axes.set(title=title, xlabel="images", xscale="log")
        axes.set(**({"ylim": (0, None)} if "GiB" in title else {"yscale": "log"}))
        axes.grid(alpha=0.3)
        axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
