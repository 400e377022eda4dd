"""Labels."""

import io
import struct

import cv2
import numpy as np
from jaxtyping import Int32
from PIL import Image, UnidentifiedImageError

from resunet_ray.data.images import encode_png
from resunet_ray.errors import ImageError

MAX_PIXELS = 2**28
FORMATS: dict[str, tuple[tuple[str, ...], tuple[bytes, ...]]] = {
    "PNG": ((".png",), (b"\x89PNG",)),
    "JPEG": ((".jpg", ".jpeg"), (b"\xff\xd8\xff",)),
    "TIFF": ((".tif", ".tiff"), (b"II", b"MM")),
    "BMP": ((".bmp",), (b"BM",)),
    "WEBP": ((".webp",), (b"RIFF",)),
    "JPEG2000": ((".jp2", ".j2k"), (b"\x00\x00\x00\x0cjP", b"\xff\x4f\xff\x51")),
}
"""Suffixes and first bytes of each format, by Pillow's name for it."""
SUFFIXES = tuple(suffix for suffixes, _ in FORMATS.values() for suffix in suffixes)

_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    TypeError,
    LookupError,
    ArithmeticError,
    struct.error,
    cv2.error,
)
_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "I;16", "I;16B", "I;16L"}
_ORIENTATION_TAG = 0x0112  # EXIF 2.32, 4.6.4
_BITS_PER_SAMPLE_TAG = 258  # TIFF 6.0, section 8


def decode_labels(
    content: bytes, *, name: str, max_pixels: int = MAX_PIXELS
) -> Int32[np.ndarray, "h w"]:
    """Decode a one-channel image to its stored values: a mask, or instance numbers.

    Three equal colour channels count as one; for a palette the values are its indices.

    Raises:
        ImageError: for the reasons of `decode_image`, or if the channels differ.
    """
    array = _decode(content, name=name, max_pixels=max_pixels, expand_palette=False)
    if array.ndim == 3:
        array = array[..., :3] if array.shape[2] in (3, 4) else array[..., :1]
        if (array != array[..., :1]).any():
            raise ImageError(f"{name} is a colour image: expected one channel, 0 for background")
        array = array[..., 0]
    return array.astype(np.int32)


def encode_labels(labels: Int32[np.ndarray, "h w"], *, name: str) -> bytes:
    """Encode a label image as 16-bit PNG, not deflated because Parquet compresses it.

    Raises:
        ImageError: it has more than 65,535 instances.
    """
    if labels.max(initial=0) > np.iinfo(np.uint16).max:
        raise ImageError(f"{name} has {labels.max()} instances: expected at most 65535")
    return encode_png(labels.astype(np.uint16), deflate=False)


def _decode(
    content: bytes, *, name: str, max_pixels: int, expand_palette: bool = True
) -> np.ndarray:
    if not content:
        raise ImageError(f"{name} is empty: 0 bytes")
    Image.MAX_IMAGE_PIXELS = None  # `_check_header` applies our own limit
    try:
        with Image.open(io.BytesIO(content), formats=tuple(FORMATS)) as image:
            _check_header(image, name=name, max_pixels=max_pixels)
            array = _pixels(image, content, expand_palette=expand_palette)
            orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except UnidentifiedImageError:
        raise ImageError(
            f"{name} is not an image: expected {', '.join(FORMATS)}, found bytes {content[:8]!r}"
        ) from None
    except _BROKEN as error:  # raised by Pillow's decoders on damaged bytes
        raise ImageError(f"{name} is damaged: {error}") from None
    return _orient(array, orientation)


def _check_header(image: Image.Image, *, name: str, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(f"{name} claims {height} x {width} pixels: expected at most {max_pixels}")
    pages = getattr(image, "n_frames", 1)
    if pages != 1:
        raise ImageError(
            f"{name} has {pages} pages: expected one. Save the page you need as a separate file"
        )
    if image.mode not in _MODES:
        raise ImageError(
            f"{name} has colour mode {image.mode}: "
            "expected grey, RGB, RGBA or a palette, 8 or 16 bit"
        )


def _pixels(image: Image.Image, content: bytes, *, expand_palette: bool) -> np.ndarray:
    image.load()  # raises if the file ends early; OpenCV would fill the rest with grey
    # Pillow would cut 16-bit colour to 8 bit.
    if image.mode in ("RGB", "RGBA") and _bits(image, content) == 16:
        # BGR, ignoring the EXIF orientation.
        deep = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
        if deep is None:
            raise ValueError("its 16-bit colour cannot be decoded")
        return deep[..., [2, 1, 0, 3][: deep.shape[2]]]
    if expand_palette and (image.mode in ("P", "PA") or "transparency" in image.info):
        return np.asarray(image.convert("RGBA"))
    if image.mode == "1":
        return np.asarray(image.convert("L"))
    return np.asarray(image)


def _bits(image: Image.Image, content: bytes) -> int:
    if image.format == "PNG":
        return _png_bit_depth(content)
    tags = getattr(image, "tag_v2", None)
    return max(tags.get(_BITS_PER_SAMPLE_TAG, (8,))) if tags is not None else 8


def _png_bit_depth(content: bytes) -> int:
    return content[24]  # signature 8, chunk length 4, "IHDR" 4, width 4, height 4 (PNG 3, 11.2.1)


def _orient(array: np.ndarray, orientation: int) -> np.ndarray:
    """Turn the array upright; orientations 5 to 8 also swap height and width."""
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    return array
