"""A separate Ray with two segmentations and a training run, for a test to watch from outside.

Prints a line of JSON once Ray is up and another once the work is done, then stays until its
standard input is closed.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import ray

from resunet_ray.cluster import connect
from resunet_ray.config import ModelConfig, SegmentConfig, TrainConfig
from resunet_ray.segment.rows import PlannedRegion
from resunet_ray.segment.run import SegmentationResult, segment
from resunet_ray.segment.work.segmenter import Segmenter
from resunet_ray.train.trainer import train

_SLOW_SECONDS = 4  # long enough for its actor to report several times


class DiesOnce(Segmenter):
    """Dies on its first sight of one image, like a node taken away, and reads another slowly."""

    def _read(self, planned: PlannedRegion) -> Any:
        if planned.image.image_uri.endswith("slow.png"):
            time.sleep(_SLOW_SECONDS)
        marker = Path(planned.image.image_uri).with_suffix(".mortal")
        if marker.exists():
            marker.unlink()
            os._exit(1)
        return super()._read(planned)


def _segment(name: str, *, bundle: str, folder: Path) -> SegmentationResult:
    (result,) = segment(
        SegmentConfig(
            bundle=bundle, input=(str(folder / f"{name}.csv"),), output=str(folder / name)
        )
    )
    return result


def _main(bundle: str, folder: Path) -> None:
    """Segment the files of each list in the folder, then train on its `pairs/`."""
    connect(dashboard=True)
    print(
        json.dumps({"session": ray._private.worker.global_worker.node.get_session_dir_path()}),
        flush=True,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("resunet_ray.segment.work.actors.Segmenter", DiesOnce)
        segmented = {
            name: vars(_segment(name, bundle=bundle, folder=folder)) for name in ("list", "möre")
        }
    train(
        TrainConfig(
            data=str(folder / "pairs"),
            output=str(folder / "trained"),
            model=ModelConfig(widths=(16, 32)),
            crop=64,
            batch_size=4,
            precision="fp32",
            epochs=40,
            validation_interval=20,
        )
    )
    print(json.dumps(segmented), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    _main(sys.argv[1], Path(sys.argv[2]))
