"""Files that may hold many planes, each an image of its own, opened wherever they are."""

import functools
import io
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace

import numpy as np
from jaxtyping import UInt8

from resunet_ray import storage
from resunet_ray.data.images import read_plane, require_one, to_rgb
from resunet_ray.data.ranges import SharedRange, find_alike, share_range
from resunet_ray.data.raster.lif import LifRaster
from resunet_ray.data.raster.nd2 import Nd2Raster
from resunet_ray.data.raster.ome_zarr_metadata import SUFFIX as ZARR_SUFFIX
from resunet_ray.data.raster.ome_zarr_metadata import is_zarr_name
from resunet_ray.data.raster.opening import TIFF_SUFFIXES, naming, open_file, require_pixels
from resunet_ray.data.raster.planes import Selection, choose_channel
from resunet_ray.data.raster.scene import Plane, Raster
from resunet_ray.intensity import Range

_STAGED: dict[str, Callable[[str], Raster]] = {".lif": LifRaster, ".nd2": Nd2Raster}
"""Their libraries need a path."""
STACK_SUFFIXES = (*_STAGED, ZARR_SUFFIX)
"""Files with these suffixes are opened before they are planned, and always read plane by plane."""

_OPEN = 4  # stacks that a process keeps open
_RANGES = 64  # that it remembers
_measuring = threading.Lock()


def is_stack(uri: str) -> bool:
    """Whether the name of a file is that of a stack, even if it has only one plane."""
    return uri.lower().endswith(tuple(_STAGED)) or is_zarr_name(uri)


def name_stack(uri: str) -> str:
    """Return the format of a file whose planes are images of their own, by its name."""
    if is_zarr_name(uri):
        return "OME-ZARR"
    return {".lif": "LIF", ".nd2": "ND2"}.get(uri[uri.rfind(".") :].lower(), "TIFF")


def is_opened_first(uri: str) -> bool:
    """Whether a file has to be opened to know which images it holds."""
    return uri.lower().endswith(TIFF_SUFFIXES) or is_stack(uri)


@contextmanager
def open_stack(
    uri: str, *, fingerprint: str | None, cache: storage.Cache, max_pixels: int
) -> Iterator[Raster]:
    """Open a file of planes.

    Args:
        uri: the file. Its suffix says what it is.
        fingerprint: of the file that was listed; another is not read.
        cache: where a file is staged whose library needs a path.
        max_pixels: an image that cannot be read in parts is refused if it is larger.

    Raises:
        ImageError: it is damaged, or may be read in more than one way.
        ChangedError: it was replaced.
        ConfigError: the library that reads it is not installed.
    """
    suffix = uri[uri.rfind(".") :].lower()
    if suffix in _STAGED:
        with (
            cache.stage(uri, fingerprint=fingerprint) as path,
            naming(uri, done="opened"),
            closing(_STAGED[suffix](path)) as raster,
        ):
            yield raster
        return
    with naming(uri, done="opened"):
        yield _open(uri, fingerprint, max_pixels)


def read_only_plane(
    uri: str,
    *,
    fingerprint: str | None,
    cache: storage.Cache,
    max_pixels: int,
    selection: Selection,
) -> UInt8[np.ndarray, "h w 3"]:
    """Read a file that holds one image as RGB; arguments as in `read_from_stack`.

    Raises:
        ImageError: it is damaged or too large, holds several images, or it is not clear which
            channel shows nuclei.
        ChangedError: it was replaced.
    """
    with open_stack(uri, fingerprint=fingerprint, cache=cache, max_pixels=max_pixels) as opened:
        raster = selection.apply(opened)
        with naming(uri, done="read"):
            plane = require_one(raster, channel=selection.channel)
            require_pixels(raster.scenes[plane.scene], most=max_pixels)
            return read_plane(raster, plane)


def read_from_stack(
    uri: str,
    plane: Plane,
    *,
    fingerprint: str | None,
    cache: storage.Cache,
    max_pixels: int,
    selection: Selection,
    stored: bool,
    shared: bool = False,
) -> tuple[UInt8[np.ndarray, "h w 3"], Range | None]:
    """Read one plane as RGB. Only its own bytes are read, once the file's headers have been.

    Args:
        uri: the file.
        plane: which one; its channel does not count.
        fingerprint: as in `open_stack`.
        cache: as in `open_stack`.
        max_pixels: as in `open_stack`.
        selection: which channel and focal plane.
        stored: how counts become grey levels (see `images.range_of`).
        shared: all planes of the file have one range of intensities.

    Returns:
        The plane and, if it is shared, the range of grey levels that the network sees as black and
        white.

    Raises:
        ImageError: the file is damaged.
        ChangedError: it was replaced.
    """
    with open_stack(uri, fingerprint=fingerprint, cache=cache, max_pixels=max_pixels) as opened:
        raster = selection.apply(opened)
        scene = raster.scenes[plane.scene]
        plane = replace(plane, channel=choose_channel(scene, wanted=selection.channel))
        with naming(uri, done="read"):
            if not shared:
                return read_plane(raster, plane, stored=stored), None
            with _measuring:  # so that threads wait for it, rather than measure it as well
                found = _measure(
                    uri,
                    fingerprint,
                    cache,
                    max_pixels,
                    selection,
                    next(find_alike(raster, plane)),
                    stored=stored,
                )
            values = raster.read(plane, 0, (0, 0, *scene.levels[0]))
            return to_rgb(values, found.counts), found.levels


@functools.lru_cache(maxsize=_RANGES)
def _measure(
    uri: str,
    fingerprint: str | None,
    cache: storage.Cache,
    max_pixels: int,
    selection: Selection,
    plane: Plane,
    *,
    stored: bool,
) -> SharedRange:
    with open_stack(uri, fingerprint=fingerprint, cache=cache, max_pixels=max_pixels) as raster:
        return share_range(selection.apply(raster), plane, stored=stored)


@functools.lru_cache(maxsize=_OPEN)
def _open(uri: str, fingerprint: str | None, max_pixels: int) -> Raster:
    if is_zarr_name(uri):
        from resunet_ray.data.raster.ome_zarr import ZarrRaster  # not above: it imports zarr

        return ZarrRaster(uri)
    file = io.BufferedReader(storage.Reader(uri, fingerprint=fingerprint))
    return open_file(file, max_pixels=max_pixels)
