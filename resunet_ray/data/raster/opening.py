"""Opening a file as a raster, by its content; an error of any library becomes one that names it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import openslide

from resunet_ray.data.raster import dicom, pillow
from resunet_ray.data.raster.blocks import BlockRaster
from resunet_ray.data.raster.libraries import as_image_error
from resunet_ray.data.raster.ome_zarr_metadata import is_zarr_name
from resunet_ray.data.raster.openslide import OpenSlideRaster
from resunet_ray.data.raster.pillow import PillowRaster
from resunet_ray.data.raster.scene import Plane, Raster, Scene
from resunet_ray.data.raster.tiff import TiffRaster
from resunet_ray.errors import ImageError

TIFF_SUFFIXES = (".tif", ".tiff", ".btf", ".tf8", ".qptiff", ".flex", ".lsm", ".stk")
"""Files with these suffixes are opened before they are planned: they may be slides or stacks."""
SUFFIXES = (*(suffix for names, _ in pillow.FORMATS.values() for suffix in names), *TIFF_SUFFIXES)
"""Files with these suffixes are images."""

TIFF_STARTS = (b"II", b"MM")
_MAX_SIDE = 2**21  # pixels; a header that claims more is damaged


def open_image(file: IO[bytes], *, max_pixels: int) -> Raster:
    """Open an image or a stack of them, to be read as a whole.

    Args:
        file: the open file, of which a TIFF is read only where it has to be.
        max_pixels: larger planes are refused, before any pixel is allocated.

    Raises:
        ImageError: it is none, is damaged, or may be read in more than one way.
    """
    raster = open_file(file, max_pixels=max_pixels)
    for scene in raster.scenes:
        require_pixels(scene, most=max_pixels)
    return raster


def open_file(file: IO[bytes], *, max_pixels: int) -> Raster:
    """Open a file by its content, whatever its name says; see `open_image`.

    A TIFF may be larger than `max_pixels`: it can be read in parts.
    """
    start = file.read(8)
    file.seek(0)
    if not start:
        raise ImageError("it is empty: 0 bytes")
    if start.startswith(TIFF_STARTS):
        return TiffRaster(file)
    if any(start.startswith(known) for _, starts in pillow.FORMATS.values() for known in starts):
        return PillowRaster(file, max_pixels=max_pixels)
    known = ", ".join((*pillow.FORMATS, "TIFF"))
    raise ImageError(f"it is not an image: expected {known}, found bytes {start!r}")


def require_pixels(scene: Scene, *, most: int) -> None:
    """Refuse a scene whose planes are larger than fits into memory.

    Raises:
        ImageError: they are.
    """
    height, width = scene.levels[0]
    if height * width > most:
        raise ImageError(f"it claims {height} x {width} pixels: expected at most {most}")


def open_slide(path: str) -> Raster:
    """Open a slide: a file on this machine, of DICOM any one of a series, or OME-Zarr anywhere.

    Raises:
        ImageError: no library can read it, or its header makes no sense.
    """
    raster = _open_slide(path)
    for number, scene in enumerate(raster.scenes):
        height, width = scene.levels[0]
        if not (0 < height <= _MAX_SIDE and 0 < width <= _MAX_SIDE):
            raise ImageError(
                f"it claims {height} x {width} pixels: expected 1 to {_MAX_SIDE} per side"
            )
        # A header alone is no slide.
        raster.read(Plane(scene=number), len(scene.levels) - 1, (0, 0, 1, 1))
    return raster


def _open_slide(path: str) -> Raster:
    if is_zarr_name(path):
        from resunet_ray.data.raster.ome_zarr import ZarrRaster  # not above: it imports zarr

        image = ZarrRaster(path)
        return BlockRaster(image, chunks=image.chunks)
    if path.lower().endswith(dicom.SUFFIX):
        return dicom.DicomRaster(path)
    # OpenSlide takes any tiled TIFF for a pyramid of 8-bit RGB pages: it does not support 16 bits
    # or OME's planes and levels.
    kind = openslide.OpenSlide.detect_format(path)
    return TiffRaster(path) if kind in (None, "generic-tiff") else OpenSlideRaster(path)


@contextmanager
def naming(name: str, *, done: str) -> Iterator[None]:
    """Turn any error of a library into an ImageError that names the file.

    Args:
        name: the file's name in errors.
        done: what could not be done: opened, read.
    """
    try:
        with as_image_error():
            yield
    except ImageError as error:
        if str(error).startswith(name):
            raise
        raise ImageError(f"{name} cannot be {done}: {error}") from None
