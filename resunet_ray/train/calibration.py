"""Parameters of the instances that are chosen on validation data, once the weights are known."""

import numpy as np
import pyarrow as pa
from jaxtyping import Float32

from resunet_ray.bundle import Bundle
from resunet_ray.data.dataset import Dataset, Row
from resunet_ray.data.labelled import Labelled
from resunet_ray.data.splits import VAL
from resunet_ray.data.stream import collect
from resunet_ray.model.instances import label_components, threshold_mask
from resunet_ray.model.matching import count_overlaps, score_instances
from resunet_ray.scoring import score_split

MIN_AREAS = (0, 4, 8, 16, 24, 32, 48, 64)
"""Candidates, pixels."""


def choose_min_area(bundle: str, dataset: Dataset) -> tuple[int | None, float]:
    """The smallest area of an instance that gives the highest mean panoptic quality on validation data, and that quality.

    None where the data set knows no instances.
    """
    schema = pa.schema([("pq", pa.list_(pa.float64()))])
    rows = score_split(dataset, VAL, bundle=bundle, score=_score_areas, schema=schema, predict=_predict)
    scored = collect(rows, total=dataset.splits[VAL], what="validation images matched")
    known = [quality for quality in scored["pq"].to_pylist() if quality is not None]
    if not known:
        return None, float("nan")
    mean = np.mean(np.stack(known), axis=0)
    return MIN_AREAS[int(mean.argmax())], float(mean.max())


def _predict(bundle: Bundle, images: list[Labelled]) -> list[Float32[np.ndarray, "_h _w"]]:
    return bundle.predict([image.image for image in images], batch_size=8 if bundle.device.type == "cuda" else 1)


def _score_areas(bundle: Bundle, image: Labelled, probability: Float32[np.ndarray, "h w"]) -> Row:
    if image.labels is None:
        return {"pq": None}
    mask = threshold_mask(probability, threshold=bundle.info.instances.threshold)
    overlaps = count_overlaps(image.labels, label_components(mask, min_area=0))
    return {"pq": [score_instances(overlaps.drop_small(area)).pq for area in MIN_AREAS]}
