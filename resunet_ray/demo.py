"""A real picture with the nuclei found in it, then the main steps on generated images."""

import logging
from dataclasses import dataclass

import numpy as np
from skimage.color import hed2rgb, rgb2hed
from skimage.data import immunohistochemistry

from resunet_ray import storage
from resunet_ray.bundle import load_bundle
from resunet_ray.config import DemoConfig, EvaluateConfig, PrepareConfig, SegmentConfig, TrainConfig
from resunet_ray.data.dataset import DATASET_FILE
from resunet_ray.data.images import encode_png
from resunet_ray.data.prepare import prepare
from resunet_ray.data.synthetic import write_images
from resunet_ray.evaluate import evaluate
from resunet_ray.pictures import draw_outlines
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
    overlay: str
    """PNG of real tissue with the outlines of the nuclei that the bundle `nuclei` finds."""


def run_demo(config: DemoConfig) -> DemoResult:
    """Find nuclei in a real picture; then train on generated images, and write both reports.

    The generated images are prepared, trained on, scored and segmented. On an output of an earlier
    demo, it draws the picture again and does only what is left.

    Raises:
        ResUNetRayError: a step failed.
    """
    output = storage.absolute(config.output)
    overlay = _segment_tissue(storage.join(output, "overlay.png"))
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
    return DemoResult(bundle, scores, segmented.images, report, overlay)


def _segment_tissue(uri: str) -> str:
    """Write a picture of real tissue with the nuclei that the bundle `nuclei` finds; return `uri`.

    It comes with scikit-image ("no known copyright restrictions"): colonic glands, whose nuclei are
    stained blue with haematoxylin, and a protein brown with DAB. The bundle was not trained on DAB
    and would miss most nuclei, so it gets the haematoxylin alone. The two are separated as in
    Ruifrok and Johnston (2001), "Quantification of histochemical staining by color deconvolution".
    """
    picture = immunohistochemistry()
    blue = hed2rgb(rgb2hed(picture) * (1, 0, 0))
    labels = load_bundle("nuclei").segment(np.rint(255 * blue).astype(np.uint8)).labels
    # Nuclei are about 12 pixels wide: at twice the size, outlines leave more of them visible.
    twice = [pixels.repeat(2, axis=0).repeat(2, axis=1) for pixels in (picture, labels)]
    storage.write_bytes(uri, encode_png(draw_outlines(*twice)))
    found = f"{labels.max()} nuclei found by the bundle nuclei in real tissue"
    logger.info("%s, after removing its brown stain\nOpen %s", found, uri)
    return uri


def _show_table(output: str, run_id: str) -> None:
    """Log the first rows of images/, as any program reads them."""
    table = storage.read_table(layout.part_uri(output, layout.IMAGES, run_id, 0)).to_pandas()
    table["image"] = table["image_uri"].str.rsplit("/", n=1).str[-1]
    shown = table[_SHOWN_COLUMNS].head(_SHOWN_ROWS).to_string(index=False)
    logger.info("\n%s\n%d rows in %s", shown, len(table), storage.join(output, layout.IMAGES))
