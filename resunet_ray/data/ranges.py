"""The range of intensities of a plane, or one range for all planes of a file, from some of them."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from resunet_ray.data.images import range_of, to_rgb
from resunet_ray.data.raster.scene import Plane, Raster
from resunet_ray.errors import ImageError, ResUNetRayError
from resunet_ray.intensity import Range, measure_range

_PLANES = 16  # of a file that are looked at
_SHARED = 2**22  # pixels of all of them together
_AT_ONCE = 2**25  # pixels of a level that is read whole
_BAND, _LEAST_BAND = 256, 32  # rows of a larger or damaged one that are read at a time


@dataclass(frozen=True)
class SharedRange:
    """The range that all planes of a file have in common."""

    counts: Range | None
    """Counts that become grey levels of 0 and 255; None if the file has 8 bits."""
    levels: Range
    """Of these, the ones that the network sees as 0 and 255."""


def share_range(raster: Raster, plane: Plane, *, stored: bool) -> SharedRange:
    """Measure one range for all planes of a file that are like one of them.

    At most 16 planes are read, at equal distances, so that whichever part of a file is segmented
    where has the same range.

    Args:
        raster: the file.
        plane: one of them.
        stored: how counts become grey levels (see `images.range_of`).

    Raises:
        ImageError: none of the 16 can be read.
    """
    alike = list(find_alike(raster, plane))
    places = np.linspace(0, len(alike) - 1, min(len(alike), _PLANES)).round().astype(int)
    found, reason = [], ""
    for number in places:
        try:
            values = sample_plane(raster, alike[number], most=_SHARED // len(places))
        except ImageError as error:  # its own image will report it
            reason = str(error)
        else:
            found.append(values.reshape(1, -1, *values.shape[2:]))
    if not found:
        raise ImageError(f"none of the {len(places)} planes that were looked at is read: {reason}")
    values = np.concatenate(found, axis=1)
    counts = range_of(values, raster.scenes[plane.scene], stored=stored)
    return SharedRange(counts, measure_range(to_rgb(values, counts)))


def find_alike(raster: Raster, plane: Plane) -> Iterator[Plane]:
    """Yield the planes that may share a plane's range: of its channel, in scenes like its own.

    A scene with other channels or another type of numbers was recorded otherwise.
    """
    wanted = raster.scenes[plane.scene]
    kind = (wanted.dtype, wanted.rgb, *wanted.channels)
    for number, scene in enumerate(raster.scenes):
        if (scene.dtype, scene.rgb, *scene.channels) == kind:
            for t, z in itertools.product(range(scene.num_t), range(scene.num_z)):
                yield Plane(scene=number, channel=plane.channel, z=z, t=t)


def sample_plane(raster: Raster, plane: Plane, *, most: int) -> np.ndarray:
    """Read some pixels of a plane, evenly spread, from the finest level that is quick to read.

    Coarser levels are averages, which hide what is small and bright. Damaged parts are left out.

    Args:
        raster: the file.
        plane: which one.
        most: pixels of the level, and of what is returned.

    Raises:
        ImageError: no part of the level can be read.
    """
    sizes = raster.scenes[plane.scene].levels
    level = _choose_level(sizes, most=max(most, 1))
    height, width = sizes[level]
    step = math.ceil(math.sqrt(height * width / most))
    band = height if height * width <= _AT_ONCE else _BAND
    found, reason = [], ""
    rows = [(top, min(band, height - top)) for top in range(0, height, band)]
    while rows:
        top, count = rows.pop()
        try:
            found.append(raster.read(plane, level, (top, 0, count, width))[::step, ::step])
        except Exception as error:
            if isinstance(error, ResUNetRayError) and not isinstance(error, ImageError):
                raise  # a storage that does not answer is no damage
            reason = str(error)
            if count > _LEAST_BAND:
                half = count // 2
                rows += [(top, half), (top + half, count - half)]
    if not found:
        raise ImageError(f"no part of its level of {height} x {width} can be read: {reason}")
    return np.concatenate(found)


def _choose_level(sizes: Sequence[tuple[int, int]], *, most: int) -> int:
    fits = (number for number, (height, width) in enumerate(sizes) if height * width <= most)
    return next(fits, len(sizes) - 1)
