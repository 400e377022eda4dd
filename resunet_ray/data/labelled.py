"""A labelled image in memory: whole, decoded once, with its mask and instances."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32, UInt8

from resunet_ray.data.dataset import Dataset, Span, StoredImage, read_span

_THREADS = 4  # decoding releases Python's lock and runs ahead of the network


@dataclass(frozen=True)
class LabelledImage:
    """One image with its mask and, where known, its instances."""

    index: int
    """Its number within the split."""
    image_id: str
    modality: str | None
    mpp: float | None
    """Microns per pixel."""
    image: UInt8[np.ndarray, "h w 3"]
    mask: UInt8[np.ndarray, "h w"]
    """0 or 1."""
    labels: Int32[np.ndarray, "h w"] | None


def read_images(dataset: Dataset, spans: list[Span]) -> Iterator[LabelledImage]:
    """Yield the images of some spans, in order."""
    with ThreadPoolExecutor(_THREADS) as pool:
        for span in spans:
            yield from pool.map(_decode, read_span(dataset, span, kind=StoredImage))


def _decode(stored: StoredImage) -> LabelledImage:
    image, mask = stored.decode()
    return LabelledImage(
        index=stored.index,
        image_id=stored.image_id,
        modality=stored.modality,
        mpp=stored.mpp,
        image=image,
        mask=mask,
        labels=stored.decode_labels(),
    )
