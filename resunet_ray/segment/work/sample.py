"""An image, or a tile of a slide, on its way through an actor, from its reading on."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import UInt8

from resunet_ray import storage
from resunet_ray.data.archives import Entry
from resunet_ray.data.images import decode_sized, name_format
from resunet_ray.data.labels import Truth, decode_truth
from resunet_ray.data.raster.planes import Selection
from resunet_ray.data.slides import Slide
from resunet_ray.data.stacks import is_stack, name_stack, read_from_stack
from resunet_ray.errors import ImageError, InputError
from resunet_ray.intensity import Range, measure_range
from resunet_ray.model.prediction import Prediction
from resunet_ray.model.tiling import Box
from resunet_ray.segment.failures import Failure
from resunet_ray.segment.planning.survey import add_mpp
from resunet_ray.segment.rows import ImageRef, PlannedRegion


@dataclass
class Sample:
    """What is known so far."""

    planned: PlannedRegion | None = None
    """The image; None for a tile."""
    tile: Box | None = None
    """Where the tile lies on its slide, at the network's scale; None for an image."""
    image: UInt8[np.ndarray, "h w 3"] | None = None
    levels: Range | None = None
    """Range of the whole image's intensities, if the network's scale depends on it."""
    scale: float | None = 1.0
    """At which the network sees it (see `choose_scale`); a tile was read at its slide's."""
    truth: Truth | None = None
    prediction: Prediction | None = field(default=None, repr=False)
    failure: Failure | None = None
    read_seconds: float = 0.0
    model_seconds: float = 0.0

    @property
    def pixels(self) -> float:
        """How many of them the network sees."""
        if self.image is None:
            return 0
        height, width = self.image.shape[:2]
        return float(height * width / (self.scale or 1) ** 2)


def group_samples(samples: Iterable[Sample], *, pixels: int) -> Iterator[list[Sample]]:
    """Group consecutive samples, up to a number of pixels, for one call of the network."""
    group: list[Sample] = []
    held = 0.0
    for sample in samples:
        if group and held + sample.pixels > pixels:
            yield group
            group, held = [], 0
        group.append(sample)
        held += sample.pixels
    if group:
        yield group


def read_image(
    planned: PlannedRegion,
    *,
    cache: storage.Cache,
    max_pixels: int,
    measure: bool,
    selection: Selection,
    scale_at: Callable[[float | None], float | None] = lambda _: None,
    shared: bool = False,
) -> Sample:
    """Read and decode one image; what goes wrong becomes its failure.

    Args:
        planned: the image. One that failed while it was planned is not read.
        cache: where compressed tars are expanded.
        max_pixels: an image of more is not decoded.
        measure: measure its range of intensities.
        selection: which channel and focal planes.
        scale_at: returns the scale at which the network sees it, given its microns per pixel.
        shared: all planes of its file have one range of intensities.

    Raises:
        ResourceError: the storage cannot be reached.
    """
    sample = Sample(planned, failure=planned.failure)
    if planned.failure is not None or planned.place.num_regions == 0:
        return sample
    start = time.perf_counter()
    stage = "read"
    ref, levels = planned.image, None
    try:
        if ref.file_id is not None or is_stack(ref.image_uri):
            image, levels = read_from_stack(
                ref.image_uri,
                ref.plane,
                fingerprint=planned.source_fingerprint,
                cache=cache,
                max_pixels=max_pixels,
                selection=selection,
                stored=not measure,
                shared=shared and ref.file_id is not None,
            )
            kind = name_stack(ref.image_uri)
        else:
            entry = Entry(
                ref.image_uri,
                ref.member,
                ref.member_offset,
                ref.source_bytes or 0,
                fingerprint=planned.source_fingerprint,
            )
            content = entry.read(cache)
            stage = "decode"
            image, pixel = decode_sized(
                content,
                name=entry.name,
                max_pixels=max_pixels,
                selection=selection,
                stored=not measure,
            )
            kind = name_format(content)
            ref = add_mpp(ref, pixel)
        place = replace(planned.place, format=kind, height=image.shape[0], width=image.shape[1])
        sample.planned = planned = replace(planned, image=ref, place=place)
        sample.scale = scale_at(ref.mpp)
        _require_size(ref, image.shape[:2], scale=sample.scale or 1, most=max_pixels)
        stage = "mask"
        if ref.mask_uri is not None:
            mask = Entry(ref.mask_uri, fingerprint=planned.mask_fingerprint)
            sample.truth = _read_truth(
                mask, shape=image.shape[:2], cache=cache, max_pixels=max_pixels
            )
        if measure:
            low, high = sample.levels = levels or measure_range(image)
            place = replace(place, level_low=low, level_high=high)
            sample.planned = replace(planned, place=place)
        sample.image = image
    except Exception as error:  # noqa: BLE001 (decoders raise anything)
        sample.failure = Failure.of(error, stage=stage, uri=ref.image_uri)
    sample.read_seconds = time.perf_counter() - start
    return sample


def read_tile(slide: Slide, tile: Box, *, scale: float, levels: Range | None) -> Sample:
    """Read one tile of a slide; what goes wrong becomes its failure."""
    start = time.perf_counter()
    sample = Sample(tile=tile, levels=levels)
    try:
        sample.image = slide.read(tile.top, tile.left, *tile.shape, scale=scale)
    except (ImageError, MemoryError) as error:
        sample.failure = Failure.of(error, stage="read")
    sample.read_seconds = time.perf_counter() - start
    return sample


def _require_size(image: ImageRef, shape: tuple[int, int], *, scale: float, most: int) -> None:
    height, width = (round(side / scale) for side in shape)
    if scale < 1 and height * width > most:
        raise ImageError(
            f"{image.image_uri} has {image.mpp:g} microns per pixel ({image.mpp_source}), and at "
            f"the bundle's scale it would have {height} x {width} pixels: expected at most {most}. "
            "If that is right, raise --max-pixels; else give --mpp"
        )


def _read_truth(
    mask: Entry, *, shape: tuple[int, int], cache: storage.Cache, max_pixels: int
) -> Truth:
    truth = decode_truth(mask.read(cache), name=mask.uri, max_pixels=max_pixels)
    if truth.mask.shape != shape:
        raise InputError(
            f"{mask.uri} is {truth.mask.shape[0]} x {truth.mask.shape[1]}: "
            f"expected {shape[0]} x {shape[1]}, the size of its image"
        )
    return truth
