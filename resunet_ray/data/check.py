"""One labelled image, read and checked: the row of the data set that it becomes, or the reason why not."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int32, UInt8

from resunet_ray.data import images
from resunet_ray.data.archives import Entry
from resunet_ray.data.sources import Source
from resunet_ray.errors import InputError
from resunet_ray.storage import Cache, crashes


class _RejectedError(Exception):
    """A labelled image that cannot be used, with the word that rejects.parquet gives as the reason."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def check_source(
    source: Source, *, max_pixels: int, known: Mapping[str, Any], cache: Cache
) -> dict[str, Any]:
    """The data set's row of one labelled image, or a row with `reason` and `message` and no pixels."""
    row: dict[str, Any] = {"image_id": source.image_id, "source_uri": source.name}
    try:
        if source.reason is not None:
            raise _RejectedError(source.reason, f"{source.name}: {_UNREAD[source.reason]}")
        row |= _read_pair(source, max_pixels=max_pixels, cache=cache)
    except _RejectedError as rejection:
        return row | {"reason": rejection.reason, "message": str(rejection)}
    mpp, modality = known.get("mpp"), known.get("modality")
    return row | {
        "mpp": None if pd.isna(mpp) else mpp,
        "modality": None if pd.isna(modality) else str(modality),
    }


def blame_source(source: Source, deaths: int) -> dict[str, Any]:
    """The row of a labelled image over which the process died so often."""
    message = crashes.describe(source.name, deaths)
    return {
        "image_id": source.image_id,
        "source_uri": source.name,
        "reason": "crash",
        "message": message,
    }


_UNREAD = {
    "duplicate_id": "another image of the input has the same name, and only one can keep it",
    "no_mask": "no file of the same name in masks/, labels/ or instances/ beside it",
    "no_image": "no file of the same name in images/ beside it",
    "ambiguous_name": "several files of one folder have this name and differ in their ending only",
}


def _read_pair(source: Source, *, max_pixels: int, cache: Cache) -> dict[str, Any]:
    assert source.image is not None, f"{source.name} was listed without an image"
    try:
        content = source.image.read(cache)
        image = images.decode_image(content, name=source.image.name, max_pixels=max_pixels)
    except InputError as error:
        raise _RejectedError("unreadable", str(error)) from None
    mask, labels = _read_truth(source, shape=image.shape[:2], max_pixels=max_pixels, cache=cache)
    return {
        "image": content
        if images.is_stored_form(content)
        else images.encode_png(image, deflate=False),
        "mask": images.encode_png(mask * np.uint8(255), deflate=False),
        "labels": None if labels is None else images.encode_labels(labels, name=source.name),
        "height": image.shape[0],
        "width": image.shape[1],
        "digest": _digest(image),
        "truth_digest": _digest(mask) + ("" if labels is None else _digest(labels)),
    }


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(str(array.shape).encode() + array.tobytes()).hexdigest()


def _read_truth(
    source: Source, *, shape: tuple[int, int], max_pixels: int, cache: Cache
) -> tuple[UInt8[np.ndarray, "h w"], Int32[np.ndarray, "h w"] | None]:
    """The mask, 0 or 1, and the instances where they are known."""

    def read(entry: Entry) -> Int32[np.ndarray, "h w"]:
        try:
            values = images.decode_labels(entry.read(cache), name=entry.name, max_pixels=max_pixels)
        except InputError as error:
            raise _RejectedError("unreadable_mask", str(error)) from None
        if values.shape != shape:
            raise _RejectedError(
                "size_differs",
                f"{entry.name} is {values.shape[0]} x {values.shape[1]}: expected {shape[0]} x {shape[1]}, as its image",
            )
        return values

    if source.per_nucleus:
        labels = np.zeros(shape, np.int32)
        for number, entry in enumerate(source.masks, start=1):
            labels[(_to_mask(read(entry), name=entry.name) == 1) & (labels == 0)] = number
        return (labels > 0).astype(np.uint8), labels
    known = read(source.labels) if source.labels else None
    if not source.masks:
        assert known is not None, f"{source.name} was listed without truth"
        return (known > 0).astype(np.uint8), known
    mask = _to_mask(read(source.masks[0]), name=source.masks[0].name)
    if known is not None and (differing := int(((known > 0) != (mask > 0)).sum())):
        raise _RejectedError(
            "labels_differ",
            f"{source.name}: mask and instances disagree on {differing} pixels: expected none",
        )
    return mask, known


def _to_mask(values: Int32[np.ndarray, "h w"], *, name: str) -> UInt8[np.ndarray, "h w"]:
    levels = np.unique(values)
    if len(levels) > 2 or (len(levels) == 2 and levels[0] != 0):
        raise _RejectedError(
            "not_a_mask",
            f"{name} holds {len(levels)} distinct values from {levels[0]} to {levels[-1]}: expected 0 and one other; "
            "numbers of instances belong in instances/",
        )
    return (values > 0).astype(np.uint8)
