"""What is chosen on validation data once the weights are known.

That is how probabilities become instances, and whether the network may be computed in 8 bits.
"""

import logging
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float64, Int32, UInt8
from torch import Tensor

from resunet_ray.bundle import TOLERANCE, Bundle, save_bundle
from resunet_ray.bundle_info import BundleInfo
from resunet_ray.config import InstanceConfig
from resunet_ray.config.model import Precision
from resunet_ray.data.dataset import Dataset, plan_once
from resunet_ray.data.labelled import LabelledImage, read_images
from resunet_ray.data.splits import VAL
from resunet_ray.intensity import Range, measure_range
from resunet_ray.model.instances import find_instances, least_areas, measure_areas, threshold_mask
from resunet_ray.model.matching import count_overlaps, score_instances
from resunet_ray.model.metrics import count_pixels, score_counts
from resunet_ray.model.prediction import Prediction
from resunet_ray.model.quantization import Ranges, can_quantize, measure_ranges, quantize_network
from resunet_ray.model.resunet import build_network
from resunet_ray.scoring import score_split
from resunet_ray.tasks import collect

logger = logging.getLogger(__name__)

MIN_AREAS = (0, 4, 8, 16, 24, 32, 48, 64)
"""Candidates, pixels."""
MIN_DISTANCES = (3, 5, 7, 10, 14)
"""Candidates for the watershed, pixels."""
MARKER_DISTANCES = (0.3, 0.4, 0.5, 0.6)
"""Candidates for the head `distance`."""
MARKER_AREAS = (2, 4, 8)
"""Candidates for the head `distance`, pixels."""

LARGEST_LOSS = 0.002
"""Of F1 and of panoptic quality, for the speed of 8 bits."""
_MEASURED = 32  # images whose ranges are measured
_SIDE = 256  # pixels of each, at most


def calibrate(
    info: BundleInfo,
    *,
    weights: dict[str, Tensor],
    sample: UInt8[np.ndarray, "h w 3"],
    dataset: Dataset,
    draft: str,
) -> BundleInfo:
    """Choose the instance parameters with the best mean panoptic quality, and whether 8 bits do.

    Of candidates that are equally good, components win over the watershed, the watershed over the
    head `distance`, and a smaller minimum area over a larger one. 8 bits do if they lower F1 and
    panoptic quality by `LARGEST_LOSS` at most.

    Args:
        info: contents of bundle.json. The threshold is kept.
        weights: state dictionary of the network.
        sample: that of the bundle's self-test.
        dataset: its validation data are used. Without instances, their parameters are kept.
        draft: folder for a bundle that every node can read.

    Returns:
        The information with what was chosen, and the panoptic quality in full precision.
    """
    ranges = _measure_ranges(info, weights, sample, dataset) if can_quantize(info.model) else {}
    save_bundle(draft, weights=weights, info=replace(info, quantization=ranges), sample=sample)
    rows = score_split(dataset, VAL, bundle=draft, score=_score_block)
    scored = collect(rows, total=dataset.splits[VAL], what="validation images matched")
    f1 = _mean(scored, "f1")
    losses = {"F1": f1[0] - f1[-1]}
    quality = _mean(scored, "pq").reshape(len(f1), -1)
    if quality.size:
        best = int(quality[0].argmax())
        method, area = divmod(best, len(MIN_AREAS))
        info = replace(
            info,
            instances=replace(_methods(info)[method], min_area=MIN_AREAS[area]),
            scores={**info.scores, "pq": float(quality[0, best])},
        )
        losses["panoptic quality"] = quality[0, best] - quality[-1, best]
    if not ranges:
        return info
    kept = max(losses.values()) <= LARGEST_LOSS
    told = " and ".join(f"{name} by {-loss:+.4f}" for name, loss in losses.items())
    logger.info("8 bits change %s: %s", told, "CPUs will use them" if kept else "too much")
    return replace(info, quantization=ranges if kept else {})


def _mean(rows: pa.Table, name: str) -> Float64[np.ndarray, " n"]:
    """Return the means of a column over the rows that have it; n is 0 if none has."""
    known = [scores for scores in rows[name].to_pylist() if scores is not None]
    # Sorted, since the images come in any order, and the order of a sum changes its last digit.
    return np.mean(np.sort(np.array(known), axis=0), axis=0) if known else np.empty(0)


def _measure_ranges(
    info: BundleInfo,
    weights: dict[str, Tensor],
    sample: UInt8[np.ndarray, "h w 3"],
    dataset: Dataset,
) -> Ranges:
    """Return the ranges of a network; none if in 8 bits it would fail the bundle's self-test."""
    exact = Bundle("", info, "", build_network(info.model, weights), torch.device("cpu"))

    def compute(
        bundle: Bundle, image: UInt8[np.ndarray, "_h _w 3"], levels: Range | None
    ) -> Prediction:
        (found,) = bundle.predict(
            [image], batch_size=1, precision="fp32", ranges=[levels], scales=[1.0]
        )
        return found

    ranges = measure_ranges(
        exact.network,
        lambda: [compute(exact, *part) for part in _choose_parts(info, dataset)],
        channels=info.model.in_channels,
    )
    rounded = replace(exact, network=quantize_network(exact.network, ranges))
    outputs = [compute(one, sample, None).encode() for one in (exact, rounded)]
    difference = np.abs(np.subtract(*outputs, dtype=np.float32)).mean() / 255
    return ranges if difference <= TOLERANCE / 2 else {}


def _choose_parts(
    info: BundleInfo, dataset: Dataset
) -> Iterator[tuple[UInt8[np.ndarray, "_h _w 3"], Range]]:
    """Yield the middle of up to `_MEASURED` images, and the intensity range of the whole image.

    A network that sees every image at one size gets whole images.
    """
    every = -(-dataset.splits[VAL] // _MEASURED)
    for labelled in read_images(dataset, plan_once(dataset, VAL, rank=0, workers=every)):
        image = labelled.image
        height, width = image.shape[:2]
        side = _SIDE if info.preprocess.resize is None else max(height, width)
        top, left = max(0, height - side) // 2, max(0, width - side) // 2
        yield image[top : top + side, left : left + side], measure_range(image)


def _methods(info: BundleInfo) -> list[InstanceConfig]:
    start = replace(info.instances, min_area=0)
    found = [replace(start, method="components")]
    found += [
        replace(start, method="watershed", min_distance=distance) for distance in MIN_DISTANCES
    ]
    if "distance" in info.model.heads:
        found += [
            replace(start, method="distance", marker_distance=distance, marker_area=area)
            for distance in MARKER_DISTANCES
            for area in MARKER_AREAS
        ]
    return found


def _score_block(bundle: Bundle, images: list[LabelledImage]) -> pa.Table:
    """Score each image in full precision and, if the bundle has ranges, in 8 bits.

    Returns:
        Column `f1`: of the mask, for each precision. Column `pq`: of every candidate, for each
        precision; null where instances are unknown.
    """
    computed: list[tuple[Bundle, Precision]] = [(bundle, "fp32")]
    if bundle.info.quantization and bundle.on_cpu is not None:
        computed.append((bundle, "int8"))
    elif bundle.info.quantization:  # torch computes the same, slowly
        network = quantize_network(bundle.network, bundle.info.quantization)
        computed.append((replace(bundle, network=network), "fp32"))
    found = [
        one.predict(
            [image.image for image in images],
            batch_size=bundle.default_batch_size,
            precision=precision,
        )
        for one, precision in computed
    ]
    rows = [
        _score_image(bundle.info, image, predictions)
        for image, *predictions in zip(images, *found, strict=True)
    ]
    scores = pa.list_(pa.float64())
    return pa.Table.from_pylist(rows, pa.schema({"f1": scores, "pq": scores}))


def _score_image(
    info: BundleInfo, image: LabelledImage, predictions: list[Prediction]
) -> dict[str, list[float] | None]:
    threshold = info.instances.threshold
    masks = [threshold_mask(one.probability, threshold=threshold) for one in predictions]
    f1 = [float(score_counts(count_pixels(mask, image.mask))["f1"]) for mask in masks]
    if image.labels is None:
        return {"f1": f1, "pq": None}
    quality = [_score_candidates(info, image.labels, one) for one in predictions]
    return {"f1": f1, "pq": [*chain.from_iterable(quality)]}


def _score_candidates(
    info: BundleInfo, labels: Int32[np.ndarray, "h w"], prediction: Prediction
) -> list[float]:
    """Return the panoptic quality of each method with each minimum area."""
    quality = []
    for config in _methods(info):
        found = find_instances(prediction, config=config)
        overlaps = count_overlaps(labels, found)
        _, typical = measure_areas(found, prediction)
        quality += [
            score_instances(overlaps.drop_small(least_areas(typical[1:], area))).pq
            for area in MIN_AREAS
        ]
    return quality
