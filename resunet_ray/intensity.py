"""One intensity scale for images from any microscope: two percentiles become 0 and 255.

Training and segmentation use the same scale.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Float64, Int64, UInt8, UInt16

from resunet_ray.compiled import compiled

Range = tuple[float, float]
"""The intensities that become 0 and 255."""
Counts = Int64[np.ndarray, " levels"]
"""How often each level occurs."""
Values = UInt8[np.ndarray, " n"] | UInt16[np.ndarray, " n"]

_PERCENTILES = (1.0, 99.8)  # a few hot pixels must not darken all the others
# A smaller difference is noise and stays faint: levels, and a share of the upper one. Compression
# alone changes empty glass by 8 levels, 3% of white; the least in 664 labelled images is 32%.
_LEAST_EXTENT, _LEAST_CONTRAST = 8.0, 0.15
# Counts of a camera may begin anywhere, so only their noise tells whether there is anything to see:
# between the two percentiles of noise alone are 5.2 of its standard deviations.
_LEAST_DEVIATIONS = 10.0
_SAMPLE = 2**22  # values that percentiles are taken of
_BIT_DEPTHS = (8, 10, 12, 14, 16)
_COUNTS = 2**16  # values that 16 bits have: more are looked up in a table


def measure_range(image: UInt8[np.ndarray, "h w c"]) -> Range:
    """Return the range of a whole image, over all of its channels so that colours are kept.

    If there is hardly any contrast, a bright image stays bright, and a dark one dark.
    """
    low, high = find_percentiles(image, _PERCENTILES)
    missing = max(0.0, max(_LEAST_EXTENT, _LEAST_CONTRAST * high) - (high - low))
    return low - missing * low / 255, high + missing * (1 - low / 255)


def find_percentiles(image: UInt8[np.ndarray, "h w c"], shares: Range) -> Range:
    """Return the levels at two percentiles, counted over all channels."""
    counts = count_levels(image).cumsum()
    low, high = (float(np.searchsorted(counts, share / 100 * counts[-1])) for share in shares)
    return low, high


def count_levels(image: UInt8[np.ndarray, "..."]) -> Counts:
    """Return how often each level occurs, over all channels."""
    return _count(image, num_levels=256)


def _count(values: np.ndarray, *, num_levels: int) -> Counts:
    counts = _count_flat(np.ascontiguousarray(values).reshape(-1), num_levels)
    return counts.sum(axis=0)  # type: ignore[no-any-return]


@compiled
def _count_flat(values: Values, num_levels: int) -> Int64[np.ndarray, "4 levels"]:
    # Neighbours are often equal, and a processor waits before it counts the same number again.
    counts = np.zeros((4, num_levels), np.int64)
    even = len(values) - len(values) % 4
    for start in range(0, even, 4):
        counts[0, values[start]] += 1
        counts[1, values[start + 1]] += 1
        counts[2, values[start + 2]] += 1
        counts[3, values[start + 3]] += 1
    for index in range(even, len(values)):
        counts[0, values[index]] += 1
    return counts


def measure_counts(values: np.ndarray) -> Range:
    """Return the range of counts of any type, which hot pixels and an offset do not change.

    Args:
        values: a whole image, or what stands for it, (h, w) or (h, w, c). NaN and infinity do not
            count, nor do zeros far below everything else, with which software fills gaps.
    """
    sample = _sample(values)
    if not np.isfinite(sample).any():
        return 0.0, 1.0
    if sample.dtype == np.uint16:
        (low, high), noise = _measure_few(sample, first=_first_of(values.dtype))
    else:
        (low, high), noise = _measure_any(sample)
    # Of differences between neighbours, most are noise: 0.6745 is the median of |z|.
    deviation = noise / 0.6745 / np.sqrt(2)
    least = max(_LEAST_DEVIATIONS * deviation, abs(high) * 1e-6, 1e-12)
    return low, max(high, low + least)


def _measure_few(sample: UInt16[np.ndarray, "..."], *, first: int) -> tuple[Range, float]:
    """Return the range of values, and the median difference of neighbours, by counting each."""
    counts = _count(sample, num_levels=_COUNTS)
    filled = counts.copy()
    filled[-first] = 0
    low, high = (first + float(one) for one in _percentiles_of(counts, _PERCENTILES))
    if 0 < filled.sum() < counts.sum():
        lowest, highest = (first + float(one) for one in _percentiles_of(filled, _PERCENTILES))
        low, high = _choose((low, high), (lowest, highest))
    one, other = sample[:, 1:], sample[:, :-1]
    if not one.size:
        return (low, high), 0.0
    steps = _count(np.maximum(one, other) - np.minimum(one, other), num_levels=_COUNTS)
    return (low, high), float(_percentiles_of(steps, (50.0,))[0])


def _measure_any(sample: Float64[np.ndarray, "..."]) -> tuple[Range, float]:
    """Return the same of values that are too many to count each."""
    found = sample[np.isfinite(sample)]
    low, high = map(float, np.percentile(found, _PERCENTILES))
    filled = found[found != 0]
    if 0 < filled.size < found.size:
        lowest, highest = map(float, np.percentile(filled, _PERCENTILES))
        low, high = _choose((low, high), (lowest, highest))
    with np.errstate(invalid="ignore"):  # infinity less infinity
        steps = np.abs(np.diff(sample, axis=1))
    steps = steps[np.isfinite(steps)]
    return (low, high), float(np.median(steps)) if steps.size else 0.0


def _choose(whole: Range, filled: Range) -> Range:
    """Choose the range of what is not 0, if 0 is far below it."""
    return filled if filled[0] > filled[1] - filled[0] else whole


def _sample(values: np.ndarray) -> np.ndarray:
    """Return some of the values: as float64 or, if they have 16 bits or less, counted from 0."""
    step = max(1, int(np.ceil(np.sqrt(values.size / _SAMPLE))))
    some = values[::step, ::step]
    if values.dtype.kind not in "biu" or values.dtype.itemsize > 2:
        return some.astype(np.float64)
    if values.dtype.kind != "i":
        return some.astype(np.uint16, copy=False)
    return some.astype(np.int16).view(np.uint16) ^ np.uint16(_COUNTS // 2)


def _first_of(dtype: np.dtype) -> int:
    """Return the value that is 0 in a sample of a type of 16 bits or less."""
    return -(_COUNTS // 2) if dtype.kind == "i" else 0


def _percentiles_of(counts: Counts, shares: Sequence[float]) -> np.ndarray:
    """Return percentiles as NumPy does, of values from 0 that are given by their counts."""
    ends = np.cumsum(counts)
    places = np.asarray(shares) / 100 * (ends[-1] - 1)
    below = np.searchsorted(ends, np.floor(places), side="right")
    above = np.searchsorted(ends, np.ceil(places), side="right")
    return np.asarray(below + (above - below) * (places - np.floor(places)))


def guess_range(values: np.ndarray, *, hot: bool = False) -> Range:
    """Return the range of the smallest of 8, 10, 12, 14 and 16 bits that holds all values.

    This is how bundles read counts that see intensities as stored, and how colours are read.

    Args:
        values: a whole image, or what stands for it, in whole numbers from 0.
        hot: leave out the brightest values, which may be hot pixels.
    """
    largest = int(values.max(initial=0))
    if hot and values.size:
        sample = _sample(values)
        if sample.dtype == np.uint16:
            counts = _count(sample, num_levels=_COUNTS)
            largest = int(np.ceil(_percentiles_of(counts, _PERCENTILES[1:])[0]))
        else:
            largest = int(np.ceil(np.percentile(sample, _PERCENTILES[1])))
    return 0.0, float(next((2**bits - 1 for bits in _BIT_DEPTHS if largest < 2**bits), 2**16 - 1))


def scale_counts(values: np.ndarray, levels: Range) -> np.ndarray:
    """Return counts of any type as uint8, with their range stretched to 0 to 255."""
    if values.dtype.kind in "iu" and values.dtype.itemsize == 2 and values.size > _COUNTS:
        native = values.astype(values.dtype.newbyteorder("="), copy=False)
        table = scale_counts(np.arange(_COUNTS, dtype=np.uint16).view(native.dtype), levels)
        return table.take(native.view(np.uint16))
    low, high = levels
    exact = values.dtype.itemsize > 2 and values.dtype != np.float32  # float32 has 24 bits
    scaled: np.ndarray = values.astype(np.float64 if exact else np.float32)
    scaled -= low
    scaled *= 255 / (high - low)
    grey: np.ndarray = np.clip(np.rint(np.nan_to_num(scaled, nan=0.0)), 0, 255).astype(np.uint8)
    return grey


def stretch(
    image: UInt8[np.ndarray, "h w c"], levels: Range | None = None
) -> UInt8[np.ndarray, "h w c"]:
    """Return the image with its range stretched to 0 to 255 and clipped there.

    Args:
        image: the image, or any part of it.
        levels: range of the whole image. None if `image` is the whole image.
    """
    low, high = levels or measure_range(image)
    table = np.clip(np.rint((np.arange(256) - low) * (255 / (high - low))), 0, 255).astype(np.uint8)
    return cv2.LUT(np.ascontiguousarray(image), table).reshape(image.shape)
