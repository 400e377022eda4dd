"""What a TIFF's metadata say of it: which pages are images, pixel size, channels and colours."""

import functools
import html
import re
from typing import Any

import numpy as np
import tifffile
from jaxtyping import UInt8

from resunet_ray.data.raster.ome_zarr_metadata import is_rgb

_MICRONS = {"µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "microns": 1.0, "micrometer": 1.0}
_MICRONS |= {"micrometers": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6, "å": 1e-4}
_MICRONS |= {"inch": 25400.0, "inches": 25400.0, "in": 25400.0}
"""Units in metadata, in microns; the micro sign is often written as the Greek letter."""
_RESOLUTION_UNITS = {2: 25400.0, 3: 10000.0}
"""Values of the tag ResolutionUnit (TIFF 6.0, section 8), in microns."""
_FLUORESCENT = ("Fluor", "EmissionWavelength", "ExcitationWavelength")
"""Attributes that OME's metadata have only for fluorescence channels."""
_NUM_COLOURS = 3
_LESSER = re.compile("(label|macro|thumbnail|overview)( image)?", re.IGNORECASE)
"""Names of images that scanners take beside the slide."""
_QPI_NAME = re.compile("<Name>([^<]+)</Name>")
"""The name of the channel that a page of PerkinElmer's QPTIFF holds, in its description."""
_ESCAPE = re.compile(r"\\u([0-9A-Fa-f]{4})")  # as ImageJ writes letters beyond Latin 1


def detach_levels(file: tifffile.TiffFile) -> list[tuple[Any, Any]]:
    """Make series of their own of what tifffile takes for levels only by its size.

    Returns:
        Each with the series whose level it was.
    """
    found = [
        (series, level)
        for series in file.series
        if series.kind == "generic"
        for level in series.levels[1:]
        if not (level.keyframe.is_reduced or level.keyframe.is_subifd)
    ]
    for series, level in found:
        series.levels.remove(level)
        file.series.append(level)
    return found


def attach_level(file: tifffile.TiffFile, series: Any, level: Any) -> None:
    """Make a level again of what `detach_levels` has found."""
    file.series.remove(level)
    series.levels.append(level)
    series.levels.sort(key=lambda one: -_count_pixels(one.keyframe))


def find_scenes(file: tifffile.TiffFile) -> list[int]:
    """Return the numbers of the series that are images, or of which the file does not say it."""
    whole = max(file.series, key=lambda series: _count_pixels(series.keyframe))
    most = max(series.size for series in file.series)
    return [
        number
        for number, series in enumerate(file.series)
        if 2 * series.size > most or not _is_lesser(series, whole)
    ]


def _is_lesser(series: tifffile.TiffPageSeries, whole: tifffile.TiffPageSeries) -> bool:
    """Whether the file says that it is a label, a macro image, a thumbnail or a level."""
    page = series.keyframe
    is_small = 2 * _count_pixels(page) < _count_pixels(whole.keyframe)
    return is_small and bool(page.is_reduced or _LESSER.fullmatch(series.name))


def _count_pixels(page: tifffile.TiffPage) -> int:
    return page.imagelength * page.imagewidth


def read_palette(page: tifffile.TiffPage) -> UInt8[np.ndarray, "n 3"]:
    """Return the colours of a palette, which has 16 bits (TIFF 6.0, section 5) or, wrongly, 8."""
    palette = np.asarray(page.colormap).T
    return (palette >> 8 if palette.max() > np.iinfo(np.uint8).max else palette).astype(np.uint8)


def is_colour(file: tifffile.TiffFile, *, scene: int) -> bool:
    """Whether channels stored as separate planes are certainly red, green and blue.

    Only OME's metadata tell, by the names or colours of the channels.
    """
    channels = _listed(_ome_pixels(file, scene).get("Channel", []))
    if len(channels) != _NUM_COLOURS or any(mark in c for c in channels for mark in _FLUORESCENT):
        return False
    # As red, green, blue and alpha, 8 bits each, in a signed number (OME 2016-06).
    colours = [f"{int(channel.get('Color', 0)) % 2**32 >> 8:06x}" for channel in channels]
    names = [str(channel["Name"]) if "Name" in channel else None for channel in channels]
    return is_rgb(list(zip(names, colours, strict=True)))


def name_channels(file: tifffile.TiffFile, *, scene: int, count: int) -> list[str | None]:
    """Return the names of a scene's channels, None for those without a name."""
    names: list[str | None] = []
    if file.is_ome and file.ome_metadata:
        channels = _listed(_ome_pixels(file, scene).get("Channel", []))
        names = [str(channel["Name"]) if "Name" in channel else None for channel in channels]
    elif file.is_qpi and count > 1:
        pages = [page.aspage() for page in file.series[scene].pages[:count] if page is not None]
        found = [_QPI_NAME.search(page.description) for page in pages]
        names = [html.unescape(match[1]) if match else None for match in found]
    return (names + [None] * count)[:count]


def read_mpp(file: tifffile.TiffFile, *, scene: int = 0) -> tuple[float, float] | None:
    """Read the height and width of a pixel in microns; None if they are unknown.

    OME's metadata say it, ImageJ's description, or the resolution tags (TIFF 6.0, section 8).
    """
    if file.is_ome and file.ome_metadata:
        pixels = _ome_pixels(file, scene)
        sizes = {
            axis: float(pixels[f"PhysicalSize{axis}"]) * unit
            for axis in "YX"
            if f"PhysicalSize{axis}" in pixels
            and (unit := _to_microns(pixels.get(f"PhysicalSize{axis}Unit", "µm")))
        }
        known = sizes.get("Y", sizes.get("X"))
        return None if known is None else (known, sizes.get("X", known))
    tags = file.series[scene].keyframe.tags
    if file.is_imagej:
        described = file.imagej_metadata or {}
        units = {axis: described.get("unit", "") for axis in "YX"}
        units["Y"] = described.get("yunit", units["X"])  # only where it is another one
        of_axis = {axis: _to_microns(_ESCAPE.sub(_to_letter, str(units[axis]))) for axis in "YX"}
    else:
        of_axis = dict.fromkeys("YX", _RESOLUTION_UNITS.get(tags.valueof("ResolutionUnit", 0)))
    sizes = {}
    for axis in "YX":
        resolution, microns = tags.get(f"{axis}Resolution"), of_axis[axis]
        if microns is None or resolution is None or not resolution.value[0]:
            return None
        sizes[axis] = microns * resolution.value[1] / resolution.value[0]
    return sizes["Y"], sizes["X"]


def _to_microns(unit: str) -> float | None:
    """Return how many microns a unit has; None: it is none of length."""
    return _MICRONS.get(unit, _MICRONS.get(unit.lower()))


def _to_letter(code: re.Match[str]) -> str:
    return chr(int(code[1], 16))


def _ome_pixels(file: tifffile.TiffFile, scene: int) -> dict[str, Any]:
    """Return the `Pixels` element that OME's metadata have for an image."""
    images = _list_images(file.ome_metadata or "")
    return dict(_listed(images[min(scene, len(images) - 1)]["Pixels"])[0])


@functools.lru_cache(maxsize=4)  # files; each of their scenes asks several times
def _list_images(metadata: str) -> list[Any]:
    return _listed(tifffile.xml2dict(metadata)["OME"]["Image"])


def _listed(element: Any) -> list[Any]:
    """Return an XML element that may occur once or several times as a list."""
    return element if isinstance(element, list) else [element]
