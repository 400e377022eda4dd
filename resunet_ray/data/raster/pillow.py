"""PNG, JPEG, BMP, WebP and JPEG 2000, decoded whole by Pillow."""

import io
from typing import IO

import cv2
import numpy as np
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from resunet_ray.data.raster.scene import Plane, Scene, Window
from resunet_ray.data.raster.turning import turn, turned_size
from resunet_ray.errors import ImageError

FORMATS: dict[str, tuple[tuple[str, ...], tuple[bytes, ...]]] = {
    "PNG": ((".png",), (b"\x89PNG",)),
    "JPEG": ((".jpg", ".jpeg"), (b"\xff\xd8\xff",)),
    "BMP": ((".bmp",), (b"BM",)),
    "WEBP": ((".webp",), (b"RIFF",)),
    "JPEG2000": ((".jp2", ".j2k"), (b"\x00\x00\x00\x0cjP", b"\xff\x4f\xff\x51")),
}
"""Suffixes and first bytes of each format, by Pillow's name for it."""

_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "I;16", "I;16B", "I;16L"}
ORIENTATION_TAG = 0x0112  # EXIF 2.32, 4.6.4
_TEXT_BYTES = 2**26  # of a colour profile or a comment of a PNG, which Pillow expands

PngImagePlugin.MAX_TEXT_CHUNK = _TEXT_BYTES


class PillowRaster:
    """One image, decoded as a whole."""

    def __init__(self, file: IO[bytes], *, max_pixels: int) -> None:
        """Decode an image.

        Args:
            file: the open file.
            max_pixels: a header that claims more is refused before any pixel is allocated.

        Raises:
            ImageError: it claims more pixels, or may be read in more than one way: several pages,
                transparency, CMYK.
        """
        self._content = file.read()
        self._image = open_checked(self._content, max_pixels=max_pixels)
        self.format = str(self._image.format)
        self._orientation = read_orientation(self._image)
        self._values: np.ndarray | None = None
        width, height = self._image.size
        self._deep = self._image.mode in ("RGB", "RGBA") and is_deep(self._content)
        self.scenes = [
            Scene(
                levels=[turned_size((height, width), self._orientation)],
                channels=[None],
                dtype=np.dtype(np.uint16 if self._deep or "16" in self._image.mode else np.uint8),
                rgb=self._image.mode not in ("1", "L", "LA", "I;16", "I;16B", "I;16L"),
            )
        ]

    def read(self, _plane: Plane, _level: int, window: Window) -> np.ndarray:
        """Read a window; see `Raster`."""
        if self._values is None:
            self._values = turn(_drop_opaque(self._decode()), self._orientation)
        top, left, height, width = window
        return self._values[top : top + height, left : left + width]

    def close(self) -> None:
        """Close the file."""
        self._image.close()

    def _decode(self) -> np.ndarray:
        image = self._image
        image.load()  # raises if the file ends early; OpenCV would fill the rest with grey
        if self._deep:  # Pillow would cut 16-bit colour to 8 bit
            # BGR, ignoring the EXIF orientation.
            deep = cv2.imdecode(np.frombuffer(self._content, np.uint8), cv2.IMREAD_UNCHANGED)
            if deep is None:
                raise ValueError("its 16-bit colour cannot be decoded")
            return deep[..., [2, 1, 0, 3][: deep.shape[2]]]
        if image.mode in ("P", "PA") or "transparency" in image.info:
            return np.asarray(image.convert("RGBA"))
        return np.asarray(image.convert("L") if image.mode == "1" else image)


def open_checked(content: bytes, *, max_pixels: int) -> Image.Image:
    """Open an image and check its header.

    Raises:
        ImageError: for the reasons of `PillowRaster`.
    """
    Image.MAX_IMAGE_PIXELS = None  # `max_pixels` applies
    try:
        image = Image.open(io.BytesIO(content), formats=tuple(FORMATS))
    except UnidentifiedImageError:
        raise ImageError("it is not an image, or its header is damaged") from None
    _check_header(image, max_pixels=max_pixels)
    return image


def _drop_opaque(array: np.ndarray) -> np.ndarray:
    """Return the array without its alpha channel, if it has one, which must be opaque."""
    if array.ndim == 2:
        return array
    if array.shape[2] in (2, 4):
        if (array[..., -1] != np.iinfo(array.dtype).max).any():
            raise ImageError("it is partly transparent. Save it without transparency")
        array = array[..., :-1]
    return array[..., 0] if array.shape[2] == 1 else array


def _check_header(image: Image.Image, *, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(f"it claims {height} x {width} pixels: expected at most {max_pixels}")
    pages = getattr(image, "n_frames", 1)
    if pages != 1 and image.format != "MPO":  # a JPEG with further pictures after the main one
        raise ImageError(
            f"it has {pages} pages: expected one. Save the page you need as a separate file"
        )
    if image.mode not in _MODES:
        raise ImageError(
            f"it has colour mode {image.mode}: expected grey, RGB, RGBA or a palette, 8 or 16 bit"
        )


def read_orientation(image: Image.Image) -> int:
    """Decode an image, and return how it is to be turned: 1 to 8."""
    image.load()  # as `getexif` does for some formats, whose errors are not about EXIF
    try:
        return int(image.getexif().get(ORIENTATION_TAG, 1))
    except Exception:  # noqa: BLE001 (damaged EXIF does not touch the pixels)
        return 1


def is_deep(content: bytes) -> bool:
    """Whether it is a PNG with 16 bits a sample."""
    # Signature 8, chunk length 4, "IHDR" 4, width 4, height 4, bit depth 1 (PNG 3, 11.2.1).
    return content.startswith(b"\x89PNG") and content[24] == 16
