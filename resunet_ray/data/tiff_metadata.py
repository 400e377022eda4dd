"""What a TIFF's metadata say of it: microns per pixel, and what its channels are."""

from typing import Any

import numpy as np
import tifffile

_MICRONS = {"µm": 1.0, "μm": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6}
"""Units in OME's metadata, in microns; the micro sign is often written as the Greek letter."""
_FLUORESCENT = ("Fluor", "EmissionWavelength", "ExcitationWavelength")
"""Attributes that OME's metadata have only for fluorescence channels."""
_STAINS = ("dapi", "hoechst")
"""Fluorescent stains of nuclei, in names of channels."""


def is_fluorescence(file: tifffile.TiffFile) -> bool:
    """Whether channels stored as separate planes are something other than red, green and blue.

    OME's metadata tell; without OME's metadata nothing does, and the answer is yes.
    """
    if not file.is_ome:
        return True
    channels = _listed(_ome_pixels(file).get("Channel", []))
    stains = any(
        stain in str(channel.get("Name", "")).lower() for channel in channels for stain in _STAINS
    )
    return stains or any(mark in channel for channel in channels for mark in _FLUORESCENT)


def read_mpp(file: tifffile.TiffFile) -> float | None:
    """Read microns per pixel from OME's metadata or the resolution tags (TIFF 6.0, section 8)."""
    if file.is_ome and file.ome_metadata:
        pixels = _ome_pixels(file)
        units = {axis: _MICRONS.get(pixels.get(f"PhysicalSize{axis}Unit", "µm")) for axis in "XY"}
        sizes = [
            float(pixels[f"PhysicalSize{axis}"]) * unit
            for axis, unit in units.items()
            if unit and f"PhysicalSize{axis}" in pixels
        ]
        return float(np.mean(sizes)) if sizes else None
    tags = file.pages.first.tags
    microns = (
        {2: 25400.0, 3: 10000.0}.get(int(tags["ResolutionUnit"].value))
        if "ResolutionUnit" in tags
        else None
    )
    if microns is None or "XResolution" not in tags:
        return None
    numerator, denominator = tags["XResolution"].value
    return microns * denominator / numerator if numerator else None


def _ome_pixels(file: tifffile.TiffFile) -> dict[str, Any]:
    """Return the `Pixels` element that OME's metadata have for the first image."""
    return dict(_listed(tifffile.xml2dict(file.ome_metadata or "")["OME"]["Image"])[0]["Pixels"])


def _listed(element: Any) -> list[Any]:
    """Return an XML element that may occur once or several times as a list."""
    return element if isinstance(element, list) else [element]
