"""PNG, JPEG, BMP, GIF, WebP and JPEG 2000, decoded whole by Pillow."""

import io
import struct
from typing import IO

import imagecodecs
import numpy as np
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from resunet_ray.data.raster.scene import Plane, Scene, Window
from resunet_ray.data.raster.turning import turn
from resunet_ray.errors import ImageError

FORMATS: dict[str, tuple[tuple[str, ...], tuple[bytes, ...]]] = {
    "PNG": ((".png",), (b"\x89PNG",)),
    "JPEG": ((".jpg", ".jpeg"), (b"\xff\xd8\xff",)),
    "BMP": ((".bmp",), (b"BM",)),
    "GIF": ((".gif",), (b"GIF8",)),
    "WEBP": ((".webp",), (b"RIFF",)),
    "JPEG2000": ((".jp2", ".j2k"), (b"\x00\x00\x00\x0cjP", b"\xff\x4f\xff\x51")),
}
"""Suffixes and first bytes of each format, by Pillow's name for it."""

_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "I;16", "I;16B", "I;16L"}
ORIENTATION_TAG = 0x0112  # EXIF 2.32, 4.6.4
_BYTE, _DEEP = 8, 16  # bits a sample
_PALETTE = 3  # colour type (PNG 3, 11.2.1)
_WITH_ORIENTATION = b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp"
"""Where a PNG may say how it is to be turned: a chunk, and keywords of text (PNG 3, 11.3)."""
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
        content = file.read()
        self._image = open_checked(content, max_pixels=max_pixels)
        self.format = str(self._image.format)
        orientation = read_orientation(self._image, content)
        self._values = turn(_show(self._image, content), orientation)
        height, width = self._values.shape[:2]
        self.scenes = [
            Scene(
                levels=[(height, width)],
                channels=[None],
                dtype=self._values.dtype,
                rgb=self._values.ndim > len("yx"),
            )
        ]

    def read(self, _plane: Plane, _level: int, window: Window) -> np.ndarray:
        """Read a window; see `Raster`."""
        top, left, height, width = window
        return self._values[top : top + height, left : left + width]

    def close(self) -> None:
        """Close the file."""
        self._image.close()


def open_checked(content: bytes, *, max_pixels: int) -> Image.Image:
    """Open an image and check its header.

    Raises:
        ImageError: for the reasons of `PillowRaster`.
    """
    Image.MAX_IMAGE_PIXELS = None  # `max_pixels` applies
    try:
        image = Image.open(io.BytesIO(content), formats=tuple(FORMATS))
    except UnidentifiedImageError:
        known = any(content.startswith(starts) for _, starts in FORMATS.values())
        damaged = (
            "its header is damaged, or of a kind that Pillow does not know, as JPEG of 12 bits"
        )
        raise ImageError(damaged if known else "it is not an image") from None
    _check_header(image, max_pixels=max_pixels)
    return image


def read_pixels(image: Image.Image, content: bytes) -> tuple[np.ndarray, np.ndarray | None]:
    """Return what each pixel stores, not turned: values (h, w) or colours (h, w, 3), and opacity.

    Values of a palette are its indices. Opacity is None if there is none; True and its largest
    value are opaque, 0 is clear.

    Raises:
        ImageError: it has other channels.
    """
    values = _decode(image, content)
    if values is None:
        image.load()  # raises if the file ends early
        values = np.asarray(image)
    if values.ndim > len("yx") and values.shape[2] in (2, 4):
        values, alpha = values[..., :-1], values[..., -1]
        return (values[..., 0] if values.shape[2] == 1 else values), alpha
    if values.ndim > len("yx") and values.shape[2] != len("rgb"):
        raise ImageError(f"it has {values.shape[2]} channels: expected grey or RGB")
    clear = image.info.get("transparency")
    if clear is None:
        return values, None
    if isinstance(clear, bytes):  # one for each colour of a palette; opaque if it is missing
        return values, np.frombuffer(clear.ljust(256, b"\xff"), np.uint8)[values]
    differs = values != np.asarray(clear)
    return values, differs if values.ndim == len("yx") else differs.any(axis=-1)


def _decode(image: Image.Image, content: bytes) -> np.ndarray | None:
    """Decode what Pillow would cut to 8 bits, or decodes more slowly; None: that is for Pillow."""
    if image.format == "PNG":
        # Signature 8, chunk length 4, "IHDR" 4, width 4, height 4, bit depth 1, colour type 1
        # (PNG 3, 11.2.1).
        depth, colour_type = content[24:26]
        if depth < _BYTE or colour_type == _PALETTE:
            return None
        try:
            return np.asarray(imagecodecs.png_decode(content))
        except imagecodecs.PngError:
            if depth == _DEEP:
                raise
            return None  # nothing but its end may be missing
    if image.format == "JPEG2000":
        # Marker 2, length 2, capabilities 2, sizes and offsets 32, number of components 2, then 3
        # bytes of each, of which the first is its depth (ITU-T T.800, A.5.1).
        start = content.find(b"\xff\x4f\xff\x51") + 2
        (count,) = struct.unpack_from(">H", content, start + 38)
        depths = content[start + 40 : start + 40 + 3 * count : 3]  # less 1, and 128 for signed
        if any(depth % 128 >= _BYTE for depth in depths):
            return np.asarray(imagecodecs.jpeg2k_decode(content))
    return None


def _show(image: Image.Image, content: bytes) -> np.ndarray:
    """Return the image, which must be opaque, as grey or RGB."""
    values, alpha = read_pixels(image, content)
    if alpha is not None and not is_opaque(alpha).all():
        raise ImageError("it is partly transparent. Save it without transparency")
    if image.mode in ("P", "PA"):
        return np.asarray(image.convert("RGB"))
    return values * np.uint8(255) if values.dtype == bool else values


def is_opaque(alpha: np.ndarray) -> np.ndarray:
    """Return which pixels are opaque, of an image's opacity."""
    return np.asarray(alpha == (1 if alpha.dtype == bool else np.iinfo(alpha.dtype).max))


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


def read_orientation(image: Image.Image, content: bytes) -> int:
    """Return how an image is to be turned: 1 to 8."""
    if image.format == "PNG" and not any(name in content for name in _WITH_ORIENTATION):
        return 1  # without decoding, as these may follow the pixels
    image.load()  # as `getexif` does for some formats, whose errors are not about EXIF
    try:
        return int(image.getexif().get(ORIENTATION_TAG, 1))
    except Exception:  # noqa: BLE001 (damaged EXIF does not touch the pixels)
        return 1
