"""A slide of the plan, brought to this node and opened."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace

from resunet_ray import storage
from resunet_ray.config import SegmentConfig
from resunet_ray.data.raster import dicom
from resunet_ray.data.raster.ome_zarr_metadata import is_zarr_name
from resunet_ray.data.raster.opening import naming
from resunet_ray.data.raster.planes import Selection
from resunet_ray.data.raster.scene import Plane
from resunet_ray.data.slides import Slide, companions
from resunet_ray.segment.rows import ImageRef


@contextmanager
def open_planned(
    image: ImageRef,
    kind: str | None,
    *,
    fingerprint: str | None,
    config: SegmentConfig,
    stored: bool,
) -> Iterator[Slide]:
    """Bring a slide to this node, and open it at its plane.

    Args:
        image: the slide.
        kind: its format, if that is known.
        fingerprint: as it was listed.
        config: of the run.
        stored: how counts become grey levels (see `Slide`).

    Raises:
        ImageError: no library can read it.
        ChangedError: it was replaced.
    """
    staged = _stage(image, kind, fingerprint=fingerprint, cache=storage.Cache.of(config))
    with (
        staged as (path, plane),
        closing(
            Slide(
                path,
                name=image.image_uri,
                plane=plane,
                selection=Selection.of(config),
                stored=stored,
                shared=config.scale == "file" and image.file_id is not None,
            )
        ) as slide,
    ):
        yield slide


@contextmanager
def _stage(
    image: ImageRef, kind: str | None, *, fingerprint: str | None, cache: storage.Cache
) -> Iterator[tuple[str, Plane]]:
    """Yield the path to open, valid while the context lasts, and which of its planes is meant.

    OME-Zarr stays where it is, since only its chunks that are needed are fetched.
    """
    uri, plane = image.image_uri, image.plane
    if kind == dicom.FORMAT:  # a folder, of which each scene is a series
        with naming(uri, done="opened as a slide"):
            names = [*dicom.list_series(uri, fingerprint=fingerprint)[plane.scene]]
        with cache.stage(uri, fingerprint=fingerprint, suffix=dicom.SUFFIX, names=names) as folder:
            yield f"{folder}/{names[0]}", replace(plane, scene=0)
    elif is_zarr_name(uri):
        yield uri, plane
    else:
        with cache.stage(uri, fingerprint=fingerprint, companions=companions(uri)) as path:
            yield path, plane
