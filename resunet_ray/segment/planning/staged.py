"""A slide of the plan, brought to this node and opened."""

from contextlib import AbstractContextManager, nullcontext

from resunet_ray import storage
from resunet_ray.config import SegmentConfig
from resunet_ray.data.raster import dicom
from resunet_ray.data.raster.ome_zarr_metadata import is_zarr_name
from resunet_ray.data.raster.planes import Selection
from resunet_ray.data.slides import Slide, companions
from resunet_ray.segment.rows import ImageRef


def open_planned(path: str, image: ImageRef, *, config: SegmentConfig, stored: bool) -> Slide:
    """Open a slide that was staged, at its plane; `stored` as in `Slide`."""
    selection = Selection.of(config)
    return Slide(
        path,
        name=image.image_uri,
        plane=image.plane,
        selection=selection,
        stored=stored,
        shared=config.scale == "file" and image.file_id is not None,
    )


def stage_slide(
    uri: str, kind: str | None, *, fingerprint: str | None, config: SegmentConfig
) -> AbstractContextManager[str]:
    """Make a slide a file or a folder on this node, for as long as the context lasts.

    OME-Zarr stays where it is, since only its chunks that are needed are fetched.

    Args:
        uri: the slide.
        kind: its format, if that is known.
        fingerprint: as it was listed.
        config: of the run.
    """
    cache = storage.Cache.of(config)
    if kind == dicom.FORMAT:
        return cache.stage(uri, fingerprint=fingerprint, suffix=dicom.SUFFIX)
    if is_zarr_name(uri):
        return nullcontext(uri)
    return cache.stage(uri, fingerprint=fingerprint, companions=companions(uri))
