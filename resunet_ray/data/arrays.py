"""NumPy's .npy files: an image, labels, or a stack of them that is read element by element."""

import functools
import io
from dataclasses import dataclass
from math import prod
from pathlib import PurePosixPath

import numpy as np
from jaxtyping import Int32, UInt8

from resunet_ray import storage
from resunet_ray.data import images
from resunet_ray.data.archives import BROKEN, MAX_BYTES, Entry
from resunet_ray.data.raster.opening import naming
from resunet_ray.data.raster.planes import choose_channel
from resunet_ray.data.raster.scene import Scene
from resunet_ray.errors import ImageError, InputError
from resunet_ray.intensity import guess_range, measure_counts, scale_counts
from resunet_ray.storage import Cache

_HEADER_BYTES = 4096  # a header is 128 bytes, if it is not of nested records
_MAX_MEMBER_BYTES = 2**28  # read whole, and kept, because a member has no parts


@dataclass(frozen=True)
class _Header:
    shape: tuple[int, ...]
    by_column: bool
    dtype: np.dtype
    offset: int


def is_array(entry: Entry) -> bool:
    """Whether the name is that of a .npy file."""
    return PurePosixPath(entry.name).suffix.lower() == ".npy"


def read_shape(entry: Entry, *, cache: Cache) -> tuple[int, ...]:
    """Return the shape of an array; only its header is read.

    Raises:
        InputError: it is missing or damaged, or larger than 256 MiB in an archive.
    """
    return _read_header(entry, cache=cache).shape


def read_array(entry: Entry, *, element: int | None, cache: Cache, max_pixels: int) -> np.ndarray:
    """Read an array of two or three dimensions.

    Args:
        entry: the file. Nothing in it is executed: arrays of Python objects are refused.
        element: number of the element, of an array that has one dimension more; None: it is read
            whole.
        cache: where compressed tars are expanded.
        max_pixels: an array that claims more is refused before it is read.

    Raises:
        InputError: it is missing, damaged, larger than 256 MiB in an archive, or of another kind.
    """
    header = _read_header(entry, cache=cache)
    shape = header.shape if element is None else header.shape[1:]
    if len(shape) not in (2, 3):
        raise ImageError(
            f"{entry.name} has shape {header.shape}: expected height x width, and for a stack "
            "before these the number of images, which is the same for images and labels"
        )
    size = prod(shape) * header.dtype.itemsize
    if shape[0] * shape[1] > max_pixels or size > MAX_BYTES:
        raise ImageError(
            f"{entry.name} claims shape {shape}: expected at most {max_pixels} pixels "
            f"and {MAX_BYTES} bytes"
        )
    if element is not None and (header.by_column or element >= header.shape[0]):
        raise ImageError(
            f"{entry.name} has shape {header.shape}"
            f"{' in column order' if header.by_column else ''}: expected an element for each image,"
            " one after the other"
        )
    content = _read_part(entry, header.offset + (element or 0) * size, size, cache=cache)
    if len(content) < size:
        raise ImageError(f"{entry.name} ends early: expected shape {header.shape}")
    return np.frombuffer(content, header.dtype).reshape(
        shape, order="F" if header.by_column else "C"
    )


def to_labels(array: np.ndarray, *, name: str) -> Int32[np.ndarray, "h w"]:
    """Return an array of any number type as a label image.

    Raises:
        ImageError: it has not two dimensions, or values that are not whole and positive.
    """
    if array.ndim != 2:
        raise ImageError(
            f"{name} has shape {array.shape}: expected height x width. A stack of labels needs a "
            "stack of as many images"
        )
    return _to_whole(array, most=np.iinfo(np.int32).max, name=name).astype(np.int32)


def to_rgb(
    array: np.ndarray, *, name: str, channel: str | None = None
) -> UInt8[np.ndarray, "h w 3"]:
    """Return an array of any number type as an image, by the rules of `decode_image`.

    Args:
        array: grey, RGB, or with 2, 4 or more channels last.
        name: the file's name in errors.
        channel: the number of the channel that shows nuclei, where they are not colours.

    Raises:
        ImageError: it is not clear which channel shows nuclei, or the array does not hold numbers.
    """
    if array.ndim == 2:
        array = array[..., None]
    if array.dtype.kind not in "biuf":
        raise ImageError(f"{name} is an array of {array.dtype}: expected numbers")
    if (count := array.shape[2]) not in (1, 3):
        scene = Scene(levels=[array.shape[:2]], channels=[None] * count, dtype=array.dtype)
        with naming(name, done="read"):
            array = array[..., [choose_channel(scene, wanted=channel)]]
    if array.dtype != np.uint8:
        # Colours are often kept as whole numbers of some other type.
        is_colour = array.shape[2] == 3 and array.min(initial=0) >= 0 and (array % 1 == 0).all()
        is_colour = is_colour and array.max(initial=0) <= np.iinfo(np.uint16).max
        levels = guess_range(array, hot=True) if is_colour else measure_counts(array)
        array = scale_counts(array, levels)
    return images.to_rgb(array, None)


def _to_whole(array: np.ndarray, *, most: int, name: str) -> np.ndarray:
    if array.dtype.kind not in "biuf":
        raise ImageError(f"{name} is an array of {array.dtype}: expected numbers")
    if array.size and not (array.min() >= 0 and array.max() <= most and (array % 1 == 0).all()):
        raise ImageError(
            f"{name} has values from {array.min()} to {array.max()}: "
            f"expected whole numbers from 0 to {most}"
        )
    return array


def _read_header(entry: Entry, *, cache: Cache) -> _Header:
    content = _read_part(entry, 0, _HEADER_BYTES, cache=cache)
    file = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(file)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, by_column, dtype = read(file)
    except (ValueError, KeyError, EOFError) as error:
        raise ImageError(f"{entry.name} is not a .npy file: {error}") from None
    if dtype.kind not in "biuf":
        raise ImageError(f"{entry.name} is an array of {dtype}: expected numbers")
    claimed = file.tell() + prod(shape) * dtype.itemsize
    if any(side < 1 for side in shape) or claimed > entry.size:
        raise ImageError(
            f"{entry.name} has {entry.size} bytes: its shape {shape} of {dtype} takes {claimed}. "
            "It ends early, or has no pixels"
        )
    return _Header(shape, by_column, dtype, file.tell())


def _read_part(entry: Entry, offset: int, size: int, *, cache: Cache) -> bytes:
    if entry.member is not None:
        return _read_member(entry, cache)[offset : offset + size]
    try:
        with storage.Reader(entry.uri, fingerprint=entry.fingerprint) as file:
            return file.read_at(size, offset)
    except BROKEN as error:
        raise InputError(f"{entry.name} cannot be read: {error}") from None


@functools.lru_cache(maxsize=2)  # an array of images and one of labels
def _read_member(entry: Entry, cache: Cache) -> bytes:
    if entry.size > _MAX_MEMBER_BYTES:
        raise InputError(
            f"{entry.name} has {entry.size} bytes: expected at most {_MAX_MEMBER_BYTES} for an "
            "array in an archive. Unpack it first"
        )
    return entry.read(cache)
