"""Truth in any form as a label image: pictures, .npy, MATLAB's .mat, GeoJSON, ImageScope's XML."""

import io
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import PurePosixPath
from typing import Any
from xml.etree import ElementTree

import numpy as np
import scipy.io
import shapely
from jaxtyping import Int32, Integer, UInt8
from skimage.measure import label

from resunet_ray.data import arrays, images, stacks
from resunet_ray.data.archives import Entry
from resunet_ray.data.polygons import fill_polygon
from resunet_ray.data.raster import opening
from resunet_ray.data.raster.opening import TIFF_STARTS, naming
from resunet_ray.data.raster.pillow import open_checked
from resunet_ray.data.raster.planes import EVERYTHING, Selection
from resunet_ray.data.values import read_values
from resunet_ray.errors import ImageError, InputError
from resunet_ray.storage import Cache

_BROKEN = (ValueError, TypeError, LookupError, AttributeError, RecursionError)
_INSTANCES = "inst_map"  # of the data sets that follow HoVer-Net's


def read_image(
    entry: Entry,
    *,
    element: int | None,
    cache: Cache,
    max_pixels: int,
    selection: Selection = EVERYTHING,
) -> tuple[bytes | None, UInt8[np.ndarray, "h w 3"]]:
    """Read an image from a picture, a file of planes or an array.

    Args:
        entry: the file.
        element: number of the element, if the file is a stack.
        cache: where compressed tars are expanded.
        max_pixels: a larger image is refused before it is decoded.
        selection: which channel and focal plane.

    Returns:
        The file's bytes if they may be stored unchanged, and the image.

    Raises:
        InputError: it cannot be read.
    """
    if arrays.is_array(entry):
        array = arrays.read_array(entry, element=element, cache=cache, max_pixels=max_pixels)
        return None, arrays.to_rgb(array, name=entry.name, channel=selection.channel)
    if stacks.is_stack(entry.name):
        image = stacks.read_only_plane(
            entry.uri,
            fingerprint=entry.fingerprint,
            cache=cache,
            max_pixels=max_pixels,
            selection=selection,
        )
        return None, image
    content = entry.read(cache)
    image = images.decode_image(
        content, name=entry.name, max_pixels=max_pixels, selection=selection
    )
    return content if images.is_stored_form(content) else None, image


def read_labels(
    entry: Entry,
    decode: Callable[..., Integer[np.ndarray, "h w"]],
    *,
    shape: tuple[int, int],
    element: int | None,
    cache: Cache,
    max_pixels: int,
) -> Integer[np.ndarray, "h w"]:
    """Read a mask or numbered nuclei.

    Args:
        entry: the file. Its suffix says what it is.
        decode: what decodes a picture, given its bytes, `name` and `max_pixels`.
        shape: height and width of the image, on which polygons are drawn.
        element: number of the element, if the file is a stack.
        cache: where compressed tars are expanded.
        max_pixels: a larger picture or array is refused before it is decoded.

    Raises:
        InputError: it cannot be read.
    """
    if arrays.is_array(entry):
        array = arrays.read_array(entry, element=element, cache=cache, max_pixels=max_pixels)
        return arrays.to_labels(array, name=entry.name)
    if stacks.is_stack(entry.name):
        raise InputError(f"{entry.name} is no mask: expected a picture, an array or polygons")
    content, suffix = entry.read(cache), PurePosixPath(entry.name).suffix.lower()
    if suffix == ".mat":
        return decode_mat(content, name=entry.name, max_pixels=max_pixels)
    if suffix in _POLYGONS:
        return draw_polygons(_POLYGONS[suffix](content, entry.name), shape=shape, name=entry.name)
    return decode(content, name=entry.name, max_pixels=max_pixels)


def decode_first_channel(content: bytes, *, name: str, max_pixels: int) -> Int32[np.ndarray, "h w"]:
    """Decode the first channel of a picture whose colours tell areas apart.

    Raises:
        ImageError: it cannot be decoded.
    """
    if content.startswith(TIFF_STARTS):
        values = read_values(content, name=name, max_pixels=max_pixels)
    else:
        with naming(name, done="read"):
            values = np.asarray(open_checked(content, max_pixels=max_pixels))
    return (values if values.ndim == 2 else values[..., 0]).astype(np.int32)


def number_areas(values: Integer[np.ndarray, "h w"]) -> Int32[np.ndarray, "h w"]:
    """Return a number for each area of equal values but 0, connected also by corners."""
    numbered: Int32[np.ndarray, "h w"] = label(values, background=0, connectivity=2)
    return numbered.astype(np.int32)


def decode_mat(content: bytes, *, name: str, max_pixels: int) -> Int32[np.ndarray, "h w"]:
    """Return the array `inst_map` of a MATLAB file.

    Raises:
        ImageError: the file is damaged, has no such array, or is of version 7.3, which is HDF5.
    """
    try:
        found = {variable: size for variable, size, _ in scipy.io.whosmat(io.BytesIO(content))}
        if np.prod(found.get(_INSTANCES, (0,)), dtype=float) > max_pixels:
            raise ImageError(
                f"{name} claims {_INSTANCES} of {found[_INSTANCES]}: expected at most "
                f"{max_pixels} pixels"
            )
        values = scipy.io.loadmat(io.BytesIO(content), variable_names=[_INSTANCES])
    except NotImplementedError:
        raise ImageError(
            f"{name} is a MATLAB file of version 7.3: expected an earlier one. "
            "Save it with the option -v7"
        ) from None
    except ImageError:
        raise
    except Exception as error:  # noqa: BLE001 (SciPy raises whatever the damaged bytes lead to)
        raise ImageError(f"{name} is not a MATLAB file: {error}") from None
    if _INSTANCES not in found:
        raise ImageError(f"{name} holds {', '.join(found) or 'nothing'}: expected {_INSTANCES}")
    return arrays.to_labels(np.asarray(values[_INSTANCES]), name=name)


def decode_geojson(content: bytes, name: str) -> list[shapely.Geometry]:
    """Return the polygons of QuPath's GeoJSON: one nucleus for each feature.

    Of a cell, the nucleus counts (`nucleusGeometry`).

    Raises:
        ImageError: it is not GeoJSON, or has a shape that is not a polygon.
    """
    try:
        found = json.loads(content)
        features = found if isinstance(found, list) else found.get("features", [found])
        shapes = [feature.get("nucleusGeometry") or feature["geometry"] for feature in features]
        kinds = {shape["type"] for shape in shapes} - {"Polygon", "MultiPolygon"}
        if kinds:
            raise ImageError(
                f"{name} has a {min(kinds)}: expected only Polygon and MultiPolygon. "
                "Export nuclei without other annotations"
            )
        return [shapely.geometry.shape(shape) for shape in shapes]
    except ImageError:
        raise
    except (*_BROKEN, shapely.errors.ShapelyError) as error:
        raise ImageError(
            f"{name} is not a GeoJSON file of polygons: {type(error).__name__}: {error}"
        ) from None


class _Builder(ElementTree.TreeBuilder):
    """Refuses definitions of a document's own, with which a few bytes can stand for gigabytes."""

    def doctype(self, *_: str | None) -> None:
        raise ImageError("it has a DOCTYPE")


def decode_xml(content: bytes, name: str) -> list[shapely.Geometry]:
    """Return the polygons of Aperio ImageScope's XML: one nucleus for each region.

    Annotations/Annotation/Regions/Region/Vertices/Vertex, with X and Y in pixels. A region of fewer
    than three points has no area and is no nucleus.

    Raises:
        ImageError: it is not such a file.
    """
    try:
        parser = ElementTree.XMLParser(target=_Builder())  # noqa: S314 (see _Builder)
        root = ElementTree.fromstring(content, parser)  # noqa: S314
        regions = [
            [
                (float(point.attrib["X"]), float(point.attrib["Y"]))
                for point in region.iter("Vertex")
            ]
            for region in root.iter("Region")
        ]
    except (ElementTree.ParseError, KeyError, ValueError, ImageError) as error:
        raise ImageError(f"{name} is not ImageScope's XML: {error}") from None
    if any(region.get("NegativeROA") == "1" for region in root.iter("Region")):
        raise ImageError(f"{name} has a region that is to be left out: expected only nuclei")
    if root.tag != "Annotations":
        raise ImageError(f"{name} begins with <{root.tag}>: expected ImageScope's <Annotations>")
    return [shapely.Polygon(points) for points in regions if len(points) > 2]


_POLYGONS: dict[str, Callable[[bytes, str], list[shapely.Geometry]]] = {
    ".geojson": decode_geojson,
    ".json": decode_geojson,
    ".xml": decode_xml,
}
SUFFIXES = (*opening.SUFFIXES, *stacks.STACK_SUFFIXES, ".npy", ".mat", *_POLYGONS)
"""Files with these suffixes may be images or labels."""


def draw_polygons(
    polygons: Iterable[shapely.Geometry], *, shape: tuple[int, int], name: str
) -> Int32[np.ndarray, "h w"]:
    """Draw polygons as nuclei 1, 2 and so on.

    A pixel belongs to the first polygon that contains its centre; the centre of the top left pixel
    is (0.5, 0.5). A polygon that contains no centre is no nucleus, and one with the same pixels as
    an earlier one is the same nucleus.

    Args:
        polygons: in pixels, x to the right and y down from the image's top left corner.
        shape: height and width of the image.
        name: the file's name in errors.

    Raises:
        ImageError: a polygon lies outside the image, or has half of its pixels or more in common
            with earlier ones: one of them is not a nucleus, or drawn in the wrong place.
    """
    labels = np.zeros(shape, np.int32)
    number, drawn = 0, set()
    for position, polygon in enumerate(polygons, start=1):
        window, inside = _draw(polygon, shape=shape, name=f"polygon {position} of {name}")
        taken = labels[window][inside]
        pixels = (window[0].start, window[1].start, inside.shape, inside.tobytes())
        if not taken.size or pixels in drawn:
            continue
        drawn.add(pixels)
        if 2 * np.count_nonzero(taken) >= taken.size:
            raise ImageError(
                f"polygon {position} of {name} has {np.count_nonzero(taken)} of its {taken.size} "
                "pixels in common with earlier ones: expected less than half. Delete what is not "
                "a nucleus"
            )
        number += 1
        labels[window][inside & (labels[window] == 0)] = number
    return labels


def _draw(
    polygon: shapely.Geometry, *, shape: Sequence[int], name: str
) -> tuple[tuple[slice, slice], Any]:
    """Return the part of the image around a polygon, and which of its pixels are inside."""
    if polygon.is_empty:
        return (slice(0), slice(0)), np.zeros((0, 0), bool)
    bounds = np.array(polygon.bounds)
    if (
        not np.isfinite(bounds).all()
        or (bounds[:2] >= shape[::-1]).any()
        or (bounds[2:] <= 0).any()
    ):
        raise ImageError(
            f"{name} lies at x {bounds[0]:g} to {bounds[2]:g}, y {bounds[1]:g} to {bounds[3]:g}: "
            f"expected some of it inside the image of {shape[0]} x {shape[1]} pixels"
        )
    left, top = np.maximum(np.floor(bounds[:2]), 0).astype(int).tolist()
    right, bottom = np.minimum(np.ceil(bounds[2:]), shape[::-1]).astype(int).tolist()
    moved = shapely.transform(polygon, lambda points: points - np.array([left, top]))
    if left >= right or top >= bottom:  # a polygon without extent on a line between pixels
        return (slice(0), slice(0)), np.zeros((0, 0), bool)
    inside = fill_polygon(moved, (bottom - top, right - left))
    return (slice(top, bottom), slice(left, right)), inside
