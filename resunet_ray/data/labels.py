"""Bytes to masks and labels, and back: whole numbers, whatever form a program stores them in."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32, Integer, UInt8
from skimage.measure import label as number_pieces

from resunet_ray.data.images import MAX_PIXELS, encode_png
from resunet_ray.data.raster.pillow import FORMATS
from resunet_ray.data.values import ADVICE, read_values
from resunet_ray.errors import ImageError

_LARGEST_STORED = int(np.iinfo(np.uint16).max)
_LARGEST_EXACT = 2**53  # up to here, float64 holds every whole number
# Annotators draw some nuclei in two pieces, or one within another; in 222 label images of the 2018
# Data Science Bowl, 1% of the nuclei at most are in pieces.
_MOST_PIECES, _MOST_ENCLOSED = 1.5, 0.25
_MOST_PIECES_OF_ONE = 2


def decode_labels(
    content: bytes, *, name: str, max_pixels: int = MAX_PIXELS
) -> Int32[np.ndarray, "h w"]:
    """Decode an image of instances: the number of each pixel's nucleus, 0 for background.

    Numbers are kept up to 65,535. If any is larger, all are replaced by 1, 2, 3, … in their order.
    In an RGB image, each colour but black is an instance, numbered likewise.

    Args:
        content: the file's bytes.
        name: the file's name in errors.
        max_pixels: a header that claims more is refused before any pixel is allocated.

    Raises:
        ImageError: for the reasons of `decode_values`; the file is a JPEG, whose compression
            changes numbers; it has more than 65,535 instances; a colour occurs in several places,
            so that it may stand for several nuclei; or numbers do, enclose each other, or leave no
            background, so that they are those of something else.
    """
    if content.startswith(FORMATS["JPEG"][1]):
        raise ImageError(
            f"{name} is a JPEG, whose compression changes numbers: expected instance numbers. "
            "Save them as PNG or TIFF"
        )
    stored = read_values(content, name=name, max_pixels=max_pixels)
    values = _flatten(stored, name=name)
    if stored.ndim == 3:
        _check_colours(values, name=name)
    numbers = _renumber(values, name=name)
    _check_numbers(numbers, name=name)
    if stored.ndim == 3 or values.max(initial=0) > _LARGEST_STORED:
        return numbers
    return values.astype(np.int32)


def decode_mask(
    content: bytes, *, name: str, max_pixels: int = MAX_PIXELS
) -> UInt8[np.ndarray, "h w"]:
    """Decode a mask to 0 and 1.

    Raises:
        ImageError: for the reasons of `decode_values` and `to_mask`.
    """
    return to_mask(decode_values(content, name=name, max_pixels=max_pixels), name=name)


@dataclass(frozen=True)
class Truth:
    """What is known of an image: which pixels are nuclei and, perhaps, of which nucleus."""

    mask: UInt8[np.ndarray, "h w"]
    """0 or 1."""
    labels: Int32[np.ndarray, "h w"] | None
    """None if the file is a mask: 0 and one other value."""


def decode_truth(content: bytes, *, name: str, max_pixels: int = MAX_PIXELS) -> Truth:
    """Decode a mask, or an image of instances where the values can be nothing else.

    Raises:
        ImageError: for the reasons of `decode_values`; or it is neither (see `to_mask`).
    """
    values = decode_values(content, name=name, max_pixels=max_pixels)
    labels = _renumber(values, name=name)
    if content.startswith(FORMATS["JPEG"][1]) or not _are_instances(labels):
        return Truth(to_mask(values, name=name), None)
    return Truth((labels > 0).astype(np.uint8), labels)


def decode_values(
    content: bytes, *, name: str, max_pixels: int = MAX_PIXELS
) -> Integer[np.ndarray, "h w"]:
    """Decode a mask or label image to its stored values, turned upright like its image.

    Integers of any size and whole floating-point numbers count, three equal colour channels as
    one. Colours become numbers, black 0. Values of a palette are its indices, unless it is grey.

    Raises:
        ImageError: the bytes are not an image of a known format, are damaged or end early, or what
            they store is not one whole number from 0 for each pixel: several pages or channels,
            negative numbers or fractions, a mask in the transparency, a colour image without black.
    """
    return _flatten(read_values(content, name=name, max_pixels=max_pixels), name=name)


def to_mask(values: Integer[np.ndarray, "h w"], *, name: str) -> UInt8[np.ndarray, "h w"]:
    """Turn 0 and one other value into 0 and 1.

    Raises:
        ImageError: there are other values. Any threshold would be a guess: after JPEG or smoothing
            the values change gradually, and values between may mean a border, or pixels to ignore.
    """
    levels = np.unique(values)
    if len(levels) > 2 or (len(levels) == 2 and levels[0] != 0):
        raise ImageError(
            f"{name} has {len(levels)} distinct values from {levels[0]} to {levels[-1]}: expected "
            "0 and one other value. If JPEG or smoothing has softened it, threshold it and save it "
            "as PNG. Numbers of nuclei go in instances/; for --masks, each must be in one place"
        )
    return (values > 0).astype(np.uint8)


def encode_labels(labels: Int32[np.ndarray, "h w"], *, name: str) -> bytes:
    """Encode a label image as 16-bit PNG, not deflated because Parquet compresses it.

    Raises:
        ImageError: it has more than 65,535 instances.
    """
    if labels.max(initial=0) > _LARGEST_STORED:
        raise ImageError(f"{name} has {labels.max()} instances: expected at most {_LARGEST_STORED}")
    return encode_png(labels.astype(np.uint16), deflate=False)


def _renumber(values: Integer[np.ndarray, "h w"], *, name: str) -> Int32[np.ndarray, "h w"]:
    levels, places = np.unique(values, return_inverse=True)
    first = int(levels[0] != 0)
    if (count := len(levels) - 1 + first) > _LARGEST_STORED:
        raise ImageError(f"{name} has {count} instances: expected at most {_LARGEST_STORED}")
    return (places.reshape(values.shape) + first).astype(np.int32)


def _are_instances(numbers: Int32[np.ndarray, "h w"]) -> bool:
    """Whether numbers are those of nuclei: several, each in one place, and none in another.

    Of a mask that was smoothed, or that has a value for borders, each value is in many places, or
    encloses another.
    """
    count = int(numbers.max(initial=0))
    if count < 2 or numbers.all():
        return False
    if _count_pieces(numbers) > _MOST_PIECES * count:
        return False
    padded = np.pad(numbers, 1)
    beside = [(padded[1:], padded[:-1]), (padded[:, 1:], padded[:, :-1])]
    pairs = np.concatenate([np.stack((a[a != b], b[a != b])) for a, b in beside], axis=1)
    pairs = np.concatenate([pairs, pairs[::-1]], axis=1).astype(np.int64)
    pairs = np.stack(np.divmod(np.unique(pairs[0] * (count + 1) + pairs[1]), count + 1))
    num_beside = np.bincount(pairs[0], minlength=count + 1)
    is_free = np.bincount(pairs[0], pairs[1] == 0, minlength=count + 1) > 0
    num_enclosed = np.count_nonzero((num_beside == 1) & ~is_free)
    return bool(num_enclosed <= _MOST_ENCLOSED * count)


def _count_pieces(numbers: Int32[np.ndarray, "h w"]) -> int:
    return int(number_pieces(numbers, connectivity=2, return_num=True)[1])


def _check_numbers(numbers: Int32[np.ndarray, "h w"], *, name: str) -> None:
    """Refuse numbers of something else than nuclei: of classes, borders, or a softened mask."""
    count = int(numbers.max(initial=0))
    if count > 1 and numbers.all():
        raise ImageError(f"{name} has no 0: expected 0 for background. {ADVICE}")
    if count == 1:
        fits = _count_pieces(numbers) <= _MOST_PIECES_OF_ONE
    else:
        fits = not count or _are_instances(numbers)
    if not fits:
        raise ImageError(
            f"{name} has {count} numbers that cover {_count_pieces(numbers)} separate areas or "
            "enclose each other: expected another number for each nucleus. Masks go in masks/; "
            "classes, borders and softened numbers cannot be read"
        )


def _check_colours(values: Integer[np.ndarray, "h w"], *, name: str) -> None:
    colours = len(np.unique(values)) - 1
    pieces = int(number_pieces(values.astype(np.int64), connectivity=2).max())
    if pieces != colours:
        raise ImageError(
            f"{name} is a colour image whose {colours} colours cover {pieces} separate areas: "
            f"expected another colour for each nucleus. {ADVICE}"
        )


def _flatten(stored: np.ndarray, *, name: str) -> Integer[np.ndarray, "h w"]:
    """Return whole numbers from 0; a colour becomes one."""
    if stored.ndim == 3:
        bits = 8 * stored.dtype.itemsize
        red, green, blue = np.moveaxis(stored.astype(np.uint64), -1, 0)
        stored = (red << (2 * bits)) | (green << bits) | blue
        if stored.all():
            raise ImageError(
                f"{name} is a colour image without black: expected black background. {ADVICE}"
            )
    if stored.dtype.kind == "b":
        return stored.astype(np.uint8)
    if stored.dtype.kind == "f":
        is_whole = bool((np.rint(stored) == stored).all())  # NaN is not
        if not is_whole or float(abs(stored).max(initial=0)) > _LARGEST_EXACT:
            raise ImageError(
                f"{name} has values from {stored.min():g} to {stored.max():g} that are not whole: "
                f"expected whole numbers up to 2^53. {ADVICE}"
            )
        stored = stored.astype(np.int64)
    if stored.dtype.kind not in "iu":
        raise ImageError(f"{name} has values of type {stored.dtype}: expected numbers. {ADVICE}")
    if (least := stored.min(initial=0)) < 0:
        raise ImageError(f"{name} has the value {least}: expected none below 0. {ADVICE}")
    return stored
