"""Leica's LIF: an XML that says where in the file each value of each image is."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np

from resunet_ray.data.raster.libraries import as_image_error, load_library
from resunet_ray.data.raster.scene import Plane, Scene, Window
from resunet_ray.errors import ImageError

_X, _Y, _Z, _T, _POSITION = 1, 2, 3, 4, 10
"""Dimensions of an image by their number; others are of spectra and loops."""
_MICRONS = {"m": 1e6, "mm": 1e3, "µm": 1.0, "um": 1.0, "nm": 1e-3}
_RED, _GREEN, _BLUE = 1, 2, 3  # tags of channels that are colours
_MAX_SIDE = 2**21  # elements of a dimension; an XML that claims more is damaged


@dataclass(frozen=True)
class _Place:
    """Where the values of a scene are in the file, in bytes."""

    start: int
    channels: Sequence[int]
    """Distance of each channel from the start."""
    strides: Mapping[int, int]
    """Distance from one element to the next, by dimension."""


class LifRaster:
    """A file of images of a Leica microscope.

    Each position of a tile scan is a scene of its own, and so is each step of a dimension other
    than focal plane and time. Images without rows and columns, as of a line scan, are passed over.
    """

    format = "lif"

    def __init__(self, path: str) -> None:
        """Read the XML.

        Args:
            path: the file on this machine.

        Raises:
            ImageError: it is cut short or damaged, has no images, or liffile is not installed.
        """
        library = load_library("liffile")
        with as_image_error(), library.LifFile(path) as file:
            if file.type != library.LifFileType.LIF:
                raise ImageError(f"it is a file of type {file.type.name}: expected LIF")
            self._content = np.memmap(path, mode="r")
            found = [
                pair
                for image in file.images
                for pair in _read_image(image, file_bytes=len(self._content))
            ]
        if not found:
            raise ImageError("it has no images with rows and columns")
        self.scenes = [scene for scene, _ in found]
        self._places = [place for _, place in found]

    def read(self, plane: Plane, _level: int, window: Window) -> np.ndarray:
        """Read a window; see `Raster`."""
        scene, place = self.scenes[plane.scene], self._places[plane.scene]
        top, left, height, width = window
        strides = place.strides
        start = place.start + top * strides[_Y] + left * strides[_X]
        start += plane.z * strides.get(_Z, 0) + plane.t * strides.get(_T, 0)
        channels = place.channels if scene.rgb else [place.channels[plane.channel]]
        values = [
            np.ndarray(
                (height, width),
                scene.dtype.newbyteorder("<"),
                buffer=self._content,
                offset=start + channel,
                strides=(strides[_Y], strides[_X]),
            )
            for channel in channels
        ]
        return (np.stack(values, axis=-1) if scene.rgb else values[0]).astype(scene.dtype)

    def close(self) -> None:
        """Close the file."""
        del self._content


def _read_image(image: Any, *, file_bytes: int) -> Iterator[tuple[Scene, _Place]]:
    """Yield the scenes of an image, and where each of them is."""
    root = image.xml_element.find("./Data/Image/ImageDescription")
    dimensions = (
        {}
        if root is None
        else {int(one.attrib["DimID"]): one for one in root.iterfind("./Dimensions/*")}
    )
    if not {_X, _Y} <= dimensions.keys():
        return
    name, channels = image.path, list(root.iterfind("./Channels/*"))
    sizes = {key: int(one.attrib["NumberOfElements"]) for key, one in dimensions.items()}
    strides = {key: int(one.attrib["BytesInc"]) for key, one in dimensions.items()}
    starts = [int(channel.attrib["BytesInc"]) for channel in channels]
    dtypes = {_read_dtype(channel) for channel in channels}
    if len(dtypes) != 1:
        raise ImageError(f"its image {name} has channels of {sorted(map(str, dtypes))}")
    (dtype,) = dtypes
    if not all(0 < size <= _MAX_SIDE for size in sizes.values()):
        raise ImageError(f"its image {name} claims {[*sizes.values()]}: expected 1 to {_MAX_SIDE}")
    _check_extent(image, dtype.itemsize, sizes, strides, starts, file_bytes=file_bytes)
    tags = [int(channel.attrib["ChannelTag"]) for channel in channels]
    rgb = sorted(tags) == [_RED, _GREEN, _BLUE]
    if rgb:
        starts = [starts[tags.index(tag)] for tag in (_RED, _GREEN, _BLUE)]
    others = [key for key in dimensions if key not in (_X, _Y, _Z, _T)]
    for steps in itertools.product(*(range(sizes[key]) for key in others)):
        parts = zip(others, steps, strict=True)
        words = [f"{_word(key)} {step + 1}" for key, step in parts if sizes[key] > 1]
        scene = Scene(
            levels=[(sizes[_Y], sizes[_X])],
            channels=[None] if rgb else [_read_name(channel) for channel in channels],
            dtype=dtype,
            rgb=rgb,
            num_t=sizes.get(_T, 1),
            num_z=sizes.get(_Z, 1),
            mpp=_read_mpp(dimensions[_Y], dimensions[_X]),
            name=", ".join([name, *words]),
        )
        offset = sum(step * strides[key] for key, step in zip(others, steps, strict=True))
        yield scene, _Place(image.memory_block.offset + offset, starts, strides)


def _word(dimension: int) -> str:
    return "position" if dimension == _POSITION else f"dimension {dimension}"


def _check_extent(
    image: Any,
    itemsize: int,
    sizes: Mapping[int, int],
    strides: Mapping[int, int],
    starts: Sequence[int],
    *,
    file_bytes: int,
) -> None:
    """Refuse an image whose values are not all within its block of the file, or share bytes."""
    block = image.memory_block
    if block.offset + block.size > file_bytes:
        raise ImageError(
            f"its image {image.path} extends to byte {block.offset + block.size} "
            f"but it ends at {file_bytes}: it was cut short. Copy it again"
        )
    end = max(starts) + sum((size - 1) * strides[key] for key, size in sizes.items()) + itemsize
    least = math.prod(sizes.values()) * len(starts) * itemsize
    if min(*starts, *strides.values()) < 0 or max(end, least) > block.size:
        raise ImageError(
            f"its image {image.path} claims {max(end, least)} bytes but has {block.size}: "
            "its header is damaged"
        )


def _read_dtype(channel: Element) -> np.dtype:
    """Return the type of a channel's values, of the bits that are used and those that are not."""
    bits, kind = int(channel.attrib["Resolution"]), int(channel.attrib["DataType"])
    size = next(size for size in (1, 2, 4, 8) if bits <= 8 * size)
    return np.dtype(f"{'uf'[kind]}{size}")


def _read_name(channel: Element) -> str | None:
    """Return the name of a channel: its dye's or else that of the colour it is shown in."""
    for own in channel.iterfind("ChannelProperty"):
        if own.findtext("Key") == "DyeName" and own.findtext("Value"):
            return own.findtext("Value")
    return channel.get("LUTName") or None


def _read_mpp(*dimensions: Element) -> tuple[float, float] | None:
    found = []
    for dimension in dimensions:
        # From the middle of the first pixel to that of the last.
        length, steps = (
            float(dimension.attrib["Length"]),
            int(dimension.attrib["NumberOfElements"]) - 1,
        )
        unit = _MICRONS.get(dimension.get("Unit", ""))
        if unit is None or not steps or not length:
            return None
        found.append(abs(length) / steps * unit)
    return found[0], found[1]
