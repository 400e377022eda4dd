"""Bytes to image and back: RGB `uint8` from whatever a microscope's software writes."""

import io

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from resunet_ray.data.raster.opening import TIFF_STARTS, naming, open_image
from resunet_ray.data.raster.pillow import FORMATS, ORIENTATION_TAG
from resunet_ray.data.raster.planes import EVERYTHING, Selection, list_planes, name_plane
from resunet_ray.data.raster.scene import PixelSize, Plane, Raster, Scene
from resunet_ray.errors import ImageError
from resunet_ray.intensity import Range, guess_range, measure_counts, scale_counts

MAX_PIXELS = 2**28


def decode_image(
    content: bytes,
    *,
    name: str,
    max_pixels: int = MAX_PIXELS,
    selection: Selection = EVERYTHING,
    stored: bool = False,
) -> UInt8[np.ndarray, "h w 3"]:
    """Decode a file that holds one image to RGB, upright; see `decode_sized`."""
    image, _ = decode_sized(
        content, name=name, max_pixels=max_pixels, selection=selection, stored=stored
    )
    return image


def decode_sized(
    content: bytes,
    *,
    name: str,
    max_pixels: int = MAX_PIXELS,
    selection: Selection = EVERYTHING,
    stored: bool = False,
) -> tuple[UInt8[np.ndarray, "h w 3"], PixelSize | None]:
    """Decode a file that holds one image to RGB, upright, and say how large its pixels are.

    Args:
        content: the file's bytes.
        name: the image's name in errors.
        max_pixels: a header that claims more is refused before any pixel is allocated.
        selection: which channel and focal plane.
        stored: see `to_uint8`.

    Raises:
        ImageError: the bytes are not an image of a known format, end early, hold several images, or
            can be read in more than one way: channels without a name, transparency, CMYK.
    """
    with naming(name, done="read"):
        raster = selection.apply(open_image(io.BytesIO(content), max_pixels=max_pixels))
        plane = require_one(raster, channel=selection.channel)
        return read_plane(raster, plane, stored=stored), raster.scenes[plane.scene].mpp


def require_one(raster: Raster, *, channel: str | None) -> Plane:
    """Return the only plane of a file, in the channel that shows nuclei (see `list_planes`).

    Raises:
        ImageError: it has several, or it is not clear which channel that is.
    """
    planes = list_planes(raster.scenes, channel=channel)
    if len(planes) != 1:
        raise ImageError(
            f"it has {len(planes)} planes, named {name_plane(planes[0], raster.scenes)} to "
            f"{name_plane(planes[-1], raster.scenes)} by scene, time and focal plane: expected "
            "one. Pass --z max, mean or a number to take one image of all focal planes, or "
            "save the planes you need as separate files"
        )
    return planes[0]


def read_plane(raster: Raster, plane: Plane, *, stored: bool = False) -> UInt8[np.ndarray, "h w 3"]:
    """Read a whole plane as RGB; `stored` as in `to_uint8`."""
    scene = raster.scenes[plane.scene]
    values = raster.read(plane, 0, (0, 0, *scene.levels[0]))
    return to_rgb(values, range_of(values, scene, stored=stored))


def range_of(values: np.ndarray, scene: Scene, *, stored: bool) -> Range | None:
    """Return the counts that become black and white; None for 8 bits, which stay as they are.

    Args:
        values: a whole plane, or what stands for it.
        scene: it belongs to.
        stored: guess the number of bits from the largest value, as bundles do that see intensities
            as stored. Otherwise two percentiles become black and white, which hot pixels and an
            offset do not move. Colours of 16 bits are read by the number of bits that holds all
            but hot pixels. More bits, signed and floating-point numbers have no number of bits.
    """
    if values.dtype == np.uint8:
        return None
    if values.dtype == np.uint16 and (stored or scene.rgb):
        return guess_range(values, hot=not stored)
    return measure_counts(values)


def to_rgb(values: np.ndarray, levels: Range | None) -> UInt8[np.ndarray, "h w 3"]:
    """Return values as RGB of 8 bits; grey is repeated over the three channels."""
    array = values if levels is None else scale_counts(values, levels)
    if array.ndim == len("yx") or array.shape[2] == 1:
        return cv2.cvtColor(np.ascontiguousarray(array), cv2.COLOR_GRAY2RGB)
    return np.ascontiguousarray(array)


def encode_png(array: np.ndarray, *, deflate: bool = True) -> bytes:
    """Encode a uint8 or uint16 array, (h, w) or RGB (h, w, 3), as PNG.

    Args:
        array: the pixels.
        deflate: false leaves compression to the table that holds the PNG. Pixels compressed by
            Zstandard decode four times as fast as deflated ones and take a third more space.
    """
    if array.ndim == 3:
        array = cv2.cvtColor(array, cv2.COLOR_RGB2BGR)
    plain = [cv2.IMWRITE_PNG_COMPRESSION, 0, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP]
    done, buffer = cv2.imencode(".png", array, [] if deflate else plain)
    assert done, f"OpenCV could not encode {array.dtype} {array.shape} as PNG"
    return buffer.tobytes()


def decode_stored(content: bytes) -> np.ndarray:
    """Decode what `prepare` stored, RGB or one channel; `prepare` has already checked it."""
    array = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    assert array is not None, "a stored image does not decode"
    if array.ndim == 3:
        array = cv2.cvtColor(array, cv2.COLOR_BGR2RGB)
    return np.asarray(array)


def is_stored_form(content: bytes) -> bool:
    """Whether the bytes are stored unchanged, as only an upright RGB JPEG is.

    A lossless copy of it would be many times larger.
    """
    if not content.startswith(b"\xff\xd8\xff"):
        return False
    with Image.open(io.BytesIO(content)) as image:
        return (
            image.format == "JPEG"
            and image.mode == "RGB"
            and image.getexif().get(ORIENTATION_TAG, 1) == 1
        )


def name_format(content: bytes) -> str:
    """Return the format of an image by its first bytes; it must be one that could be decoded."""
    known = {name: starts for name, (_, starts) in FORMATS.items()} | {"TIFF": TIFF_STARTS}
    return next(name for name, starts in known.items() if content.startswith(starts))
