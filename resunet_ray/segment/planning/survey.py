"""The survey: what a slide's header and its low-power view say, and which of its regions to read.

Each region with tissue becomes a row of the plan. A slide without tissue, or one that cannot be
opened, becomes one row that says so.
"""

import hashlib
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import UInt8

from resunet_ray import storage
from resunet_ray.bundle_info import BundleInfo
from resunet_ray.config import SegmentConfig
from resunet_ray.data.raster import dicom
from resunet_ray.data.raster.ome_zarr_metadata import is_zarr_name
from resunet_ray.data.raster.opening import naming, require_pixels
from resunet_ray.data.raster.planes import Selection, list_planes, name_plane
from resunet_ray.data.raster.scene import PixelSize, Plane, Scene, believe
from resunet_ray.data.slides import SUFFIXES, Slide
from resunet_ray.data.stacks import is_opened_first, is_stack, open_stack
from resunet_ray.data.tissue import Tissue, find_tissue, read_view
from resunet_ray.errors import ImageError, InputError, RunError
from resunet_ray.intensity import measure_range
from resunet_ray.model.diameter import choose_scale
from resunet_ray.segment.planning.grid import SQUARE, Gate, Grid, squares_of
from resunet_ray.segment.planning.ledger import ID_BYTES
from resunet_ray.segment.planning.staged import open_planned
from resunet_ray.segment.rows import ImageRef, Place, PlannedRegion
from resunet_ray.storage import crashes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Surveyor:
    """Opens slides before they are segmented."""

    config: SegmentConfig
    bundle_mpp: float | None
    """Microns per pixel of the bundle's training data."""
    tile: int
    context: int
    resizes: bool
    """The bundle's network sees whole images, resized."""
    stretches: bool
    """The bundle's network sees each image between two of its percentiles."""

    @classmethod
    def of(cls, config: SegmentConfig, info: BundleInfo) -> "Surveyor":
        """Return the surveyor of a run."""
        seen = info.preprocess
        return cls(
            config,
            info.mpp,
            seen.tile,
            seen.context,
            resizes=seen.resize is not None,
            stretches=seen.intensity == "percentiles",
        )

    def __call__(self, planned: PlannedRegion) -> list[PlannedRegion]:
        """Return the regions of a file that may be a slide; a plain image is returned as it was.

        Raises:
            ResourceError: the storage cannot be reached.
        """
        try:
            return self._survey(planned)
        except Exception as error:  # noqa: BLE001 (libraries raise anything over a damaged header)
            failed = planned.failed(error, stage="open")
            assert failed.failure is not None
            logger.info("%s", failed.failure.error_message)
            return [failed]

    def blame(self, planned: PlannedRegion, deaths: int) -> list[PlannedRegion]:
        """Return the region of a file over which the process died."""
        error = RunError(crashes.describe(planned.image.image_uri, deaths))
        return [planned.failed(error, stage="crash")]

    def _survey(self, planned: PlannedRegion) -> list[PlannedRegion]:
        uri = planned.image.image_uri
        found = [(planned, True)]
        if planned.place.format is None and is_opened_first(uri):
            fingerprint, most = planned.source_fingerprint, self.config.max_pixels
            cache = storage.Cache.of(self.config)
            with open_stack(uri, fingerprint=fingerprint, cache=cache, max_pixels=most) as raster:
                scenes = Selection.of(self.config).apply(raster).scenes
                found = list(self._list_planes(planned, scenes))
        if planned.place.format == dicom.FORMAT:
            with naming(uri, done="opened as a slide"):
                scenes = dicom.list_scenes(uri, fingerprint=planned.source_fingerprint)
            found = list(self._list_planes(planned, scenes))
        if not any(is_slide for _, is_slide in found):
            return [plane for plane, _ in found]
        if self.resizes:
            raise ImageError(
                f"{uri} is a slide, and the bundle was trained on whole images that were resized: "
                "use a bundle that was trained on tiles"
            )
        return [
            region
            for plane, is_slide in found
            for region in (self._open(plane) if is_slide else [plane])
        ]

    def _list_planes(
        self, planned: PlannedRegion, scenes: Sequence[Scene]
    ) -> Iterator[tuple[PlannedRegion, bool]]:
        """Yield each plane to segment, and whether it is read in parts."""
        planes = list_planes(scenes, channel=self.config.channel)
        if len(planes) > 1 and planned.image.mask_uri is not None:
            raise ImageError(
                f"it has {len(planes)} planes, but {planned.image.mask_uri} is one true mask: "
                "expected one plane. Pass --z, or save each plane with its mask as a separate file"
            )
        for plane in planes:
            scene, image = scenes[plane.scene], planned.image
            if len(scene.channels) > 1:
                name = scene.channels[plane.channel] or str(plane.channel)
                image = replace(image, channel=name)
            if len(planes) > 1:
                image = _at(image, plane, name_plane(plane, scenes))
            most = self.config.max_pixels
            if planned.place.format == dicom.FORMAT:
                yield replace(planned, image=image), True
                continue
            is_zarr = is_zarr_name(image.image_uri)
            if is_stack(image.image_uri) and not is_zarr:
                require_pixels(scene, most=most)
                yield replace(planned, image=add_mpp(image, scene.mpp)), False
                continue
            pixels = math.prod(scene.levels[0])
            is_slide = pixels > most or (len(scene.levels) > 1 and not is_zarr)
            if not is_slide:
                image = add_mpp(image, scene.mpp)
                is_slide = not self.resizes and pixels / self.scale(image.mpp) ** 2 > most
            yield replace(planned, image=image), is_slide

    def _open(self, planned: PlannedRegion) -> list[PlannedRegion]:
        """Return the regions of a slide."""
        with open_planned(
            planned.image,
            planned.place.format,
            fingerprint=planned.source_fingerprint,
            config=self.config,
            stored=not self.stretches,
        ) as slide:
            return self._plan(planned, slide)

    def _plan(self, planned: PlannedRegion, slide: Slide) -> list[PlannedRegion]:
        warnings = []
        image = add_mpp(planned.image, slide.info.pixel)
        if image.mpp is None and slide.info.stated_mpp is not None:
            warnings.append("mpp_not_believed")
        opened = Place(
            slide_height=slide.info.height,
            slide_width=slide.info.width,
            format=slide.info.format,
        )
        if image.mpp is None and self.config.missing_mpp != "native":
            if self.config.missing_mpp == "error":
                raise InputError(
                    f"{image.image_uri} does not say how large its pixels are (it states "
                    f"{slide.info.stated_mpp}): give --mpp, a sidecar by --mpp-csv, or "
                    "--missing-mpp native"
                )
            place = replace(opened, warnings=["mpp_missing"], **_NOTHING)
            return [replace(planned, image=image, place=place)]
        scale = self.scale(image.mpp)
        height, width = slide.size_at(scale)
        windows = Grid(height, width, self.tile, self.context).regions(self.config.region)
        view = self._view(slide, warnings)
        tissue = self._find_tissue(view, slide, warnings)
        gates: list[bytes | None] = [None] * len(windows)
        if tissue is not None:
            opened = replace(opened, tissue_fraction=tissue.fraction)
            squares = tissue.squares(height, width, side=SQUARE)
            windows = [window for window in windows if squares[squares_of(window)].any()]
            gates = [Gate.of(squares, region=window).pack() for window in windows]
        if not windows:
            logger.warning(
                "%s: no tissue found, so none of it is read (--tissue off reads all of it)",
                image.image_uri,
            )
            warnings.append("no_tissue")
            place = replace(opened, warnings=warnings, **_NOTHING)
            return [replace(planned, image=image, place=place)]
        place = replace(opened, num_regions=len(windows), scale_to_level0=scale, warnings=warnings)
        if self.stretches and view is not None:
            low, high = slide.levels or measure_range(view)
            place = replace(place, level_low=low, level_high=high)
        return [
            replace(
                planned,
                image=image,
                place=replace(place.at(window), region_index=index),
                tissue=gate,
            )
            for index, (window, gate) in enumerate(zip(windows, gates, strict=True))
        ]

    def _view(self, slide: Slide, warnings: list[str]) -> UInt8[np.ndarray, "h w 3"] | None:
        """Read the whole slide at low power; None if nothing needs it or it cannot be read."""
        if self.config.tissue == "off" and not self.stretches:
            return None
        try:
            return read_view(slide)
        except ImageError as error:  # its regions will say which of them are damaged
            logger.warning("%s: it has no readable low-power view, so all of it is read", error)
            warnings.append("view_unreadable")
            return None

    def _find_tissue(
        self, view: UInt8[np.ndarray, "h w 3"] | None, slide: Slide, warnings: list[str]
    ) -> Tissue | None:
        """Find the tissue; None if all of the slide is to be read."""
        if self.config.tissue == "off" or view is None:
            return None
        tissue = find_tissue(view, scale=slide.info.height / view.shape[0])
        warnings += ["fluorescence"] if tissue.fluorescence else []
        return tissue

    def scale(self, mpp: float | None) -> float:
        """Return the side of a pixel that the network sees, in pixels of the slide."""
        diameter = self.config.diameter_at(mpp)
        return choose_scale(diameter, mpp=mpp, bundle_mpp=self.bundle_mpp) or 1.0


def add_mpp(image: ImageRef, pixel: PixelSize | None) -> ImageRef:
    """Return the image with the pixel size that its file states, if nothing else says it.

    Raises:
        ImageError: its pixels are not square.
    """
    if image.mpp is not None:
        return image
    with naming(image.image_uri, done="read"):
        mpp = believe(pixel)
    return image if mpp is None else replace(image, mpp=mpp, mpp_source="metadata")


def may_be_slide(planned: PlannedRegion) -> bool:
    """Whether a file has to be opened before it is planned."""
    return (
        planned.image.member is None
        and planned.failure is None
        and (
            planned.place.format is not None
            or is_opened_first(planned.image.image_uri)
            or planned.image.image_uri.lower().endswith(SUFFIXES)
        )
    )


def _at(image: ImageRef, plane: Plane, name: str) -> ImageRef:
    """Return a plane of a file as an image of its own."""
    key = f"{image.image_id}\0{name}".encode()
    return replace(
        image,
        image_id=hashlib.blake2b(key, digest_size=ID_BYTES).hexdigest(),
        file_id=image.image_id,
        member=name,
        scene=plane.scene,
        t=plane.t,
        z=plane.z,
    )


_NOTHING: dict[str, Any] = {"num_regions": 0, "height": 0, "width": 0}
"""The place of a slide of which nothing is read."""
