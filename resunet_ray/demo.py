"""The main steps from end to end on generated images whose truth is known."""

import logging
from dataclasses import dataclass

from resunet_ray import storage
from resunet_ray.config import DemoConfig, EvaluateConfig, PrepareConfig, SegmentConfig, TrainConfig
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

_SHOWN_ROWS = 8
_SHOWN_COLUMNS = [
    "image",
    "status",
    "num_nuclei",
    "foreground_fraction",
    "mean_confidence",
    "focus_score",
    "f1",
    "qc_status",
]


@dataclass(frozen=True)
class DemoResult:
    """What the demo trained, scored and segmented."""

    bundle: str
    scores: dict[str, float]
    """Mean test scores, by name."""
    segmented: dict[str, int]
    """Images segmented by this run, by status."""
    report: str
    """The evaluation's report."""


def run_demo(config: DemoConfig) -> DemoResult:
    """Prepare, train, score and segment generated images, and write both reports.

    On an output of an earlier demo, it does only what is left.

    Raises:
        ResUNetRayError: a step failed.
    """
    output = storage.absolute(config.output)
    raw, data = storage.join(output, "images"), storage.join(output, "data")
    if not storage.exists(storage.join(data, DATASET_FILE)):
        logger.info("generating %d images", config.images)
        write_images(raw, count=config.images, height=192, width=224, seed=0)
        metadata = storage.join(raw, "metadata.csv")
        prepare(PrepareConfig(input=(raw,), output=data, metadata=metadata))
    training = TrainConfig(data=data, output=output, crop=128, epochs=config.epochs, ema_decay=0.98)
    bundle = train(training).bundle
    evaluated = storage.join(output, "evaluation")
    scores = evaluate(EvaluateConfig(bundle=bundle, data=data, output=evaluated)).scores
    history = storage.join(run_folder(training), HISTORY_FILE)
    report = write_evaluation_report(evaluated, history=history)
    segmenting = SegmentConfig(
        bundle=bundle,
        input=(storage.join(raw, "images"),),
        masks=storage.join(raw, "masks"),
        output=storage.join(output, "segmented"),
    )
    segmented = segment(segmenting)[-1]
    if segmented.run_id is not None:
        _show_table(segmenting.output, segmented.run_id)
        page = write_segmentation_report(segmenting.output, run_id=segmented.run_id)
        logger.info("\nOpen %s", page)
    logger.info("Open %s\nThe trained model is %s", report, bundle)
    return DemoResult(bundle, scores, segmented.images, report)


def _show_table(output: str, run_id: str) -> None:
    """Log the first rows of images/, as any program reads them."""
    table = storage.read_table(layout.part_uri(output, layout.IMAGES, run_id, 0)).to_pandas()
    table["image"] = table["image_uri"].str.rsplit("/", n=1).str[-1]
    shown = table[_SHOWN_COLUMNS].head(_SHOWN_ROWS).to_string(index=False)
    logger.info("\n%s\n%d rows in %s", shown, len(table), storage.join(output, layout.IMAGES))
