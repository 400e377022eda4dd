"""A labelled image in memory: whole, decoded once, with its truth."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32, UInt8

from resunet_ray.data.dataset import Dataset, Row, Span, read_span
from resunet_ray.data.images import decode_stored

_COLUMNS = ["image_id", "modality", "image", "mask", "labels"]
_THREADS = 4  # decoding releases Python's lock, and is done ahead of the network


@dataclass(frozen=True)
class LabelledImage:
    """One image and its truth."""

    index: int
    """Its number within the split."""
    image_id: str
    modality: str | None
    image: UInt8[np.ndarray, "h w 3"]
    mask: UInt8[np.ndarray, "h w"]
    """0 or 1."""
    labels: Int32[np.ndarray, "h w"] | None


def read_images(dataset: Dataset, spans: list[Span]) -> Iterator[LabelledImage]:
    """The images of some spans, in their order."""
    with ThreadPoolExecutor(_THREADS) as pool:
        for span in spans:
            rows = [
                (span.first + number, row)
                for number, row in read_span(dataset, span, columns=_COLUMNS)
            ]
            yield from pool.map(_decode, rows)


def _decode(numbered: tuple[int, Row]) -> LabelledImage:
    index, row = numbered
    return LabelledImage(
        index=index,
        image_id=row["image_id"],
        modality=row["modality"],
        image=decode_stored(row["image"]),
        mask=decode_stored(row["mask"]) // 255,
        labels=decode_stored(row["labels"]).astype(np.int32) if row["labels"] is not None else None,
    )
