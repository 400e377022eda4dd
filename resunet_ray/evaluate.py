"""Score a bundle on labelled images: one row of scores per image, their means, and pictures."""

import json
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa

from resunet_ray import bundles, storage
from resunet_ray.bundle import Bundle
from resunet_ray.bundle_info import read_bundle_info
from resunet_ray.config import EvaluateConfig, PreprocessConfig
from resunet_ray.data.dataset import Dataset, open_dataset
from resunet_ray.data.images import encode_png
from resunet_ray.data.labelled import LabelledImage
from resunet_ray.errors import RunError
from resunet_ray.model import metrics
from resunet_ray.model.diameter import choose_scale
from resunet_ray.model.inference import predict
from resunet_ray.model.instances import find_instances, threshold_mask
from resunet_ray.model.matching import (
    THRESHOLDS,
    classify_instances,
    count_overlaps,
    score_instances,
)
from resunet_ray.model.prediction import Prediction
from resunet_ray.pictures import draw_outcomes, side_by_side
from resunet_ray.schema import OUTCOMES, SCORES
from resunet_ray.scoring import Score, score_split
from resunet_ray.tasks import collect

SCORES_FILE, OUTCOMES_FILE = "scores.parquet", "outcomes.parquet"
SUMMARY_FILE, PICTURES = "summary.json", "pictures"

_BASELINE_SIDE = 256  # pixels, side of the baseline's images
_ROWS = pa.unify_schemas([SCORES, OUTCOMES])  # what an actor returns for each image


@dataclass(frozen=True)
class EvaluationResult:
    """The scores of a whole split."""

    images: int
    scores: dict[str, float]
    """Means of the per-image scores."""
    pooled: dict[str, float]
    """Scores of all pixels together."""
    instance: dict[str, float] | None
    """Means of ap50, ap75, ap (over all thresholds), pq and aji; None if the data has no labelled
    instances."""
    by_modality: dict[str, dict[str, float]]


def evaluate(config: EvaluateConfig) -> EvaluationResult:
    """Score a split, and write score.csv, scores.parquet, summary.json and pictures/ to the output.

    If the data has labelled instances, also write outcomes.parquet.

    Raises:
        InputError: the bundle, the data or the split is missing.
        LeaseError: another run is writing to the output.
        ResourceError: the cluster or the output storage lacks what the evaluation needs.
        RunError: some images were not scored, or the lease was lost.
    """
    output = storage.absolute(config.output)
    with storage.hold_output(config, output) as lease:
        dataset = open_dataset(config.data, needs=(config.split,))
        info, digest = read_bundle_info(config.bundle)
        scored = _score(config, dataset, output=output)
        lease.check()
        settings = {
            "bundle": config.bundle,
            "bundle_digest": digest,
            "data": dataset.uri,
            "data_digest": dataset.digest,
            "split": config.split,
            "protocol": config.protocol,
            "flips": config.flips,
            "threshold": 0.5 if config.protocol == "baseline" else info.instances.threshold,
            "min_area": None if config.protocol == "baseline" else info.instances.min_area,
        }
        return _write(scored, output=output, settings=settings, config=config)


def _score(config: EvaluateConfig, dataset: Dataset, *, output: str) -> pa.Table:
    """Return the row of SCORES and OUTCOMES of each image, by name."""
    rows = score_split(
        dataset,
        config.split,
        bundle=bundles.absolute(config.bundle),
        score=_build_score(config, output),
        engine=config.engine,
        actors=config.actors,
    )
    total = dataset.splits[config.split]
    scored = collect(rows, total=total, what="images scored").cast(_ROWS).sort_by("image_id")
    if len(scored) != total:
        raise RunError(
            f"{len(scored)} images were scored, but split {config.split} has {total}: run it again"
        )
    return scored


def _write(
    scored: pa.Table, *, output: str, settings: dict[str, Any], config: EvaluateConfig
) -> EvaluationResult:
    scores = scored.select(SCORES.names).cast(SCORES)
    table = scores.to_pandas()
    result = summarise(table)
    storage.write_table(storage.join(output, SCORES_FILE), scores)
    if result.instance is not None:
        outcomes = scored.select(OUTCOMES.names).cast(OUTCOMES)
        storage.write_table(storage.join(output, OUTCOMES_FILE), outcomes)
    storage.write_bytes(storage.join(output, "score.csv"), _score_csv(table).encode())
    summary = {**settings, **vars(result), "config": asdict(config)}
    storage.write_bytes(storage.join(output, SUMMARY_FILE), json.dumps(summary, indent=2).encode())
    return result


def summarise(table: pd.DataFrame) -> EvaluationResult:
    """Compute the scores of a split from its rows of scores.parquet."""
    counts = metrics.Counts(*(table[name].to_numpy(np.int64) for name in ("tp", "fp", "fn", "tn")))
    groups = {
        str(name): group for name, group in table.groupby(table["modality"].fillna("unknown"))
    }
    return EvaluationResult(
        images=len(table),
        scores=_means(table),
        pooled=metrics.pooled_scores(counts),
        instance=_instance_means(table),
        by_modality={
            name: {"images": len(group), **_means(group), **(_instance_means(group) or {})}
            for name, group in groups.items()
        },
    )


def _means(table: pd.DataFrame) -> dict[str, float]:
    return {name: float(table[name].mean()) for name in metrics.SCORE_NAMES}


def _instance_means(table: pd.DataFrame) -> dict[str, float] | None:
    known = table[table["pq"].notna()]
    if known.empty:
        return None
    precision = np.stack([np.asarray(values) for values in known["ap"]]).mean(axis=0)
    at = dict(zip(THRESHOLDS, precision, strict=True))
    means = {
        "ap50": at[0.5],
        "ap75": at[0.75],
        "ap": precision.mean(),
        "pq": known["pq"].mean(),
        "aji": known["aji"].mean(),
    }
    return {name: float(value) for name, value in means.items()}


def _score_csv(table: pd.DataFrame) -> str:
    """Format the scores as the baseline's score.csv."""
    names = {"image_id": "Image", **{name: name.capitalize() for name in metrics.SCORE_NAMES}}
    safe = table[list(names)].assign(image_id=table["image_id"].map(storage.csv_cell))
    return str(safe.rename(columns=names).to_csv(index=False))


def _build_score(config: EvaluateConfig, output: str) -> Score:
    def score_block(bundle: Bundle, images: list[LabelledImage]) -> pa.Table:
        rows = [
            _score_image(bundle, image, prediction, protocol=config.protocol, output=output)
            for image, prediction in zip(
                images, _predict(bundle, images, config=config), strict=True
            )
        ]
        return pa.Table.from_pylist(rows, schema=_ROWS)

    return score_block


def _predict(
    bundle: Bundle, images: list[LabelledImage], *, config: EvaluateConfig
) -> list[Prediction]:
    batch_size = bundle.default_batch_size
    if config.protocol == "native":
        scales = [
            choose_scale("auto", mpp=image.mpp, bundle_mpp=bundle.info.mpp) for image in images
        ]
        return bundle.predict(
            [image.image for image in images],
            batch_size=batch_size,
            flips=config.flips,
            scales=scales,
        )
    return predict(
        bundle.compute(None),
        [_to_baseline_size(image.image) for image in images],
        config=PreprocessConfig(tile=_BASELINE_SIDE, intensity=bundle.info.preprocess.intensity),
        channels=bundle.info.model.in_channels,
        heads=bundle.info.model.heads,
        device=bundle.device,
        dtype=None,
        batch_size=batch_size,
        flips=config.flips,
    )


def _to_baseline_size(array: np.ndarray) -> np.ndarray:
    return np.asarray(
        cv2.resize(array, (_BASELINE_SIDE, _BASELINE_SIDE), interpolation=cv2.INTER_LINEAR)
    )


def _score_image(
    bundle: Bundle,
    image: LabelledImage,
    prediction: Prediction,
    *,
    protocol: str,
    output: str,
) -> dict[str, object]:
    """Return the image's row of SCORES and OUTCOMES, and write its picture."""
    instances: dict[str, object] = {}
    if protocol == "baseline":
        pixels = _to_baseline_size(image.image)
        mask = (_to_baseline_size(image.mask.astype(np.float32)) > 0.5).astype(np.uint8)
        found = (prediction.probability > 0.5).astype(np.uint8)
    else:
        pixels, mask = image.image, image.mask
        found = threshold_mask(prediction.probability, threshold=bundle.info.instances.threshold)
    if protocol == "baseline" or image.labels is None:
        picture = side_by_side(pixels, mask, found)
    else:
        labels = find_instances(prediction, config=bundle.info.instances)
        overlaps = count_overlaps(image.labels, labels)
        outcomes = classify_instances(overlaps)
        picture = draw_outcomes(pixels, image.labels, labels, outcomes)
        instances = {**vars(score_instances(overlaps)), **outcomes.count()}
    counts = metrics.count_pixels(found, mask)
    location = storage.join(output, PICTURES, f"{storage.file_name(image.image_id)}.png")
    storage.write_bytes(location, encode_png(picture))
    return {
        "image_id": image.image_id,
        "modality": image.modality,
        "height": image.mask.shape[0],
        "width": image.mask.shape[1],
        **{name: int(count) for name, count in counts._asdict().items()},
        **{name: float(value) for name, value in metrics.score_counts(counts).items()},
        **instances,
    }
