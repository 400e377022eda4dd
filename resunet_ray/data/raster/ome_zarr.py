"""OME-Zarr 0.4 and 0.5, a folder of chunks in any storage, of which only those needed are fetched.

A chunk that is not there has the fill value: so says Zarr.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr

from resunet_ray import storage
from resunet_ray.data.raster.libraries import as_image_error
from resunet_ray.data.raster.ome_zarr_metadata import (
    METADATA,
    is_rgb,
    name_axes,
    read_channels,
    read_mpp,
)
from resunet_ray.data.raster.scene import Plane, Scene, Window
from resunet_ray.data.raster.zarr_store import LocationStore
from resunet_ray.errors import ImageError, UnclearError

_ARRAY_METADATA = {3: "zarr.json", 2: ".zarray"}
_MAX_SIDE = 2**21  # pixels, points in time or focal planes; metadata that claim more are damaged
_MAX_CHANNELS = 2**10
_MAX_LEVELS = 2**6
_MAX_CHUNK = 2**28  # values of a chunk, which is decoded whole


@dataclass(frozen=True)
class _Image:
    scene: Scene
    axes: str
    """Letters of the axes of every level, in their order."""
    arrays: Sequence[Any]
    metadata: Sequence[str]
    """The file with each level's own metadata."""


class ZarrRaster:
    """An image or a container of several, as bioformats2raw writes it."""

    format = "ome-zarr"

    def __init__(self, uri: str) -> None:
        """Read the metadata.

        Args:
            uri: the folder or prefix.

        Raises:
            ImageError: it is none, is a plate, or its metadata are damaged or of another version.
            UnclearError: it does not exist, or is denied.
        """
        self._store = LocationStore(uri)
        with as_image_error():
            self._images = list(_open_images(self._store))
        self.scenes = [image.scene for image in self._images]

    def read(self, plane: Plane, level: int, window: Window) -> np.ndarray:
        """Read a window; see `Raster`.

        Raises:
            UnclearError: the level is gone.
        """
        image, (top, left, height, width) = self._images[plane.scene], window
        index: dict[str, int | slice] = {
            "t": plane.t,
            "c": slice(None) if image.scene.rgb else plane.channel,
            "z": plane.z,
            "y": slice(top, top + height),
            "x": slice(left, left + width),
        }
        missing = self._store.missing
        with as_image_error():
            values = np.asarray(image.arrays[level][tuple(index[axis] for axis in image.axes)])
        if self._store.missing > missing and self._store.read(image.metadata[level]) is None:
            # Or a share that is no longer mounted would read as an image without a single value.
            raise UnclearError(f"{storage.join(self._store.uri, image.metadata[level])} is gone")
        kept = [axis for axis in image.axes if isinstance(index[axis], slice)]
        upright = values.transpose([kept.index(axis) for axis in "yxc"[: len(kept)]])
        return np.ascontiguousarray(upright, dtype=image.scene.dtype)

    def chunks(self, scene: int, level: int) -> tuple[int, int]:
        """Return height and width of a chunk, which is decoded whole."""
        image = self._images[scene]
        sizes = dict(zip(image.axes, image.arrays[level].chunks, strict=True))
        return sizes["y"], sizes["x"]

    def close(self) -> None:
        """Close the file."""
        self._store.close()


def _read_metadata(store: LocationStore, path: str) -> tuple[int, dict[str, Any]] | None:
    """Return Zarr's version and what OME's metadata say of a group, None if there is no group."""
    for name in METADATA:
        content = store.read(f"{path}/{name}".lstrip("/"))
        if content is None:
            continue
        with as_image_error():
            document = json.loads(content)
            if name == ".zattrs":
                return 2, dict(document)
            attributes = document.get("attributes", {})
            return 3, dict(attributes.get("ome", attributes))
    return None


def _open_images(store: LocationStore) -> Iterator[_Image]:
    found = _read_metadata(store, "")
    if found is None:
        if not storage.exists(store.uri):
            raise UnclearError(f"{store.uri} does not exist")
        raise ImageError(f"it has no {' or '.join(METADATA)}: expected OME-Zarr 0.4 or 0.5")
    version, ome = found
    if "plate" in ome:
        wells = len(ome["plate"].get("wells", ()))
        raise ImageError(
            f"it is a plate of {wells} wells (HCS): expected an image. "
            "Pass the fields of its wells, as in plate.zarr/A/1/0 or, in quotes, plate.zarr/*/*/*"
        )
    if "bioformats2raw.layout" not in ome:
        yield _open_image(store, "", version, ome)
        return
    paths = list(_list_series(store))
    if not paths:
        raise ImageError("it is a container of images (bioformats2raw) but has none")
    for path in paths:
        inner = _read_metadata(store, path)
        if inner is None:
            raise ImageError(f"its image {path!r} is missing: was it copied completely?")
        yield _open_image(store, path, *inner)


def _list_series(store: LocationStore) -> Iterator[str]:
    """Yield the paths of a container's images: those listed in it or else 0, 1, … (OME-NGFF)."""
    listed = _read_metadata(store, "OME")
    if listed is not None and "series" in listed[1]:
        yield from map(str, listed[1]["series"])
        return
    number = 0
    while _read_metadata(store, str(number)) is not None:
        yield str(number)
        number += 1


def _open_image(store: LocationStore, path: str, version: int, ome: dict[str, Any]) -> _Image:
    where = f"its image {path!r}" if path else "it"
    if "image-label" in ome:
        raise ImageError(f"{where} holds labels: expected an image")
    if "well" in ome:
        raise ImageError(f"{where} is a well of a plate (HCS): pass its fields, as in A/1/0")
    if not ome.get("multiscales"):
        raise ImageError(
            f"{where} has no multiscales in its metadata: expected OME-Zarr 0.4 or 0.5"
        )
    multiscales = ome["multiscales"][0]
    stated = ome.get("version", multiscales.get("version"))
    axes = name_axes(multiscales.get("axes"), version=stated)
    datasets = multiscales["datasets"]
    if not 0 < len(datasets) <= _MAX_LEVELS:
        raise ImageError(f"{where} has {len(datasets)} levels: expected 1 to {_MAX_LEVELS}")
    levels = []
    for dataset in datasets:
        place = f"{path}/{dataset['path']}".strip("/")
        array = zarr.open_array(store, path=place, mode="r", zarr_format=2 if version == 2 else 3)
        _check_array(array, axes=axes, place=place)
        if getattr(array.metadata, "dimension_separator", "/") == ".":  # only Zarr 2 has one
            _check_separator(store, place, num_axes=len(axes))
        if array.shards is None and "blosc" in str(array.compressors).lower():
            store.blosc.add(place)
        levels.append((array, f"{place}/{_ARRAY_METADATA[version]}", dataset))
    levels.sort(key=lambda item: -math.prod(_sizes(item[0], axes)[axis] for axis in "yx"))
    first = _sizes(levels[0][0], axes)
    # A pyramid may have fewer focal planes at its smaller levels, which are then other planes.
    others = {axis: size for axis, size in first.items() if axis not in "yx"}
    levels = [item for item in levels if others.items() <= _sizes(item[0], axes).items()]
    arrays = [array for array, _, _ in levels]
    if len({array.dtype for array in arrays}) > 1:
        raise ImageError(f"{where} has levels of {', '.join(str(array.dtype) for array in arrays)}")
    channels = read_channels(ome.get("omero"), count=first.get("c", 1))
    rgb = arrays[0].dtype == np.uint8 and is_rgb(channels)
    scene = Scene(
        levels=[(sizes["y"], sizes["x"]) for sizes in (_sizes(array, axes) for array in arrays)],
        channels=[None] if rgb else [name for name, _ in channels],
        dtype=arrays[0].dtype.newbyteorder("="),
        rgb=rgb,
        num_t=first.get("t", 1),
        num_z=first.get("z", 1),
        mpp=read_mpp(multiscales, levels[0][2], axes=axes),
        name=multiscales.get("name") or path or None,
    )
    return _Image(scene, axes, arrays, [metadata for _, metadata, _ in levels])


def _check_separator(store: LocationStore, place: str, *, num_axes: int) -> None:
    """Refuse chunks in folders that the metadata do not tell of, or all of them would be missing.

    Early writers of Zarr 2 left out that they nest them.
    """
    flat, nested = (
        storage.join(store.uri, f"{place}/{mark.join('0' * num_axes)}") for mark in "./"
    )
    if not storage.is_file(flat) and storage.is_file(nested):
        raise ImageError(
            f"its chunks are in folders, as in {place}/{'/'.join('0' * num_axes)}, which its "
            f'metadata do not say: set "dimension_separator": "/" in {place}/{_ARRAY_METADATA[2]}'
        )


def _sizes(array: Any, axes: str) -> dict[str, int]:
    return dict(zip(axes, array.shape, strict=True))


def _check_array(array: Any, *, axes: str, place: str) -> None:
    """Refuse a level that is not what its metadata claim, too large for memory, or no numbers."""
    if array.ndim != len(axes):
        raise ImageError(f"its level {place} has the shape {array.shape} but its axes are {axes}")
    limits = {"c": _MAX_CHANNELS}
    if not all(
        0 < size <= limits.get(axis, _MAX_SIDE) for axis, size in _sizes(array, axes).items()
    ):
        raise ImageError(
            f"its level {place} claims {array.shape}: "
            f"expected 1 to {_MAX_SIDE} per side and at most {_MAX_CHANNELS} channels"
        )
    if array.dtype.kind not in "buif":
        raise ImageError(f"its level {place} has values of {array.dtype}: expected numbers")
    if math.prod(array.chunks) > _MAX_CHUNK:
        raise ImageError(
            f"its level {place} has chunks of {array.chunks}: expected at most {_MAX_CHUNK} values"
        )
