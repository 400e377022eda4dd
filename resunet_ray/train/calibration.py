"""How probabilities become instances, chosen on validation data once the weights are known."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
from jaxtyping import Int32

from resunet_ray.bundle import Bundle
from resunet_ray.bundle_info import read_bundle_info
from resunet_ray.config import InstanceConfig
from resunet_ray.config.model import Head
from resunet_ray.data.dataset import Dataset
from resunet_ray.data.labelled import LabelledImage
from resunet_ray.data.splits import VAL
from resunet_ray.model.instances import find_instances, least_areas, measure_areas
from resunet_ray.model.matching import count_overlaps, score_instances
from resunet_ray.model.prediction import Prediction
from resunet_ray.scoring import score_split
from resunet_ray.tasks import collect

MIN_AREAS = (0, 4, 8, 16, 24, 32, 48, 64)
"""Candidates, pixels."""
MIN_DISTANCES = (3, 5, 7, 10, 14)
"""Candidates for the watershed, pixels."""
MARKER_DISTANCES = (0.3, 0.4, 0.5, 0.6)
"""Candidates for the head `distance`."""
MARKER_AREAS = (2, 4, 8)
"""Candidates for the head `distance`, pixels."""


def choose_instances(bundle: str, dataset: Dataset) -> tuple[InstanceConfig | None, float]:
    """Return the instance parameters with the best mean panoptic quality on validation data.

    The bundle's threshold is kept. Of candidates that are equally good, components win over the
    watershed, the watershed over the head `distance`, and a smaller minimum area over a larger one.

    Returns:
        The parameters, None if the data set has no instances, and their mean panoptic quality.
    """
    rows = score_split(dataset, VAL, bundle=bundle, score=_score_block)
    scored = collect(rows, total=dataset.splits[VAL], what="validation images matched")
    known = [quality for quality in scored["pq"].to_pylist() if quality is not None]
    if not known:
        return None, float("nan")
    # Sorted, since the images come in any order, and the order of a sum changes its last digit.
    mean = np.mean(np.sort(np.stack(known), axis=0), axis=0)
    method, area = divmod(int(mean.argmax()), len(MIN_AREAS))
    candidates = _methods(InstanceConfig(), heads=read_bundle_info(bundle)[0].model.heads)
    return replace(candidates[method], min_area=MIN_AREAS[area]), float(mean.max())


def _methods(start: InstanceConfig, *, heads: Sequence[Head]) -> list[InstanceConfig]:
    found = [replace(start, method="components")]
    found += [
        replace(start, method="watershed", min_distance=distance) for distance in MIN_DISTANCES
    ]
    if "distance" in heads:
        found += [
            replace(start, method="distance", marker_distance=distance, marker_area=area)
            for distance in MARKER_DISTANCES
            for area in MARKER_AREAS
        ]
    return found


def _score_block(bundle: Bundle, images: list[LabelledImage]) -> pa.Table:
    """Score every candidate on each image: a column `pq`, null where instances are unknown."""
    predictions = bundle.predict(
        [image.image for image in images], batch_size=bundle.default_batch_size
    )
    quality = [
        None if image.labels is None else _score_candidates(bundle, image.labels, prediction)
        for image, prediction in zip(images, predictions, strict=True)
    ]
    return pa.table({"pq": pa.array(quality, pa.list_(pa.float64()))})


def _score_candidates(
    bundle: Bundle, labels: Int32[np.ndarray, "h w"], prediction: Prediction
) -> list[float]:
    """Return the panoptic quality of each method with each minimum area."""
    quality = []
    start = replace(bundle.info.instances, min_area=0)
    for config in _methods(start, heads=bundle.info.model.heads):
        found = find_instances(prediction, config=config)
        overlaps = count_overlaps(labels, found)
        _, typical = measure_areas(found, prediction)
        quality += [
            score_instances(overlaps.drop_small(least_areas(typical[1:], area))).pq
            for area in MIN_AREAS
        ]
    return quality
