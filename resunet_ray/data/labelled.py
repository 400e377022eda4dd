"""A labelled image on its way through the cluster: whole, decoded once, with its truth."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from jaxtyping import Int32, UInt8

from resunet_ray.data.dataset import Dataset, Row, Span
from resunet_ray.data.images import decode_stored
from resunet_ray.data.stream import transform_span

LABELLED = ["image_id", "modality", "image", "mask", "labels"]
"""The columns that it is made of."""


def decode_labelled(row: Row, *, epoch: int, index: int, draw: int) -> Row:  # noqa: ARG001 (a Transform)
    """A `Transform`: image, mask and labels as raw bytes, since arrays of differing shapes have no stable Arrow type."""
    cv2.setNumThreads(1)  # Ray runs one task on each CPU
    image = decode_stored(row["image"])
    labels = decode_stored(row["labels"]).astype(np.int32).tobytes() if row["labels"] is not None else b""
    return {
        "index": index,
        "image_id": row["image_id"],
        "modality": row["modality"] or "",
        "height": image.shape[0],
        "width": image.shape[1],
        "image": image.tobytes(),
        "mask": (decode_stored(row["mask"]) // 255).tobytes(),
        "labels": labels,
    }


@dataclass(frozen=True)
class Labelled:
    """One image and its truth, in memory."""

    index: int
    """Its number within the split."""
    image_id: str
    modality: str | None
    image: UInt8[np.ndarray, "h w 3"]
    mask: UInt8[np.ndarray, "h w"]
    """0 or 1."""
    labels: Int32[np.ndarray, "h w"] | None


def labelled_images(block: dict[str, Any]) -> Iterator[Labelled]:
    """The images of a block of rows that `decode_labelled` made."""
    for number, index in enumerate(block["index"]):
        shape = int(block["height"][number]), int(block["width"][number])
        labels = block["labels"][number]
        yield Labelled(
            index=int(index),
            image_id=str(block["image_id"][number]),
            modality=str(block["modality"][number]) or None,
            image=np.frombuffer(block["image"][number], np.uint8).reshape(*shape, 3),
            mask=np.frombuffer(block["mask"][number], np.uint8).reshape(shape),
            labels=np.frombuffer(labels, np.int32).reshape(shape) if labels else None,
        )


def read_images(dataset: Dataset, spans: list[Span]) -> Iterator[Labelled]:
    """The images of some spans, read here and now, without Ray."""
    for span in spans:
        for row in transform_span(dataset, span, columns=LABELLED, transform=decode_labelled):
            yield from labelled_images({name: [value] for name, value in row.items()})
