"""The main jobs from end to end on generated images whose truth is known: prepare, train, score, segment, report."""

import logging
from dataclasses import asdict, dataclass
from typing import Any

from _job import read_config, run_job

from resunet_ray import storage
from resunet_ray.config import EvaluateConfig, PrepareConfig, SegmentConfig, TrainConfig
from resunet_ray.data.dataset import DATASET_FILE
from resunet_ray.data.prepare import prepare
from resunet_ray.data.synthetic import write_images
from resunet_ray.evaluate import evaluate
from resunet_ray.report.evaluation import write_evaluation_report
from resunet_ray.report.segmentation import write_segmentation_report
from resunet_ray.segment import layout
from resunet_ray.segment.run import segment
from resunet_ray.train.tracking import HISTORY_FILE, run_folder
from resunet_ray.train.trainer import train

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """A run of minutes on two cores."""

    output: str = "out/demo"
    """Where everything goes."""
    images: int = 60
    """Images to generate."""
    epochs: int = 20
    """Passes over the training images."""


def _work() -> dict[str, Any]:
    config = read_config(DemoConfig, description=__doc__ or "")
    output = storage.absolute(config.output)
    raw, data = storage.join(output, "images"), storage.join(output, "data")
    if not storage.exists(storage.join(data, DATASET_FILE)):
        logger.info("generating %d images", config.images)
        write_images(raw, count=config.images, height=192, width=224, seed=0)
        prepare(
            PrepareConfig(input=(raw,), output=data, metadata=storage.join(raw, "metadata.csv"))
        )
    training = TrainConfig(data=data, output=output, crop=128, epochs=config.epochs, ema_decay=0.98)
    trained = train(training)
    scoring = EvaluateConfig(
        bundle=trained.bundle, data=data, output=storage.join(output, "evaluation")
    )
    scores = evaluate(scoring)
    report = write_evaluation_report(
        scoring.output, history=storage.join(run_folder(training), HISTORY_FILE)
    )
    segmenting = SegmentConfig(
        bundle=trained.bundle,
        input=(storage.join(raw, "images"),),
        masks=storage.join(raw, "masks"),
        output=storage.join(output, "segmented"),
    )
    result = segment(segmenting)[-1]
    if result.run_id is not None:
        _show_table(segmenting.output, result.run_id)
        logger.info("\nOpen %s", write_segmentation_report(segmenting.output, run_id=result.run_id))
    logger.info("Open %s\nThe trained model is %s", report, trained.bundle)
    return {
        "bundle": trained.bundle,
        **asdict(scores)["scores"],
        "segmented": result.images,
        "report": report,
    }


def _show_table(output: str, run_id: str) -> None:
    """The first rows of images/, as any program reads them."""
    table = storage.read_table(layout.part_uri(output, layout.IMAGES, run_id, 0)).to_pandas()
    table["image"] = table["image_uri"].str.rsplit("/", n=1).str[-1]
    shown = table[
        [
            "image",
            "status",
            "num_nuclei",
            "foreground_fraction",
            "mean_confidence",
            "focus_score",
            "f1",
            "qc_status",
        ]
    ]
    logger.info(
        "\n%s\n%d rows in %s",
        shown.head(8).to_string(index=False),
        len(table),
        storage.join(output, layout.IMAGES),
    )


if __name__ == "__main__":
    run_job("demo", _work)
