"""What a TIFF's metadata say of it: size of a pixel, names of channels, and what these are."""

import re
from typing import Any

import tifffile

_MICRONS = {"µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "microns": 1.0, "micrometer": 1.0}
_MICRONS |= {"nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6, "inch": 25400.0}
"""Units in metadata, in microns; the micro sign is often written as the Greek letter."""
_RESOLUTION_UNITS = {2: 25400.0, 3: 10000.0}
"""Values of the tag ResolutionUnit (TIFF 6.0, section 8), in microns."""
_FLUORESCENT = ("Fluor", "EmissionWavelength", "ExcitationWavelength")
"""Attributes that OME's metadata have only for fluorescence channels."""
_STAINS = ("dapi", "hoechst")
"""Fluorescent stains of nuclei, in names of channels."""
_ESCAPE = re.compile(r"\\u([0-9A-Fa-f]{4})")  # as ImageJ writes letters beyond Latin 1


def is_fluorescence(file: tifffile.TiffFile) -> bool:
    """Whether channels stored as separate planes are something other than red, green and blue.

    OME's metadata tell; without OME's metadata nothing does, and the answer is yes.
    """
    if not file.is_ome:
        return True
    channels = _listed(_ome_pixels(file, 0).get("Channel", []))
    stains = any(
        stain in str(channel.get("Name", "")).lower() for channel in channels for stain in _STAINS
    )
    return stains or any(mark in channel for channel in channels for mark in _FLUORESCENT)


def name_channels(file: tifffile.TiffFile, *, scene: int, count: int) -> list[str | None]:
    """Return the names of a scene's channels, None for those without a name."""
    names: list[str | None] = []
    if file.is_ome and file.ome_metadata:
        channels = _listed(_ome_pixels(file, scene).get("Channel", []))
        names = [str(channel["Name"]) if "Name" in channel else None for channel in channels]
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
            and (unit := _MICRONS.get(pixels.get(f"PhysicalSize{axis}Unit", "µm")))
        }
        known = sizes.get("Y", sizes.get("X"))
        return None if known is None else (known, sizes.get("X", known))
    tags = file.pages.first.tags
    if file.is_imagej:
        stated_unit = str((file.imagej_metadata or {}).get("unit", ""))
        microns = _MICRONS.get(_ESCAPE.sub(lambda code: chr(int(code[1], 16)), stated_unit))
    else:
        stated = tags.get("ResolutionUnit")
        microns = None if stated is None else _RESOLUTION_UNITS.get(int(stated.value))
    sizes = {}
    for axis in "YX":
        resolution = tags.get(f"{axis}Resolution")
        if microns is None or resolution is None or not resolution.value[0]:
            return None
        sizes[axis] = microns * resolution.value[1] / resolution.value[0]
    return sizes["Y"], sizes["X"]


def _ome_pixels(file: tifffile.TiffFile, scene: int) -> dict[str, Any]:
    """Return the `Pixels` element that OME's metadata have for an image."""
    images = _listed(tifffile.xml2dict(file.ome_metadata or "")["OME"]["Image"])
    return dict(_listed(images[min(scene, len(images) - 1)]["Pixels"])[0])


def _listed(element: Any) -> list[Any]:
    """Return an XML element that may occur once or several times as a list."""
    return element if isinstance(element, list) else [element]
