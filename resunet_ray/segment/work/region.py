"""What one region comes to: the probability of its pixels → mask, instances with their measures, and sums for its scores."""

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from resunet_ray.config import InstanceConfig
from resunet_ray.data.images import encode_labels, encode_png
from resunet_ray.model.instances import find_instances
from resunet_ray.model.measures import measure_instances
from resunet_ray.model.metrics import count_pixels
from resunet_ray.model.tiling import Box
from resunet_ray.segment.rows import Row
from resunet_ray.segment.work.objects import Found, Objects

UNCERTAIN = (0.25, 0.75)
"""A pixel whose probability lies between is uncertain."""


def describe_image(
    probability: Float32[np.ndarray, "h w"],
    image: UInt8[np.ndarray, "h w 3"],
    *,
    config: InstanceConfig,
    name: str,
    truth: UInt8[np.ndarray, "h w"] | None = None,
    labels: bool = False,
    probabilities: bool = False,
) -> Row:
    """The columns of REGIONS that the pixels of a whole image decide (see `describe_region`).

    Args:
        probability: of each pixel to be nucleus.
        image: what it was found in.
        config: threshold and instances.
        name: what errors call the image.
        truth: a true mask, 0 or 1.
        labels: keep the label image as well.
        probabilities: keep the probability as well, in 255 steps.
    """
    found = find_instances(probability, config=config)
    whole = Box(0, found.shape[0], 0, found.shape[1])
    objects = Objects(found, probability, [Found(whole, found, probability)], np.empty((0, 2)))
    keep = {"labels": labels, "probabilities": probabilities}
    row = describe_region(objects, image, bounds=found.shape, scale=1.0, name=name, **keep)
    if truth is not None:
        row |= {
            count: int(value)
            for count, value in count_pixels((found > 0).astype(np.uint8), truth)._asdict().items()
        }
    return row


def describe_region(
    objects: Objects,
    image: UInt8[np.ndarray, "h w 3"],
    *,
    bounds: tuple[int, int],
    scale: float,
    name: str,
    labels: bool = False,
    probabilities: bool = False,
) -> Row:
    """The columns of REGIONS that the pixels decide.

    Args:
        objects: what was found in the region.
        image: its window.
        bounds: height and width of the whole image.
        scale: side of a pixel, in level-0 pixels.
        name: what errors call the image.
        labels: keep the label image as well.
        probabilities: keep the probability as well, in 255 steps.

    Raises:
        ImageError: more instances than a label image can number.
    """
    mask = (objects.labels > 0).astype(np.uint8)
    instances = [
        instance
        for found in objects.own
        for instance in measure_instances(
            found.labels,
            found.probability,
            corner=(found.window.top, found.window.left),
            bounds=bounds,
            scale=scale,
        )
    ]
    return {
        "mask": encode_png(mask * np.uint8(255)),
        "labels": encode_labels(objects.labels, name=name) if labels else None,
        "probability": encode_png(np.rint(objects.probability * 255).astype(np.uint8))
        if probabilities
        else None,
        "instances": instances,
        "num_instances": len(instances),
        "neighbours": (objects.neighbours * scale).tolist(),
        "pixels": mask.size,
        "foreground_pixels": int(mask.sum()),
        **_sum_certainty(objects.probability),
        **_sum_sharpness(image),
    }


def _sum_certainty(probability: Float32[np.ndarray, "h w"]) -> Row:
    """Confidence is the probability of the likelier class, entropy is in bits."""
    levels = np.bincount(np.rint(probability * 255).astype(np.int64).ravel(), minlength=256)
    p = np.clip(np.arange(256) / 255, 1e-9, 1 - 1e-9)
    entropy = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
    low, high = UNCERTAIN
    return {
        "confidence_sum": float(levels @ np.maximum(p, 1 - p)),
        "entropy_sum": float(levels @ entropy),
        "uncertain_pixels": int(levels[(p > low) & (p < high)].sum()),
    }


def _sum_sharpness(image: UInt8[np.ndarray, "h w 3"]) -> Row:
    """What the focus score is made of: the Laplacian's energy over the variance of the grey levels."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    laplacian = cv2.Laplacian(grey, cv2.CV_16S)
    return {
        "grey_sum": float(grey.sum(dtype=np.float64)),
        "grey_square_sum": float(np.square(grey, dtype=np.float64).sum()),
        "laplacian_square_sum": float(np.square(laplacian, dtype=np.float64).sum()),
    }
