"""The size of nuclei: images with larger nuclei than the network knows are predicted smaller.

The bundle's zoom in training covers nuclei of about 10 to 60 pixels. On test images enlarged until
their nuclei had 85 and 128 pixels, the AP at IoU 0.5 fell from 0.85 to 0.64 and 0.47.
"""

from collections.abc import Callable, Sequence

import cv2
import numpy as np
from jaxtyping import UInt8

from resunet_ray.config.model import Diameter
from resunet_ray.intensity import Range
from resunet_ray.model.prediction import Prediction

LARGEST = 60.0
"""Pixels. Images with larger nuclei are predicted at a smaller scale."""
_AIM = 30.0  # pixels that the nuclei then have
_ROUNDS = 3  # very large nuclei are underestimated, and the image is made smaller more than once
_SMALLEST_SIDE = 32  # pixels of the image that is predicted

Images = Sequence[UInt8[np.ndarray, "_h _w 3"]]
Ranges = Sequence[Range | None] | None
Run = Callable[[Images, Ranges], list[Prediction]]
"""Images and their intensity ranges → what the network says."""


def predict_sized(
    run: Run, images: Images, ranges: Ranges, *, diameters: Sequence[Diameter]
) -> list[Prediction]:
    """Predict images, smaller copies of those with large nuclei.

    Args:
        run: the network.
        images: RGB images.
        ranges: the intensity range of each image.
        diameters: of each image's nuclei, pixels; auto: as the network's head says; none: never
            smaller.

    Returns:
        Predictions at the images' own sizes, packed.
    """
    known = list(ranges or [None] * len(images))
    scales = [choose_scale(diameter) for diameter in diameters]
    whole = [index for index, scale in enumerate(scales) if scale == 1]
    first = run([images[index] for index in whole], [known[index] for index in whole])
    found = dict(zip(whole, first, strict=True))
    for index, (image, levels) in enumerate(zip(images, known, strict=True)):
        if index not in found:
            copy = _predict_copy(run, image, levels, scale=scales[index])
            found[index] = copy.resize(*image.shape[:2])
        elif diameters[index] == "auto":
            found[index] = _refine(run, image, levels, found[index])
    return [found[index].pack() for index in range(len(images))]


def choose_scale(diameter: Diameter) -> float:
    """Return the scale at which to see an image whose nuclei have this diameter, pixels."""
    return _AIM / diameter if isinstance(diameter, float) and diameter > LARGEST else 1.0


def estimate_diameter(prediction: Prediction) -> float | None:
    """Return the diameter of nuclei, pixels: the median over their pixels.

    None if there are none, or if the network lacks the head `diameter`.
    """
    diameter = prediction.diameter
    if diameter is None:
        return None
    seen = diameter[prediction.probability > 0.5]
    return float(np.median(seen)) if seen.size else None


def _refine(
    run: Run, image: UInt8[np.ndarray, "h w 3"], levels: Range | None, found: Prediction
) -> Prediction:
    """Predict smaller copies until their nuclei are small enough."""
    scale = 1.0
    for _ in range(_ROUNDS):
        diameter = estimate_diameter(found)
        if diameter is None or diameter <= LARGEST:
            break
        scale *= _AIM / diameter
        found = _predict_copy(run, image, levels, scale=scale)
    return found if scale == 1 else found.resize(*image.shape[:2])


def _predict_copy(
    run: Run, image: UInt8[np.ndarray, "h w 3"], levels: Range | None, *, scale: float
) -> Prediction:
    """Predict a smaller copy of an image; the prediction has the size of the copy."""
    height, width = (max(_SMALLEST_SIDE, round(side * scale)) for side in image.shape[:2])
    copy = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA))
    (found,) = run([copy], [levels])
    return found
