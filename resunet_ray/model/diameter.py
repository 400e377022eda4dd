"""The scale at which an image is seen: pixels and nuclei become as large as the network knows them.

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
_SAME_SCALE = 0.01  # pixels whose size is this close to the bundle's are not resampled

Images = Sequence[UInt8[np.ndarray, "_h _w 3"]]
Ranges = Sequence[Range | None] | None
Run = Callable[[Images, Ranges, bool], list[Prediction]]
"""Images, their intensity ranges, and whether to pack what the network says of them."""


def choose_scale(
    diameter: Diameter, *, mpp: float | None = None, bundle_mpp: float | None = None
) -> float | None:
    """Return the scale at which to see an image: the side of a pixel, in pixels of the image.

    None: the head `diameter` decides. Where both pixel sizes are known, the image is seen at the
    bundle's.

    Args:
        diameter: of the nuclei, pixels; auto: as the head says; none: as they are.
        mpp: microns per pixel of the image.
        bundle_mpp: those of the bundle's training data.
    """
    if mpp is not None and bundle_mpp is not None:
        scale = bundle_mpp / mpp
        return 1.0 if abs(scale - 1) < _SAME_SCALE else scale
    if diameter == "auto":
        return None
    return diameter / _AIM if isinstance(diameter, float) and diameter > LARGEST else 1.0


def predict_scaled(
    run: Run, images: Images, ranges: Ranges, *, scales: Sequence[float | None]
) -> list[Prediction]:
    """Predict images, or copies of them at another scale.

    Args:
        run: the network.
        images: RGB images.
        ranges: the intensity range of each image.
        scales: at which each image is seen (see `choose_scale`).

    Returns:
        Predictions at the images' own sizes, packed.
    """
    known = list(ranges or [None] * len(images))
    seen = [
        image if scale in (None, 1.0) else _resize(image, scale)
        for image, scale in zip(images, scales, strict=True)
    ]
    # What is resized later must not be rounded before.
    packed = all(scale in (None, 1.0) for scale in scales)
    found = run(seen, known, packed)
    for index, (image, levels, scale) in enumerate(zip(images, known, scales, strict=True)):
        if scale is None:
            found[index] = _refine(run, image, levels, found[index])
        if found[index].probability.shape != image.shape[:2]:
            found[index] = found[index].resize(*image.shape[:2])
    return [one.pack() for one in found]


def estimate_diameter(prediction: Prediction) -> float | None:
    """Return the diameter of nuclei, pixels: the median over their pixels.

    None if there are none, or if the network lacks the head `diameter`.
    """
    diameter = prediction.diameter
    if diameter is None:
        return None
    seen = diameter[prediction.probability > 0.5].astype(np.float32)
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
        scale *= diameter / _AIM
        (found,) = run([_resize(image, scale)], [levels], False)
    return found


def _resize(image: UInt8[np.ndarray, "h w 3"], scale: float) -> UInt8[np.ndarray, "_h _w 3"]:
    """Return a copy whose pixels have sides of `scale` pixels of the image."""
    height, width = (max(_SMALLEST_SIDE, round(side / scale)) for side in image.shape[:2])
    method = cv2.INTER_AREA if scale > 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (width, height), interpolation=method))
