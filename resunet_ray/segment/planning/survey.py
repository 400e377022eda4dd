"""The survey: what a slide's header and its low-power view say, and which of its regions are worth reading.

A slide becomes one row of the plan for each region with tissue; a slide without any, or that cannot be opened, one row that
says so.
"""

import io
import logging
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from resunet_ray import storage
from resunet_ray.bundle import BundleInfo
from resunet_ray.config import SegmentConfig
from resunet_ray.data.slides import SUFFIXES, TIFF_SUFFIXES, Slide, companions
from resunet_ray.data.tiff import is_slide
from resunet_ray.data.tissue import Tissue, find_tissue, read_view
from resunet_ray.errors import ImageError, InputError, ResourceError, RunError
from resunet_ray.intensity import measure_range
from resunet_ray.segment.planning.gate import CELL, Gate, cells_of
from resunet_ray.segment.planning.grid import Grid
from resunet_ray.segment.rows import LEVELS, Row, fail, place_region
from resunet_ray.storage import crashes

logger = logging.getLogger(__name__)

_SAME_SCALE = 0.01  # a slide whose pixels are so nearly the bundle's is not resampled


@dataclass(frozen=True)
class Surveyor:
    """Looks at slides before they are segmented."""

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
        """That of one run."""
        seen = info.preprocess
        return cls(
            config,
            info.mpp,
            seen.tile,
            seen.context,
            resizes=seen.resize is not None,
            stretches=seen.intensity == "percentiles",
        )

    def __call__(self, planned: Row) -> list[Row]:
        """The rows of one file that may be a slide; of a plain image the one that it had."""
        try:
            return self._survey(planned)
        except ResourceError:
            raise  # the storage is away, which is not the slide's fault
        except Exception as error:  # noqa: BLE001 (libraries raise what they like over a damaged header)
            row = dict(planned)
            fail(row, stage="open", error=error)
            logger.info("%s", row["error_message"])
            return [row]

    def blame(self, planned: Row, deaths: int) -> list[Row]:
        """The row of a file over which the process died so often."""
        row = dict(planned)
        fail(row, stage="crash", error=RunError(crashes.describe(planned["image_uri"], deaths)))
        return [row]

    def _survey(self, planned: Row) -> list[Row]:
        uri = planned["image_uri"]
        if uri.lower().endswith(TIFF_SUFFIXES) and not self._tiff_is_slide(uri):
            return [planned]
        if self.resizes:
            raise ImageError(
                f"{uri} is a slide, and the bundle was trained on whole images resized: give one that tiles"
            )
        with (
            stage_slide(planned, config=self.config) as path,
            closing(Slide(path, name=uri)) as slide,
        ):
            return self._plan(planned, slide)

    def _tiff_is_slide(self, uri: str) -> bool:
        with io.BufferedReader(storage.Reader(uri)) as file:
            return is_slide(file, max_pixels=self.config.max_pixels)

    def _plan(self, planned: Row, slide: Slide) -> list[Row]:
        warnings = []
        mpp, source = self._choose_mpp(planned, slide)
        if mpp is None and slide.info.stated_mpp is not None:
            warnings.append("mpp_not_believed")
        base = planned | {"mpp": mpp, "mpp_source": source, "format": slide.info.format}
        base |= {"slide_height": slide.info.height, "slide_width": slide.info.width}
        if mpp is None and self.config.missing_mpp != "native":
            if self.config.missing_mpp == "error":
                raise InputError(
                    f"{planned['image_uri']} does not say how large its pixels are (it states {slide.info.stated_mpp}): "
                    "give --mpp, a sidecar by --mpp-csv, or --missing-mpp native"
                )
            return [base | _no_regions(["mpp_missing"], tissue=None)]
        scale = self.scale(mpp)
        height, width = slide.size_at(scale)
        windows = Grid(height, width, self.tile, self.context).regions(self.config.region)
        view = self._view(slide, warnings)
        tissue = self._find_tissue(view, slide, warnings)
        gates: list[bytes | None] = [None] * len(windows)
        if tissue is not None:
            cells = tissue.cells(height, width, side=CELL)
            windows = [window for window in windows if cells[cells_of(window)].any()]
            gates = [Gate.of(cells, region=window).pack() for window in windows]
        fraction = None if tissue is None else tissue.fraction
        if not windows:
            logger.warning(
                "%s: no tissue found, nothing of it is read (--tissue off reads all)",
                planned["image_uri"],
            )
            return [base | _no_regions([*warnings, "no_tissue"], tissue=fraction)]
        base |= {
            "tissue_fraction": fraction,
            "warnings": warnings,
            "num_regions": len(windows),
            "scale_to_level0": scale,
        }
        if self.stretches and view is not None:
            base |= dict(zip(LEVELS, measure_range(view), strict=True))
        return [
            base | place_region(window, scale=scale) | {"region_index": index, "tissue": gate}
            for index, (window, gate) in enumerate(zip(windows, gates, strict=True))
        ]

    def _view(self, slide: Slide, warnings: list[str]) -> UInt8[np.ndarray, "h w 3"] | None:
        """The whole slide, small; None: nobody asks for it, or it cannot be read."""
        if self.config.tissue == "off" and not self.stretches:
            return None
        try:
            return read_view(slide)
        except ImageError as error:  # its regions will say which of them are damaged
            logger.warning("%s: all of it is read, since there is no low-power view", error)
            warnings.append("view_unreadable")
            return None

    def _find_tissue(
        self, view: UInt8[np.ndarray, "h w 3"] | None, slide: Slide, warnings: list[str]
    ) -> Tissue | None:
        """Where there is tissue; None: all of the slide is read."""
        if self.config.tissue == "off" or view is None:
            return None
        tissue = find_tissue(view, scale=slide.info.height / view.shape[0])
        warnings += ["fluorescence"] if tissue.fluorescence else []
        return tissue

    def scale(self, mpp: float | None) -> float:
        """Side of a pixel that the network sees, in pixels of the slide."""
        if mpp is None or self.bundle_mpp is None:
            return 1.0
        scale = self.bundle_mpp / mpp
        return 1.0 if abs(scale - 1) < _SAME_SCALE else scale

    def _choose_mpp(self, planned: Row, slide: Slide) -> tuple[float | None, str | None]:
        """From the command line, a manifest or the sidecar, from the file: the first that is known."""
        if planned["mpp"] is not None:
            return planned["mpp"], planned["mpp_source"]
        return slide.info.mpp, None if slide.info.mpp is None else "metadata"


def may_be_slide(planned: Row) -> bool:
    """Whether a file has to be looked at before it is planned."""
    return (
        planned["member"] is None
        and planned["error_type"] is None
        and planned["image_uri"].lower().endswith(SUFFIXES + TIFF_SUFFIXES)
    )


def stage_slide(row: Row, *, config: SegmentConfig) -> AbstractContextManager[str]:
    """The slide of a row of the plan as a file on this node."""
    uri = row["image_uri"]
    fingerprint = f"{row['source_etag']}-{row['source_bytes']}-{row['source_mtime']}"
    return storage.Cache.of(config).stage(uri, fingerprint=fingerprint, companions=companions(uri))


def _no_regions(warnings: list[str], *, tissue: float | None) -> Row:
    place = dict.fromkeys(("y", "x", "height", "width"), 0)
    return {
        "region_index": 0,
        "num_regions": 0,
        "scale_to_level0": 1.0,
        "tissue_fraction": tissue,
        "warnings": warnings,
        **place,
    }
