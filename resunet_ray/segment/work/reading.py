"""Reading: an image or a tile of a slide becomes a sample, with what is wrong with it."""

import time
from dataclasses import replace

import numpy as np
from jaxtyping import UInt8

from resunet_ray import storage
from resunet_ray.data.archives import Entry
from resunet_ray.data.images import decode_image, decode_labels, name_format
from resunet_ray.data.slides import Slide
from resunet_ray.errors import ImageError, InputError, ResourceError
from resunet_ray.intensity import measure_range
from resunet_ray.model.tiling import Box
from resunet_ray.segment.rows import Failure, PlannedRegion
from resunet_ray.segment.work.sample import Sample
from resunet_ray.segment.work.slide_chunk import SlideChunk


def read_image(
    planned: PlannedRegion, *, cache: storage.Cache, max_pixels: int, measure: bool
) -> Sample:
    """Read and decode one image; what goes wrong becomes its failure.

    Args:
        planned: the image. One that failed while it was planned is not read.
        cache: where compressed tars are expanded.
        max_pixels: an image of more is not decoded.
        measure: measure its range of intensities.

    Raises:
        ResourceError: the storage cannot be reached.
    """
    sample = Sample(planned, failure=planned.failure)
    if planned.failure is not None or planned.place.num_regions == 0:
        return sample
    start = time.perf_counter()
    stage = "read"
    ref = planned.image
    try:
        entry = Entry(ref.image_uri, ref.member, ref.member_offset, ref.source_bytes or 0)
        content = entry.read(cache)
        stage = "decode"
        image = decode_image(content, name=entry.name, max_pixels=max_pixels)
        place = replace(
            planned.place,
            format=name_format(content),
            height=image.shape[0],
            width=image.shape[1],
        )
        sample.planned = replace(planned, place=place)
        stage = "mask"
        sample.truth = _read_truth(ref.mask_uri, shape=image.shape[:2], cache=cache)
        if measure:
            low, high = sample.levels = measure_range(image)
            place = replace(place, level_low=low, level_high=high)
            sample.planned = replace(planned, place=place)
        sample.image = image
    except ResourceError:
        raise  # the storage is away, which is not the image's fault: the run ends here
    except Exception as error:  # noqa: BLE001 (decoders raise anything)
        sample.failure = Failure.of(error, stage=stage)
    sample.read_seconds = time.perf_counter() - start
    return sample


def read_tile(slide: Slide, chunk: SlideChunk, tile: Box) -> Sample:
    """Read one tile of a slide; what goes wrong becomes its failure."""
    start = time.perf_counter()
    sample = Sample(tile=tile, levels=chunk.levels)
    try:
        sample.image = slide.read(tile.top, tile.left, *tile.shape, scale=chunk.scale)
    except (ImageError, MemoryError) as error:
        sample.failure = Failure.of(error, stage="read")
    sample.read_seconds = time.perf_counter() - start
    return sample


def _read_truth(
    uri: str | None, *, shape: tuple[int, int], cache: storage.Cache
) -> UInt8[np.ndarray, "h w"] | None:
    if uri is None:
        return None
    values = decode_labels(Entry(uri).read(cache), name=uri)
    if values.shape != shape:
        raise InputError(
            f"{uri} is {values.shape[0]} x {values.shape[1]}: expected {shape[0]} x {shape[1]}, "
            "the size of its image"
        )
    return (values > 0).astype(np.uint8)
