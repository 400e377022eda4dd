"""The values that a mask or label file stores, not the colours in which it shows them.

How a viewer draws a value is left aside: ImageJ's inverting lookup table, TIFF's WhiteIsZero, the
colours of a palette. Colours count only where nothing else tells what is meant: a black-and-white
palette, where white is a nucleus, and instances that are painted in RGB.
"""

import io

import numpy as np
import tifffile
from PIL import Image

from resunet_ray.data.raster.opening import TIFF_STARTS, naming
from resunet_ray.data.raster.pillow import (
    ORIENTATION_TAG,
    is_opaque,
    open_checked,
    read_orientation,
    read_pixels,
)
from resunet_ray.data.raster.tiff_checks import (
    JPEG,
    MINISBLACK,
    MINISWHITE,
    PALETTE,
    RGB,
    YCBCR,
    breaks_off,
    check_page,
)
from resunet_ray.data.raster.tiff_metadata import read_palette
from resunet_ray.data.raster.turning import turn
from resunet_ray.errors import ImageError

ADVICE = "Save it as a grey image with one number for each pixel, 0 for background"

_ALPHA = 1, 2  # kinds of extra samples that are transparency (TIFF 6.0, section 18)


def read_values(content: bytes, *, name: str, max_pixels: int) -> np.ndarray:
    """Return what each pixel stores, upright: values (h, w), or true colours (h, w, 3).

    Raises:
        ImageError: the bytes are not an image of a known format, are damaged or end early, or hold
            more than one value or colour for each pixel: pages, channels, transparency.
    """
    if not content:
        raise ImageError(f"{name} is empty: 0 bytes")
    with naming(name, done="read"):
        if content.startswith(TIFF_STARTS):
            return _decode_tiff(content, name=name, max_pixels=max_pixels)
        image = open_checked(content, max_pixels=max_pixels)
        return turn(_read_pillow(image, content, name=name), read_orientation(image, content))


def _read_pillow(image: Image.Image, content: bytes, *, name: str) -> np.ndarray:
    values, alpha = read_pixels(image, content)
    if image.mode == "P":
        palette = np.asarray(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
        values = _from_palette(values, palette, name=name)
    return _merge(values, alpha, name=name)


def _decode_tiff(content: bytes, *, name: str, max_pixels: int) -> np.ndarray:
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        _check_tiff(file, name=name, max_pixels=max_pixels)
        stored = _read_tiff(file, name=name)
        return turn(stored, file.pages.first.tags.valueof(ORIENTATION_TAG, 1))


def _check_tiff(file: tifffile.TiffFile, *, name: str, max_pixels: int) -> None:
    page = file.pages.first
    height, width = page.imagelength, page.imagewidth
    if not 0 < height * width <= max_pixels:
        raise ImageError(f"it claims {height} x {width} pixels: expected 1 to {max_pixels}")
    # ImageJ writes a large stack as one page, whose description says how many planes follow.
    planes = max(len(file.pages), file.series[0].size // page.size) * page.imagedepth
    if planes != 1 or breaks_off(file):
        found = f"{planes} pages" if planes != 1 else "more pages, which are missing"
        raise ImageError(
            f"{name} has {found}: expected one. Save the page you need as a separate file"
        )
    is_colour = page.photometric == RGB or (page.photometric == YCBCR and page.compression in JPEG)
    if not is_colour and page.photometric not in (MINISWHITE, MINISBLACK, PALETTE):
        colours = getattr(page.photometric, "name", page.photometric)
        raise ImageError(f"{name} stores colours as {colours}: expected values. {ADVICE}")
    extra = page.samplesperpixel - (3 if is_colour else 1)
    if extra and not (extra == 1 and page.extrasamples[:1] and page.extrasamples[0] in _ALPHA):
        raise ImageError(f"{name} has {page.samplesperpixel} channels: expected one. {ADVICE}")
    check_page(page, file_bytes=file.filehandle.size)


def _read_tiff(file: tifffile.TiffFile, *, name: str) -> np.ndarray:
    page = file.pages.first
    values = page.asarray()
    values = values.astype(values.dtype.str[1:])  # in this machine's byte order
    if page.axes.startswith("S"):
        values = np.moveaxis(values, 0, -1)
    alpha: np.ndarray | None = None
    if page.extrasamples:
        values, alpha = values[..., :-1], values[..., -1]
        values = values[..., 0] if values.shape[2] == 1 else values
    if page.photometric == PALETTE and not file.is_imagej:
        values = _from_palette(values, read_palette(page), name=name)
    # In one bit, white is a nucleus, as in the palette; but tifffile stores every True as 1 and
    # calls it black.
    is_inverse = values.dtype == bool and page.photometric == MINISWHITE
    if is_inverse and not page.software.startswith("tifffile"):
        values = ~values
    return _merge(values, alpha, name=name)


def _from_palette(index: np.ndarray, palette: np.ndarray, *, name: str) -> np.ndarray:
    """Return the indices, or the greys of a grey palette.

    Programs that optimise a grey image give its greys any order. But ImageJ writes a way of looking
    at the indices as 256 greys that rise or fall.

    Args:
        index: the stored indices.
        palette: (n, 3), the colour of each index.
        name: the file's name in errors.
    """
    if index.max(initial=0) >= len(palette):
        raise ValueError(f"it has the colour {index.max()} of a palette of {len(palette)}")
    colours = palette[np.unique(index)]
    if (palette == palette[:, :1]).all():
        steps = np.diff(palette[:, 0].astype(np.int32))
        is_ramp = len(palette) == 256 and ((steps >= 0).all() or (steps <= 0).all())
        is_kept = len(np.unique(colours[:, 0])) == len(colours)
        is_binary = len(np.unique(palette[:, 0])) == 2
        return palette[:, 0][index] if is_binary or (is_kept and not is_ramp) else index
    if palette[0].any() and not colours.any(axis=1).all():
        raise ImageError(
            f"{name} has a palette in which {tuple(map(int, palette[0]))} is 0 and black is "
            f"another number: expected black for 0. {ADVICE}"
        )
    return index


def _merge(channels: np.ndarray, alpha: np.ndarray | None, *, name: str) -> np.ndarray:
    """Drop transparency that says no more than the values do, and channels that are equal."""
    if channels.ndim == 3 and (channels == channels[..., :1]).all():
        channels = channels[..., 0]
    if channels.ndim == 3 and channels.dtype.kind != "u":
        raise ImageError(f"{name} has 3 channels of {channels.dtype}: expected one. {ADVICE}")
    if alpha is None:
        return channels
    opaque, clear = is_opaque(alpha), alpha == 0
    background = channels == 0 if channels.ndim == 2 else (channels == 0).all(axis=-1)
    if not (opaque.all() or ((opaque | clear).all() and (clear == background).all())):
        raise ImageError(
            f"{name} is transparent in {np.mean(~opaque):.0%} of its pixels, and those are not "
            f"its background: expected an opaque image. {ADVICE}; if the transparency is the "
            "mask, save that"
        )
    return channels
