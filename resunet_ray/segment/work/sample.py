"""An image or a tile of a slide on its way through an actor."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float32, UInt8

from resunet_ray.intensity import Range
from resunet_ray.model.tiling import Box
from resunet_ray.segment.rows import Row


@dataclass
class Sample:
    """What is known so far."""

    row: Row
    """Of REGIONS; of a tile, only the seconds and what went wrong."""
    tile: Box | None = None
    """Where it lies on its slide, at the scale of the network; None: it is an image."""
    image: UInt8[np.ndarray, "h w 3"] | None = None
    levels: Range | None = None
    """Range of the whole image, where the network's intensity scale asks for it."""
    truth: UInt8[np.ndarray, "h w"] | None = None
    probability: Float32[np.ndarray, "h w"] | None = field(default=None, repr=False)


def group_samples(samples: Iterable[Sample], *, pixels: int) -> Iterator[list[Sample]]:
    """Consecutive images that go through the network in one call."""
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
