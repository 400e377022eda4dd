"""OME-Zarr drawn with zarr."""

from pathlib import Path
from typing import Any

import numpy as np
import zarr

_TYPES = {"t": "time", "c": "channel", "z": "space", "y": "space", "x": "space"}


def draw_ome_zarr(
    folder: Path,
    values: np.ndarray,
    axes: str,
    *,
    version: str = "0.5",
    levels: int = 1,
    side: int = 16,
    unit: str | None = "micrometer",
    omero: Any = None,
    fill_value: int = 0,
    **options: Any,
) -> Path:
    """Write an image whose every level has every second pixel of the one before.

    Chunks are squares of `side` pixels.
    """
    group = zarr.open_group(str(folder), mode="w", zarr_format=2 if version == "0.4" else 3)
    datasets = []
    for level in range(levels):
        step = tuple(slice(None, None, 2**level if axis in "yx" else 1) for axis in axes)
        chunks = tuple(side if axis in "yx" else 1 for axis in axes)
        group.create_array(
            str(level), data=values[step], chunks=chunks, fill_value=fill_value, **options
        )
        scale = [{"y": 0.5, "x": 0.25}.get(axis, 1) * 2**level for axis in axes]
        transforms = [{"type": "scale", "scale": scale}]
        datasets.append({"path": str(level), "coordinateTransformations": transforms})
    named = [{"name": axis, "type": _TYPES[axis]} for axis in axes]
    for axis in named:
        if axis["name"] in "yx" and unit:
            axis["unit"] = unit
    shared = [{"type": "scale", "scale": [2 if axis in "yx" else 1 for axis in axes]}]
    ome: dict[str, Any] = {
        "multiscales": [{"axes": named, "datasets": datasets, "coordinateTransformations": shared}]
    }
    if omero:
        ome["omero"] = omero
    group.attrs.update(ome if version == "0.4" else {"ome": {"version": "0.5"} | ome})
    return folder
