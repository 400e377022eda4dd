"""One intensity scale for images from any microscope: two percentiles become 0 and 255.

Training and segmentation use the same scale.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Int64, UInt8

from resunet_ray.compiled import compiled

Range = tuple[float, float]
"""The intensities that become 0 and 255."""

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


def count_levels(image: UInt8[np.ndarray, "..."]) -> Int64[np.ndarray, "256"]:
    """Return how often each level occurs, over all channels."""
    return _count(np.ascontiguousarray(image).reshape(-1))


@compiled
def _count(levels: UInt8[np.ndarray, " n"]) -> Int64[np.ndarray, "256"]:
    # Neighbours are often equal, and a processor waits before it counts the same number again.
    counts = np.zeros((4, 256), np.int64)
    even = len(levels) - len(levels) % 4
    for start in range(0, even, 4):
        counts[0, levels[start]] += 1
        counts[1, levels[start + 1]] += 1
        counts[2, levels[start + 2]] += 1
        counts[3, levels[start + 3]] += 1
    for index in range(even, len(levels)):
        counts[0, levels[index]] += 1
    total: Int64[np.ndarray, 256] = counts.sum(axis=0)
    return total


def measure_counts(values: np.ndarray) -> Range:
    """Return the range of counts of any type, which hot pixels and an offset do not change.

    Args:
        values: a whole image, or what stands for it, (h, w) or (h, w, c). NaN and infinity do not
            count, nor do zeros far below everything else, with which software fills gaps.
    """
    sample = _sample(values)
    few = sample.dtype.kind == "i"
    noise = np.abs(np.diff(sample, axis=1))
    found = sample.ravel() if few else sample[np.isfinite(sample)]
    noise = noise.ravel() if few else noise[np.isfinite(noise)]
    if not found.size:
        return 0.0, 1.0
    low, high = _percentiles(found, _PERCENTILES)
    if (filled := found[found != 0]).size and filled.size < found.size:
        lowest, highest = _percentiles(filled, _PERCENTILES)
        if lowest > highest - lowest:
            low, high = lowest, highest
    # Of differences between neighbours, most are noise: 0.6745 is the median of |z|.
    median = float(_percentiles(noise, (50.0,))[0]) if noise.size else 0.0
    deviation = median / 0.6745 / np.sqrt(2)
    least = max(_LEAST_DEVIATIONS * deviation, abs(high) * 1e-6, 1e-12)
    return float(low), float(max(high, low + least))


def _sample(values: np.ndarray) -> np.ndarray:
    """Return some of the values, as integers if they are so few that each can be counted."""
    step = max(1, int(np.ceil(np.sqrt(values.size / _SAMPLE))))
    few = values.dtype.kind in "biu" and values.dtype.itemsize <= 2
    return values[::step, ::step].astype(np.int64 if few else np.float64)


def _percentiles(values: np.ndarray, shares: Sequence[float]) -> np.ndarray:
    """Return percentiles as NumPy does; of integers, which are few, by counting each."""
    if values.dtype.kind != "i":
        return np.asarray(np.percentile(values, shares))
    least = values.min()
    ends = np.cumsum(np.bincount(values.ravel() - least))
    places = np.asarray(shares) / 100 * (values.size - 1)
    below = np.searchsorted(ends, np.floor(places), side="right")
    above = np.searchsorted(ends, np.ceil(places), side="right")
    return np.asarray(least + below + (above - below) * (places - np.floor(places)))


def guess_range(values: np.ndarray, *, hot: bool = False) -> Range:
    """Return the range of the smallest of 8, 10, 12, 14 and 16 bits that holds all values.

    This is how bundles read counts that see intensities as stored, and how colours are read.

    Args:
        values: a whole image, or what stands for it, in whole numbers from 0.
        hot: leave out the brightest values, which may be hot pixels.
    """
    largest = int(values.max(initial=0))
    if hot and values.size:
        largest = int(np.ceil(_percentiles(_sample(values), _PERCENTILES[1:])[0]))
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
