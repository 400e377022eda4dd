"""What OME-Zarr's metadata say of an image: its axes, channels and microns per pixel."""

import re
from collections.abc import Sequence
from typing import Any

from resunet_ray.errors import ImageError

SUFFIX = ".zarr"
"""Folders with this suffix are one image each, or a plate of them."""
METADATA = ("zarr.json", ".zattrs")
"""Names of the files that make a folder an image, of Zarr 3 and 2."""
_AXES = {"t": "time", "c": "channel", "z": "space", "y": "space", "x": "space"}
_MICRONS = {
    "angstrom": 1e-4,
    "nanometer": 1e-3,
    "micrometer": 1.0,
    "millimeter": 1e3,
    "centimeter": 1e4,
    "meter": 1e6,
}
"""Units of space in microns (OME-NGFF 0.5, section 2.1)."""
_COLOURS = (("ff0000", "00ff00", "0000ff"), ("red", "green", "blue"), ("r", "g", "b"))
_NUMBERED = re.compile(r"(channel|ch|c)?[ _:#-]*[\d:]*", re.IGNORECASE)
"""Names of channels that say nothing."""


def is_zarr_name(uri: str) -> bool:
    """Whether the name of a folder or prefix is that of OME-Zarr, or of a group within."""
    return f"{SUFFIX}/" in f"{uri}/".lower()


def name_axes(axes: Any, *, version: Any) -> str:
    """Return the letter of each axis: by its name or, for other names, its type."""
    if not isinstance(axes, list) or not all(isinstance(axis, dict) for axis in axes):
        raise ImageError(f"its axes are {axes} (version {version}): expected OME-Zarr 0.4 or 0.5")
    letters = "".join(
        str(axis.get("name")).lower() if str(axis.get("name")).lower() in _AXES else "?"
        for axis in axes
    )
    types = [axis.get("type") for axis in axes]
    if "?" in letters:
        space = iter("zyx"[3 - types.count("space") :] if types.count("space") <= 3 else "")
        other = {"time": "t", "channel": "c"}
        letters = "".join(
            next(space, "?") if kind == "space" else other.get(str(kind), "?") for kind in types
        )
    fits = all(
        kind in (None, _AXES[letter])
        for letter, kind in zip(letters, types, strict=True)
        if letter != "?"
    )
    if "?" in letters or not fits or len(set(letters)) < len(letters) or not {*"yx"} <= {*letters}:
        found = ", ".join(f"{axis.get('name')} ({axis.get('type')})" for axis in axes)
        raise ImageError(f"its axes are {found}: expected t, c, z, y and x, or some of them")
    return letters


def read_channels(omero: Any, *, count: int) -> list[tuple[str | None, str]]:
    """Return name and colour of each channel, None and an empty text where there is none."""
    stated = omero.get("channels", []) if isinstance(omero, dict) else []
    found = [channel if isinstance(channel, dict) else {} for channel in stated]
    if len(found) != count:
        return [(None, "")] * count
    return [(str(c["label"]) if c.get("label") else None, str(c.get("color", ""))) for c in found]


def is_rgb(channels: Sequence[tuple[str | None, str]]) -> bool:
    """Whether channels are certainly red, green and blue.

    Fluorescence is often shown in these colours, too, but then has names.
    """
    names, colours = (
        tuple(str(text or "").lower() for text in texts) for texts in zip(*channels, strict=True)
    )
    plain = all(_NUMBERED.fullmatch(name) for name in names)
    return names in _COLOURS or (colours == _COLOURS[0] and plain)


def read_mpp(multiscales: Any, dataset: Any, *, axes: str) -> tuple[float, float] | None:
    """Return height and width of a pixel in microns, None if a scale or its unit is unknown."""
    own = _read_scale(dataset, axes=axes)
    shared = _read_scale(multiscales, axes=axes) or dict.fromkeys(axes, 1.0)
    units = {
        letter: axis.get("unit") for letter, axis in zip(axes, multiscales["axes"], strict=True)
    }
    if own is None or not all(units[axis] in _MICRONS for axis in "yx"):
        return None
    height, width = (own[axis] * shared[axis] * _MICRONS[units[axis]] for axis in "yx")
    return (height, width) if height > 0 and width > 0 else None


def _read_scale(owner: Any, *, axes: str) -> dict[str, float] | None:
    for step in owner.get("coordinateTransformations") or ():
        if step.get("type") == "scale" and "scale" in step:
            return dict(zip(axes, map(float, step["scale"]), strict=True))
    return None
