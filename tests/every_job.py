"""Run what every job does, on small generated data and in one Ray, and print one line of JSON.

A sweep of one trial stands for training.
"""

import json
import sys
from pathlib import Path

from resunet_ray.archive import segment_archive
from resunet_ray.cluster import connect, disconnect
from resunet_ray.config import (
    EvaluateConfig,
    GiveUpConfig,
    ModelConfig,
    PrepareConfig,
    SegmentConfig,
    SweepConfig,
    TrainConfig,
)
from resunet_ray.data.prepare import prepare
from resunet_ray.data.synthetic import write_images
from resunet_ray.evaluate import evaluate
from resunet_ray.segment.export.files import export_runs
from resunet_ray.segment.give_up import give_up
from resunet_ray.sweep.tuner import sweep


def main(home: Path) -> None:
    connect(dashboard=True)
    write_images(str(home / "raw"), count=20, height=96, width=112, seed=3)
    data, segmented = str(home / "data"), str(home / "segmented")
    prepared = prepare(PrepareConfig(input=(str(home / "raw"),), output=data))
    small = ModelConfig(widths=(16, 32))
    trial = TrainConfig(
        data=data, output=str(home / "sweep"), model=small, crop=64, batch_size=4, epochs=1
    )
    space = ("learning_rate=choice:1e-2",)
    swept = sweep(
        SweepConfig(training=trial, trials=1, concurrent=1, scheduler="none", space=space)
    )
    scored = evaluate(EvaluateConfig(bundle=swept.bundle, data=data, output=str(home / "scores")))
    done = segment_archive(
        SegmentConfig(bundle=swept.bundle, input=(str(home / "raw" / "images"),), output=segmented)
    )
    exported = export_runs(segmented, kinds=["geojson"])
    give_up(GiveUpConfig(output=segmented, run=str(done.result.run_id)))
    disconnect()
    counts = {
        "prepared": prepared.images,
        "scored": scored.images,
        "trials": swept.trials,
        "exported": exported,
        "segmented": done.result.images,
        "left": len(list(Path(segmented, "images").glob("*/*"))),
    }
    print(json.dumps(counts))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
