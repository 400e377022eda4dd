"""Pictures of a run's images and slides, with the nuclei found."""

import base64
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import UInt8

from resunet_ray import storage
from resunet_ray.config import SegmentConfig
from resunet_ray.data.archives import Entry
from resunet_ray.data.images import decode_image, decode_stored, encode_png
from resunet_ray.data.raster import dicom
from resunet_ray.data.raster.ome_zarr_metadata import is_zarr_name
from resunet_ray.data.raster.planes import Selection
from resunet_ray.data.slides import companions
from resunet_ray.data.stacks import is_stack, read_from_stack
from resunet_ray.data.tissue import read_view
from resunet_ray.errors import InputError
from resunet_ray.pictures import draw_beside
from resunet_ray.segment import layout
from resunet_ray.segment.planning.staged import open_planned
from resunet_ray.segment.rows import ImageRef

_SLIDE_SIDE = 900  # longer side of a slide's picture, pixels
_SIDE = 360  # longer side of an image's picture, pixels
_MASK_COLOUR, _READ_COLOUR = (225, 20, 60), (90, 140, 220)


def picture_images(
    rows: pd.DataFrame, config: SegmentConfig, output: str, run_id: str
) -> list[dict[str, Any]]:
    """Images with their pictures, or a message where the source can no longer be read."""
    if rows.empty:
        return []
    # A plain image is one region.
    regions = itertools.islice(_read_regions(output, run_id, set(rows["image_id"])), len(rows))
    masks = {region["image_id"]: region["mask"] for region in regions}
    shown = []
    for row in rows.to_dict("records"):
        try:
            image = _read_image(row, config)
            picture = draw_beside(image, decode_stored(masks[row["image_id"]]), side=_SIDE)
        except InputError as error:  # deleted or changed since the run
            shown.append({**row, "picture": None, "message": str(error)})
            continue
        shown.append({**row, "picture": base64.b64encode(encode_png(picture)).decode()})
    return shown


@dataclass
class _SlidePicture:
    """A low-resolution view of a slide on which its regions are drawn."""

    height: int
    """Height of the slide, level-0 pixels."""
    view: UInt8[np.ndarray, "h w 3"]
    mask: UInt8[np.ndarray, "h w"] = field(init=False)
    boxes: list[tuple[int, int, int, int]] = field(default_factory=list)
    """Regions that were read: left, top, right, bottom, in pixels of the view."""

    def __post_init__(self) -> None:
        self.mask = np.zeros(self.view.shape[:2], np.uint8)

    def add(self, region: dict[str, Any]) -> None:
        """Add a region: its box and its mask."""
        factor = self.view.shape[0] / self.height
        top, left = int(region["y"] * factor), int(region["x"] * factor)
        bottom, right = (
            int(np.ceil((region[a] + region[b]) * factor))
            for a, b in (("y", "height"), ("x", "width"))
        )
        self.boxes.append((left, top, right - 1, bottom - 1))
        window = self.mask[top:bottom, left:right]  # cut off at the edge of the view
        if window.size:
            small = cv2.resize(
                decode_stored(region["mask"]),
                (right - left, bottom - top),
                interpolation=cv2.INTER_AREA,
            )
            np.maximum(window, small[: window.shape[0], : window.shape[1]], out=window)

    def draw(self) -> str:
        """The regions and their masks over the view, as PNG in base64."""
        laid, here = self.view.copy(), self.mask > 0
        for left, top, right, bottom in self.boxes:
            cv2.rectangle(laid, (left, top), (right, bottom), _READ_COLOUR, 1)
        laid[here] = (0.3 * self.view[here] + 0.7 * np.array(_MASK_COLOUR)).astype(np.uint8)
        return base64.b64encode(encode_png(laid)).decode()


def picture_slides(
    rows: list[dict[str, Any]], config: SegmentConfig, output: str, run_id: str
) -> list[dict[str, Any]]:
    """Slides with their pictures: the regions that were read, and their masks."""
    pictures: dict[str, _SlidePicture] = {}
    messages: dict[str, str] = {}
    for row in rows:
        try:
            known = _fingerprint(row)
            with open_planned(
                _refer(row), row["format"], fingerprint=known, config=config, stored=False
            ) as slide:
                pictures[row["image_id"]] = _SlidePicture(
                    slide.info.height, read_view(slide, side=_SLIDE_SIDE)
                )
        except InputError as error:  # deleted or replaced since the run, or it never opened
            messages[row["image_id"]] = row["error_message"] or str(error)
    if pictures:
        for region in _read_regions(output, run_id, set(pictures)):
            pictures[region["image_id"]].add(region)
    drawn = {image_id: picture.draw() for image_id, picture in pictures.items()}
    return [
        {**row, "picture": drawn.get(row["image_id"]), "message": messages.get(row["image_id"])}
        for row in rows
    ]


def _fingerprint(row: dict[str, Any]) -> str | None:
    """The fingerprint of an image's file, if images/ tells it."""
    uri = row["image_uri"]
    if row["format"] == dicom.FORMAT or is_zarr_name(uri) or companions(uri):
        return None
    if isinstance(row["source_etag"], str):
        return str(row["source_etag"])
    is_plane = isinstance(row.get("file_id"), str)
    if isinstance(row["member"], str) and not is_plane:  # its size is not the archive's
        return None
    return storage.FileStatus("", int(row["source_bytes"]), row["source_mtime"]).fingerprint


def _refer(row: dict[str, Any]) -> ImageRef:
    planes: dict[str, Any] = {
        name: int(row[name]) for name in ("scene", "t", "z") if not pd.isna(row.get(name))
    }
    file_id = row["file_id"] if isinstance(row.get("file_id"), str) else None
    return ImageRef(image_id=row["image_id"], image_uri=row["image_uri"], file_id=file_id, **planes)


def _read_regions(output: str, run_id: str, wanted: set[str]) -> Iterator[dict[str, Any]]:
    """Yield the regions with a mask of the wanted images."""
    ids = pa.array(sorted(wanted))
    for uri in list_tables(storage.join(output, layout.REGIONS, run_id)):
        here = pc.is_in(storage.read_table(uri, columns=["image_id"])["image_id"], value_set=ids)
        if pc.any(here).as_py():
            rows = (
                storage.read_table(uri, columns=["image_id", "y", "x", "height", "width", "mask"])
                .filter(here)
                .to_pylist()
            )
            yield from (row for row in rows if row["mask"] is not None)


def list_tables(folder: str) -> list[str]:
    """List the Parquet files of a run's table."""
    return [
        storage.join(folder, name)
        for name, _ in storage.list_files(folder)
        if name.endswith(".parquet")
    ]


def _read_image(row: dict[str, Any], config: SegmentConfig) -> UInt8[np.ndarray, "h w 3"]:
    uri, selection = row["image_uri"], Selection.of(config)
    if isinstance(row.get("file_id"), str) or is_stack(uri):
        image, _ = read_from_stack(
            uri,
            _refer(row).plane,
            fingerprint=_fingerprint(row),
            cache=storage.Cache.of(config),
            max_pixels=config.max_pixels,
            selection=selection,
            stored=False,
            shared=config.scale == "file" and isinstance(row.get("file_id"), str),
        )
        return image
    member = row["member"] if isinstance(row["member"], str) else None
    offset = None if pd.isna(row["member_offset"]) else int(row["member_offset"])
    size = int(row["source_bytes"])
    entry = Entry(uri, member, offset, size, fingerprint=_fingerprint(row))
    content = entry.read(storage.Cache.of(config))
    return decode_image(content, name=entry.name, selection=selection)
