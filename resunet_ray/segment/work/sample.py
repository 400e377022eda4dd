"""An image, or a tile of a slide, on its way through an actor."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import UInt8

from resunet_ray.intensity import Range
from resunet_ray.model.heads import Prediction
from resunet_ray.model.tiling import Box
from resunet_ray.segment.rows import Failure, PlannedRegion


@dataclass
class Sample:
    """What is known so far."""

    planned: PlannedRegion | None = None
    """The image; None for a tile."""
    tile: Box | None = None
    """Where the tile lies on its slide, at the network's scale; None for an image."""
    image: UInt8[np.ndarray, "h w 3"] | None = None
    levels: Range | None = None
    """Range of the whole image's intensities, if the network's scale depends on it."""
    truth: UInt8[np.ndarray, "h w"] | None = None
    prediction: Prediction | None = field(default=None, repr=False)
    failure: Failure | None = None
    read_seconds: float = 0.0
    model_seconds: float = 0.0


def group_samples(samples: Iterable[Sample], *, pixels: int) -> Iterator[list[Sample]]:
    """Group consecutive samples, up to a number of pixels, for one call of the network."""
    group: list[Sample] = []
    held = 0
    for sample in samples:
        size = 0 if sample.image is None else sample.image.shape[0] * sample.image.shape[1]
        if group and held + size > pixels:
            yield group
            group, held = [], 0
        group.append(sample)
        held += size
    if group:
        yield group
