"""Planes of a stack, each an image of its own, read from a file that stays open."""

import functools
import io
import threading
from dataclasses import replace

import numpy as np
from jaxtyping import UInt8

from resunet_ray import storage
from resunet_ray.data.images import read_plane
from resunet_ray.data.raster.opening import naming, open_image
from resunet_ray.data.raster.planes import Selection, choose_channel
from resunet_ray.data.raster.scene import Plane, Raster

_OPEN = 4  # stacks that a process keeps open


def read_from_stack(
    uri: str,
    plane: Plane,
    *,
    fingerprint: str | None,
    selection: Selection,
    max_pixels: int,
    stored: bool,
) -> UInt8[np.ndarray, "h w 3"]:
    """Read one plane as RGB. Only its own bytes are read, once the file's headers have been.

    Args:
        uri: the file.
        plane: which one; its channel does not count.
        fingerprint: of the file that was listed; another is not read.
        selection: which channel and focal plane.
        max_pixels: larger planes are refused.
        stored: how counts become grey levels (see `images.range_of`).

    Raises:
        ImageError: the file is damaged.
        ChangedError: it was replaced.
    """
    with naming(uri, done="read"):
        raster, lock = _open(uri, fingerprint, selection, max_pixels)
        channel = choose_channel(raster.scenes[plane.scene], wanted=selection.channel)
        with lock:
            return read_plane(raster, replace(plane, channel=channel), stored=stored)


@functools.lru_cache(maxsize=_OPEN)
def _open(
    uri: str, fingerprint: str | None, selection: Selection, max_pixels: int
) -> tuple[Raster, threading.Lock]:
    file = io.BufferedReader(storage.Reader(uri, fingerprint=fingerprint))
    return selection.apply(open_image(file, max_pixels=max_pixels)), threading.Lock()
