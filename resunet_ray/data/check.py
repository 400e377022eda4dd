"""One labelled image, read and checked: its row of the data set, or the reason it has none."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32, Integer, UInt8

from resunet_ray.data import annotations, images
from resunet_ray.data.archives import Entry
from resunet_ray.data.labels import decode_labels, decode_values, encode_labels, to_mask
from resunet_ray.data.metadata import Metadata
from resunet_ray.data.raster.planes import EVERYTHING, Selection
from resunet_ray.data.sources import Source
from resunet_ray.errors import ChangedError, InputError
from resunet_ray.storage import Cache, crashes


class _RejectedError(Exception):
    """A labelled image that cannot be used, with its reason as a single word."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@contextmanager
def _rejecting(reason: str) -> Iterator[None]:
    """Turn what is wrong with a file into the reason why its image is rejected."""
    try:
        yield
    except ChangedError:  # it says nothing of the image
        raise
    except InputError as error:
        raise _RejectedError(reason, str(error)) from None


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
    foreground_fraction: float
    """Of the mask, 0 to 1."""
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
    source: Source,
    *,
    max_pixels: int,
    known: Metadata,
    cache: Cache,
    selection: Selection = EVERYTHING,
) -> CheckedImage | Reject:
    """Read and check one labelled image.

    Args:
        source: its files.
        max_pixels: larger images are rejected before they are decoded.
        known: what the metadata says about it.
        cache: where compressed tars are expanded.
        selection: which channel and focal plane.
    """
    try:
        if source.reason is not None:
            raise _RejectedError(source.reason, f"{source.name}: {_UNREAD[source.reason]}")
        return _read_pair(
            source, max_pixels=max_pixels, known=known, cache=cache, selection=selection
        )
    except _RejectedError as rejection:
        return _reject(source, rejection.reason, str(rejection))
    except ChangedError as error:
        return _reject(source, "changed", f"{error}: run the same command again")


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


def _read_pair(
    source: Source, *, max_pixels: int, known: Metadata, cache: Cache, selection: Selection
) -> CheckedImage:
    assert source.image is not None, f"{source.name} was listed without an image"
    with _rejecting("unreadable"):
        content, image = annotations.read_image(
            source.image,
            element=source.element,
            cache=cache,
            max_pixels=max_pixels,
            selection=selection,
        )
    mask, labels = _read_truth(source, shape=image.shape[:2], max_pixels=max_pixels, cache=cache)
    return CheckedImage(
        image_id=source.image_id,
        source_uri=source.name,
        image=content or images.encode_png(image, deflate=False),
        mask=images.encode_png(mask * np.uint8(255), deflate=False),
        labels=None if labels is None else encode_labels(labels, name=source.name),
        height=image.shape[0],
        width=image.shape[1],
        mpp=known.mpp,
        modality=known.modality,
        foreground_fraction=float(mask.mean()),
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
        entry: Entry, decode: Callable[..., Integer[np.ndarray, "h w"]]
    ) -> Integer[np.ndarray, "h w"]:
        with _rejecting("unreadable_mask"):
            values = annotations.read_labels(
                entry,
                decode,
                shape=shape,
                element=source.element,
                cache=cache,
                max_pixels=max_pixels,
            )
        if values.shape != shape:
            raise _RejectedError(
                "size_differs",
                f"{entry.name} is {values.shape[0]} x {values.shape[1]}: "
                f"expected {shape[0]} x {shape[1]}, the size of its image",
            )
        return values

    def read_mask(entry: Entry) -> UInt8[np.ndarray, "h w"]:
        values = read(entry, decode_values)
        with _rejecting("not_a_mask"):
            return to_mask(values, name=entry.name)

    if source.per_nucleus:
        labels = np.zeros(shape, np.int32)
        for number, entry in enumerate(source.masks, start=1):
            labels[(read_mask(entry) == 1) & (labels == 0)] = number
        return (labels > 0).astype(np.uint8), labels
    known = read(source.labels, decode_labels) if source.labels else None
    if source.areas is not None:
        known = annotations.number_areas(read(source.areas, annotations.decode_first_channel))
    if source.markers is not None and known is not None:
        _require_covered(read(source.markers, decode_labels), known, name=source.name)
    if not source.masks:
        assert known is not None, f"{source.name} was listed without truth"
        return (known > 0).astype(np.uint8), known
    mask = read_mask(source.masks[0])
    if known is not None and (differing := int(((known > 0) != (mask > 0)).sum())):
        raise _RejectedError(
            "labels_differ",
            f"{source.name}: mask and instances disagree on {differing} pixels: expected none",
        )
    return mask, known


def _require_covered(
    markers: Integer[np.ndarray, "h w"], labels: Integer[np.ndarray, "h w"], *, name: str
) -> None:
    marked = np.unique(markers[markers > 0])
    covered = np.unique(markers[(markers > 0) & (labels > 0)])
    if len(covered) < len(marked):
        raise _RejectedError(
            "partly_labelled",
            f"{name}: {len(covered)} of {len(marked)} marked nuclei have a label: expected all",
        )
