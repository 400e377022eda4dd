"""What a region comes to: mask, instances with their measures, and sums for the scores."""

from dataclasses import replace

import cv2
import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int32, UInt8

from resunet_ray.config import InstanceConfig
from resunet_ray.data.images import encode_png
from resunet_ray.data.labels import Truth, encode_labels
from resunet_ray.intensity import count_levels
from resunet_ray.model.instances import find_instances
from resunet_ray.model.matching import count_matches
from resunet_ray.model.measures import measure_instances
from resunet_ray.model.metrics import count_pixels
from resunet_ray.model.prediction import Prediction
from resunet_ray.model.tiling import Box
from resunet_ray.schema import INSTANCE
from resunet_ray.segment.rows import Findings, PixelCounts, RegionSums
from resunet_ray.segment.work.objects import RegionObjects, WindowObjects

UNCERTAIN = (0.25, 0.75)
"""A pixel whose probability lies between these is uncertain."""


def describe_image(
    prediction: Prediction,
    image: UInt8[np.ndarray, "h w 3"],
    *,
    config: InstanceConfig,
    name: str,
    truth: Truth | None = None,
    labels: bool = False,
    probabilities: bool = False,
) -> Findings:
    """Describe a whole image (see `describe_region`).

    Args:
        prediction: what the network says about it.
        image: what it was found in.
        config: threshold and instances.
        name: of the image, for errors.
        truth: its true nuclei.
        labels: keep the label image as well.
        probabilities: keep the probability as well, in 255 steps.
    """
    found = find_instances(prediction, config=config)
    whole = Box(0, found.shape[0], 0, found.shape[1])
    own = WindowObjects(whole, found, prediction.probability)
    objects = RegionObjects(found, prediction.probability, own=[own], neighbours=np.empty((0, 2)))
    keep = {"labels": labels, "probabilities": probabilities}
    described = describe_region(objects, image, bounds=found.shape, scale=1.0, name=name, **keep)
    return (
        described if truth is None else replace(described, sums=_compare(described, found, truth))
    )


def _compare(described: Findings, found: Int32[np.ndarray, "h w"], truth: Truth) -> RegionSums:
    """Return the sums of an image with what its truth says about it."""
    pixels = count_pixels((found > 0).astype(np.uint8), truth.mask)._asdict()
    counts = PixelCounts(**{name: int(count) for name, count in pixels.items()})
    if truth.labels is None:
        return replace(described.sums, counts=counts)
    true, matched, iou = count_matches(truth.labels, found)
    return replace(
        described.sums,
        counts=counts,
        true_nuclei=true,
        matched_nuclei=matched,
        matched_iou_sum=iou,
    )


def describe_region(
    objects: RegionObjects,
    image: UInt8[np.ndarray, "h w 3"],
    *,
    bounds: tuple[int, int],
    scale: float,
    name: str,
    labels: bool = False,
    probabilities: bool = False,
) -> Findings:
    """Describe what was found in a region.

    Args:
        objects: what was found.
        image: the region's pixels.
        bounds: height and width of the whole image.
        scale: side of a pixel, in level-0 pixels.
        name: of the image, for errors.
        labels: keep the label image as well.
        probabilities: keep the probability as well, in 255 steps.

    Raises:
        ImageError: there are more instances than a label image can number.
    """
    mask = (objects.labels > 0).view(np.uint8)
    parts = [
        measure_instances(
            own.labels,
            own.probability,
            corner=(own.window.top, own.window.left),
            bounds=bounds,
            scale=scale,
        )
        for own in objects.own
    ]
    instances = pa.concat_arrays([pa.array([], INSTANCE), *parts])
    return Findings(
        mask=encode_png(mask * np.uint8(255)),
        labels=encode_labels(objects.labels, name=name) if labels else None,
        probability=encode_png(_encode_probability(objects.probability)) if probabilities else None,
        instances=instances,
        neighbours=(objects.neighbours * scale).tolist(),
        sums=sum_region(mask, objects.probability, image, num_instances=len(instances)),
    )


def sum_region(
    mask: UInt8[np.ndarray, "h w"],
    probability: Float32[np.ndarray, "h w"],
    image: UInt8[np.ndarray, "h w 3"],
    *,
    num_instances: int,
) -> RegionSums:
    """Sum what the scores of an image are computed from; `mask` is 0 or 1."""
    confidence, entropy, uncertain = _sum_certainty(probability)
    grey, square, laplacian = _sum_sharpness(image)
    return RegionSums(
        pixels=mask.size,
        num_instances=num_instances,
        foreground_pixels=int(np.count_nonzero(mask)),
        uncertain_pixels=uncertain,
        confidence_sum=confidence,
        entropy_sum=entropy,
        grey_sum=grey,
        grey_square_sum=square,
        laplacian_square_sum=laplacian,
    )


def _sum_certainty(probability: Float32[np.ndarray, "h w"]) -> tuple[float, float, int]:
    """Sum the likelier class's probability and the entropy in bits; count uncertain pixels."""
    levels = count_levels(_encode_probability(probability))
    p = np.clip(np.arange(256) / 255, 1e-9, 1 - 1e-9)
    entropy = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
    low, high = UNCERTAIN
    confidence = float(levels @ np.maximum(p, 1 - p))
    return confidence, float(levels @ entropy), int(levels[(p > low) & (p < high)].sum())


def _sum_sharpness(image: UInt8[np.ndarray, "h w 3"]) -> tuple[float, float, float]:
    """Sum the grey levels, their squares, and the squares of their Laplacian."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    counts, levels = count_levels(grey), np.arange(256)
    laplacian = cv2.Laplacian(grey, cv2.CV_16S)
    return (
        float(counts @ levels),
        float(counts @ levels**2),
        float(round(cv2.norm(laplacian, cv2.NORM_L2SQR))),  # it is whole but for rounding
    )


def _encode_probability(probability: Float32[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """Return the probability in 255 steps."""
    steps = probability * 255
    encoded: UInt8[np.ndarray, "h w"] = np.rint(steps, out=steps).astype(np.uint8)
    return encoded
