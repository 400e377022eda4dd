"""One labelled image, read and checked: its row of the data set, or the reason it has none."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32, UInt8

from resunet_ray.data import annotations, images
from resunet_ray.data.archives import Entry
from resunet_ray.data.metadata import Metadata
from resunet_ray.data.sources import Source
from resunet_ray.errors import InputError
from resunet_ray.storage import Cache, crashes


class _RejectedError(Exception):
    """A labelled image that cannot be used, with its reason as a single word."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class CheckedImage:
    """A labelled image as the data set stores it, with digests of its pixels."""

    image_id: str
    source_uri: str
    image: bytes
    mask: bytes
    labels: bytes | None
    height: int
    width: int
    mpp: float | None
    modality: str | None
    digest: str
    """Of the image."""
    truth_digest: str
    """Of mask and instances."""


@dataclass(frozen=True, kw_only=True)
class Reject:
    """A labelled image that cannot be used: a row of rejects.parquet."""

    image_id: str
    source_uri: str
    reason: str
    message: str


def check_source(
    source: Source, *, max_pixels: int, known: Metadata, cache: Cache
) -> CheckedImage | Reject:
    """Read and check one labelled image.

    Args:
        source: its files.
        max_pixels: larger images are rejected before they are decoded.
        known: what the metadata says about it.
        cache: where compressed tars are expanded.
    """
    try:
        if source.reason is not None:
            raise _RejectedError(source.reason, f"{source.name}: {_UNREAD[source.reason]}")
        return _read_pair(source, max_pixels=max_pixels, known=known, cache=cache)
    except _RejectedError as rejection:
        return _reject(source, rejection.reason, str(rejection))


def blame_source(source: Source, deaths: int) -> Reject:
    """Reject a labelled image over which the process died `deaths` times."""
    return _reject(source, "crash", crashes.describe(source.name, deaths))


def _reject(source: Source, reason: str, message: str) -> Reject:
    return Reject(image_id=source.image_id, source_uri=source.name, reason=reason, message=message)


LEFT_OUT = ("not_labelled", "partly_labelled")
"""Reasons that a layout expects: images with these are no failures."""
_UNREAD = {
    "duplicate_id": "another image of the input has the same name, and only one of them is used",
    "no_mask": "no file with the same name in masks/, labels/ or instances/ next to images/, or "
    "wherever --layout says",
    "no_image": "no file with the same name in images/, or wherever --layout says",
    "not_labelled": "it has no labels, as most images of this layout",
    "ambiguous_name": "several files have this name and differ only in their suffix or folder",
}


def _read_pair(source: Source, *, max_pixels: int, known: Metadata, cache: Cache) -> CheckedImage:
    assert source.image is not None, f"{source.name} was listed without an image"
    try:
        content, image = annotations.read_image(
            source.image, element=source.element, cache=cache, max_pixels=max_pixels
        )
    except InputError as error:
        raise _RejectedError("unreadable", str(error)) from None
    mask, labels = _read_truth(source, shape=image.shape[:2], max_pixels=max_pixels, cache=cache)
    return CheckedImage(
        image_id=source.image_id,
        source_uri=source.name,
        image=content or images.encode_png(image, deflate=False),
        mask=images.encode_png(mask * np.uint8(255), deflate=False),
        labels=None if labels is None else images.encode_labels(labels, name=source.name),
        height=image.shape[0],
        width=image.shape[1],
        mpp=known.mpp,
        modality=known.modality,
        digest=_digest(image),
        truth_digest=_digest(mask) + ("" if labels is None else _digest(labels)),
    )


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(str(array.shape).encode() + array.tobytes()).hexdigest()


def _read_truth(
    source: Source, *, shape: tuple[int, int], max_pixels: int, cache: Cache
) -> tuple[UInt8[np.ndarray, "h w"], Int32[np.ndarray, "h w"] | None]:
    """Return the mask, 0 or 1, and the instances if they are known."""

    def read(
        entry: Entry, decode: Callable[..., Int32[np.ndarray, "h w"]] = images.decode_labels
    ) -> Int32[np.ndarray, "h w"]:
        try:
            values = annotations.read_labels(
                entry,
                decode,
                shape=shape,
                element=source.element,
                cache=cache,
                max_pixels=max_pixels,
            )
        except InputError as error:
            raise _RejectedError("unreadable_mask", str(error)) from None
        if values.shape != shape:
            raise _RejectedError(
                "size_differs",
                f"{entry.name} is {values.shape[0]} x {values.shape[1]}: "
                f"expected {shape[0]} x {shape[1]}, the size of its image",
            )
        return values

    if source.per_nucleus:
        labels = np.zeros(shape, np.int32)
        for number, entry in enumerate(source.masks, start=1):
            labels[(_to_mask(read(entry), name=entry.name) == 1) & (labels == 0)] = number
        return (labels > 0).astype(np.uint8), labels
    known = read(source.labels) if source.labels else None
    if source.areas is not None:
        known = annotations.number_areas(read(source.areas, annotations.decode_first_channel))
    if source.markers is not None and known is not None:
        _require_covered(read(source.markers), known, name=source.name)
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


def _require_covered(
    markers: Int32[np.ndarray, "h w"], labels: Int32[np.ndarray, "h w"], *, name: str
) -> None:
    marked = np.unique(markers[markers > 0])
    covered = np.unique(markers[(markers > 0) & (labels > 0)])
    if len(covered) < len(marked):
        raise _RejectedError(
            "partly_labelled",
            f"{name}: {len(covered)} of {len(marked)} marked nuclei have a label: expected all",
        )


def _to_mask(values: Int32[np.ndarray, "h w"], *, name: str) -> UInt8[np.ndarray, "h w"]:
    levels = np.unique(values)
    if len(levels) > 2 or (len(levels) == 2 and levels[0] != 0):
        raise _RejectedError(
            "not_a_mask",
            f"{name} has {len(levels)} distinct values from {levels[0]} to {levels[-1]}: "
            "expected 0 and one other value. Put instance numbers in instances/",
        )
    return (values > 0).astype(np.uint8)
