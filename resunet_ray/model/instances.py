"""From a prediction to instances: a label image with one number per nucleus."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, Int64, UInt8

from resunet_ray.config import InstanceConfig
from resunet_ray.config.model import Head
from resunet_ray.model.connected import label_components, renumber, sum_inside
from resunet_ray.model.division import divide_components
from resunet_ray.model.prediction import Prediction
from resunet_ray.model.watershed import label_watershed

_TYPICAL_SHARE = 0.1, 0.35
"""An instance with less than the first share of the area that the network expects is dropped, and
one with more than the second is kept. The smallest area of all, chosen for nuclei of 20 pixels,
decides in between. On validation images at their own size, half of it and five times as large, this
changed the AP at IoU 0.5 from 0.829, 0.642 and 0.747 to 0.830, 0.709 and 0.814."""


def choose_method(heads: Sequence[Head]) -> InstanceConfig:
    """Return the parameters to use before any are calibrated: the head `distance`, if it is there.

    Args:
        heads: the network's heads.
    """
    return InstanceConfig(method="distance" if "distance" in heads else "components")


Components = tuple[Int32[np.ndarray, "h w"], int]
"""Connected components of a mask, numbered from 1, and how many there are."""


def find_components(prediction: Prediction, *, config: InstanceConfig) -> Components:
    """Label the connected components of the mask."""
    return label_components(threshold_mask(prediction.probability, threshold=config.threshold))


def find_instances(
    prediction: Prediction, *, config: InstanceConfig, components: Components | None = None
) -> Int32[np.ndarray, "h w"]:
    """Find instances with a bundle's own parameters, numbered from 1.

    Args:
        prediction: what the network says.
        config: threshold and method.
        components: those of `find_components`, if they are known.
    """
    if config.method == "watershed":
        mask = threshold_mask(prediction.probability, threshold=config.threshold)
        labels = label_watershed(mask, min_distance=config.min_distance)
    else:
        if components is None:
            labels, count = find_components(prediction, config=config)
        else:
            labels, count = components[0].copy(), components[1]
        if config.method == "distance":
            distance = prediction.distance
            assert distance is not None, "the bundle's network has the head"
            divide_components(
                labels,
                count,
                distance,
                marker_distance=config.marker_distance,
                centre=prediction.centre,
                marker_area=config.marker_area,
            )
    areas, typical = measure_areas(labels, prediction)
    wanted = areas >= np.maximum(1, least_areas(typical, config.min_area))
    renumber(labels, _number(wanted))
    return labels


def measure_areas(
    labels: Int32[np.ndarray, "h w"], prediction: Prediction
) -> tuple[Int64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
    """Return the area of each instance, and that which the network expects of its kind, pixels.

    Both by number; that of 0 means nothing. The latter is infinite without the head `diameter`.

    Args:
        labels: numbers of instances.
        prediction: what the network says about the same pixels.
    """
    diameter, count = prediction.diameter, int(labels.max(initial=0))
    if diameter is None:
        areas, _ = sum_inside(labels, prediction.probability, count)
        return areas, np.full(len(areas), np.inf)
    areas, summed = sum_inside(labels, diameter, count)
    typical: Float64[np.ndarray, " n"] = np.pi / 4 * (summed / np.maximum(areas, 1)) ** 2
    return areas, typical


def least_areas(typical: Float64[np.ndarray, " n"], min_area: int) -> Float64[np.ndarray, " n"]:
    """Return how many pixels each instance needs, given its typical area.

    That is `min_area`, but less where nuclei are small, and more where they are large.
    """
    low, high = (share * typical for share in _TYPICAL_SHARE)
    least: Float64[np.ndarray, " n"]
    least = np.where(np.isfinite(typical), np.clip(min_area, low, high), min_area)
    return least


def threshold_mask(
    probability: Float32[np.ndarray, "h w"], *, threshold: float
) -> UInt8[np.ndarray, "h w"]:
    """Return 1 where the probability is at least the threshold, else 0."""
    return (probability >= threshold).view(np.uint8)


def keep_instances(
    labels: Int32[np.ndarray, "h w"], wanted: Bool[np.ndarray, " n"]
) -> Int32[np.ndarray, "h w"]:
    """Keep some of the instances, renumbered from 1; 0 stays background.

    Args:
        labels: label image.
        wanted: whether to keep each number, from 0 to the largest. Every number to keep must occur
            in `labels`.
    """
    kept = labels.copy()
    renumber(kept, _number(wanted))
    return kept


def _number(wanted: Bool[np.ndarray, " n"]) -> Int32[np.ndarray, " n"]:
    """Number what is wanted from 1; what is not, and the background, become 0."""
    numbers = np.zeros(len(wanted), np.int32)
    numbers[1:] = np.where(wanted[1:], np.cumsum(wanted[1:]), 0)
    return numbers
