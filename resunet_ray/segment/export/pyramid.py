"""Masks and label images of whole slides as pyramids: OME-Zarr labels and tiled OME-TIFF.

They are built region by region on disk.
"""

from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import shapely
import tifffile
import zarr
from shapely.affinity import translate

from resunet_ray.data.images import decode_stored
from resunet_ray.data.polygons import fill_polygon
from resunet_ray.segment.rows import Region

Array = zarr.Array[Any]

_CHUNK = 512  # pixels a side
_SMALLEST = 512  # the last level has no side longer than this, pixels
_LABELS = "labels/nuclei"


def write_label_zarr(
    path: Path,
    regions: Iterable[Region],
    *,
    height: int,
    width: int,
    scale: float,
    mpp: float | None,
) -> None:
    """Write an OME-Zarr 0.5 whose group labels/nuclei is a multiscale label image.

    0 is background; each nucleus has a number.

    Args:
        path: of the new folder.
        regions: with their instances. Nuclei are numbered in this order.
        height: of the image, in pixels that the network sees.
        width: of the image.
        scale: side of such a pixel, in level-0 pixels.
        mpp: microns per level-0 pixel, or None.
    """
    root = zarr.open_group(path, mode="w", zarr_format=3)
    group = root.create_group(_LABELS)
    levels = _create_levels(group, height=height, width=width, dtype="int32")
    count = 0
    for region in regions:
        assert region.findings is not None, "it could be read"
        instances = region.findings.instances
        count += _draw_instances(levels[0], instances, scale=scale, first=count + 1)
    _fill_levels(levels)
    unit = scale if mpp is None else scale * mpp
    axes: list[Any] = [
        {"name": name, "type": "space"} | ({} if mpp is None else {"unit": "micrometer"})
        for name in "yx"
    ]
    datasets = [
        {
            "path": str(level),
            "coordinateTransformations": [{"type": "scale", "scale": [unit * 2**level] * 2}],
        }
        for level in range(len(levels))
    ]
    multiscale = {"name": "nuclei", "axes": axes, "datasets": datasets}
    group.attrs["ome"] = {
        "version": "0.5",
        "multiscales": [multiscale],
        "image-label": {"source": {"image": "../../"}},
    }
    root["labels"].attrs["ome"] = {"version": "0.5", "labels": ["nuclei"]}


def write_mask_tiff(
    path: Path,
    regions: Iterable[Region],
    *,
    height: int,
    width: int,
    side: int,
    scale: float,
    mpp: float | None,
) -> None:
    """Write a mask, 0 or 255, as a pyramidal tiled OME-TIFF.

    Args:
        path: of the new file. A folder beside it holds the pixels while they are written.
        regions: with their masks.
        height: of the image, in pixels that the network sees.
        width: of the image.
        side: of its regions.
        scale: side of such a pixel, in level-0 pixels.
        mpp: microns per level-0 pixel, or None.
    """
    levels = _create_levels(
        zarr.open_group(f"{path}.levels", mode="w"), height=height, width=width, dtype="uint8"
    )
    for region in regions:
        assert region.findings is not None, "it could be read"
        if region.findings.mask is not None:
            window = region.place.window(height=height, width=width, side=side).window
            levels[0][window] = decode_stored(region.findings.mask)
    _fill_levels(levels)
    metadata: dict[str, Any] = {"axes": "YX"}
    if mpp is not None:
        metadata |= {f"PhysicalSize{axis}": mpp * scale for axis in "XY"} | {
            f"PhysicalSize{axis}Unit": "µm" for axis in "XY"
        }
    with tifffile.TiffWriter(path, bigtiff=True, ome=True) as writer:
        for number, level in enumerate(levels):
            writer.write(
                _tiles(level),
                shape=level.shape,
                dtype=np.uint8,
                tile=(_CHUNK, _CHUNK),
                compression="deflate",
                photometric="minisblack",
                metadata=metadata if number == 0 else None,
                subifds=len(levels) - 1 if number == 0 else 0,
                subfiletype=int(number > 0),
            )


def _create_levels(group: zarr.Group, *, height: int, width: int, dtype: str) -> list[Array]:
    """Create arrays that halve from level to level. An empty chunk takes no space."""
    levels: list[Array] = []
    while not levels or max(levels[-1].shape) > _SMALLEST:
        shape = -(-height // 2 ** len(levels)), -(-width // 2 ** len(levels))
        name = str(len(levels))
        levels.append(
            group.create_array(
                name, shape=shape, chunks=(_CHUNK, _CHUNK), dtype=dtype, dimension_names=("y", "x")
            )
        )
    return levels


def _draw_instances(
    array: Array, instances: pa.StructArray | None, *, scale: float, first: int
) -> int:
    """Draw nuclei over what is there, numbered from `first`; return how many."""
    if instances is None or not len(instances):
        return 0
    polygons = shapely.transform(
        shapely.from_wkb(instances.field("polygon").to_numpy(zero_copy_only=False)),
        lambda points: np.rint(points / scale),
    )
    left, top, right, bottom = (int(value) for value in shapely.total_bounds(polygons))
    drawn = np.zeros((bottom - top, right - left), np.int32)
    boxes = shapely.bounds(polygons).astype(int).tolist()
    for number, (polygon, box) in enumerate(zip(polygons, boxes, strict=True), start=first):
        inside = fill_polygon(
            translate(polygon, -box[0], -box[1]), (box[3] - box[1], box[2] - box[0])
        )
        drawn[box[1] - top : box[3] - top, box[0] - left : box[2] - left][inside] = number
    window = slice(top, bottom), slice(left, right)
    array[window] = np.where(drawn > 0, drawn, array[window])
    return len(instances)


def _fill_levels(levels: list[Array]) -> None:
    """Fill each level with every second pixel of the one before, so that a label stays a label."""
    for before, level in pairwise(levels):
        for top in range(0, level.shape[0], _CHUNK):
            for left in range(0, level.shape[1], _CHUNK):
                window = np.asarray(
                    before[2 * top : 2 * (top + _CHUNK), 2 * left : 2 * (left + _CHUNK)]
                )
                if window.any():
                    level[top : top + _CHUNK, left : left + _CHUNK] = window[::2, ::2]


def _tiles(level: Array) -> Iterator[np.ndarray]:
    for top in range(0, level.shape[0], _CHUNK):
        for left in range(0, level.shape[1], _CHUNK):
            tile = np.asarray(level[top : top + _CHUNK, left : left + _CHUNK])
            yield cv2.copyMakeBorder(
                tile,
                0,
                _CHUNK - tile.shape[0],
                0,
                _CHUNK - tile.shape[1],
                cv2.BORDER_CONSTANT,
                value=0,
            )
