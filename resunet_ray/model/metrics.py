"""Pixel scores: first the four counts, then any score computed from them.

A histogram of the probability over nucleus and background pixels holds the counts at every
threshold. Histograms and counts add up, over the parts of an image or over images.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int64, UInt8

NUM_BINS = 256
THRESHOLDS = np.arange(1, NUM_BINS) / NUM_BINS
"""The thresholds that a histogram can distinguish: k / 256."""
SCORE_NAMES = ("accuracy", "f1", "jaccard", "recall", "precision")
"""The baseline's five scores, in its order."""


class Counts(NamedTuple):
    """True and false positives and negatives, in pixels: single numbers, or arrays of them."""

    tp: Int64[np.ndarray, "*n"]
    fp: Int64[np.ndarray, "*n"]
    fn: Int64[np.ndarray, "*n"]
    tn: Int64[np.ndarray, "*n"]


def count_pixels(found: UInt8[np.ndarray, "h w"], mask: UInt8[np.ndarray, "h w"]) -> Counts:
    """Count the pixels of an image; both masks hold 0 or 1."""
    tn, fp, fn, tp = np.bincount((2 * mask + found).ravel(), minlength=4)
    return Counts(*(np.asarray(count) for count in (tp, fp, fn, tn)))


def histogram(
    probability: Float32[np.ndarray, "h w"], mask: UInt8[np.ndarray, "h w"]
) -> Int64[np.ndarray, "2 bins"]:
    """Count the pixels in `NUM_BINS` equal ranges of the probability.

    Row 0 is the background, row 1 the nuclei.
    """
    bins = np.minimum((probability * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    bins += NUM_BINS * mask.astype(np.int64)
    return np.bincount(bins.ravel(), minlength=2 * NUM_BINS).reshape(2, NUM_BINS)


def counts_by_threshold(histograms: Int64[np.ndarray, "*n 2 bins"]) -> Counts:
    """Return the counts at each of `THRESHOLDS`, along a new last axis.

    A pixel counts as nucleus if its probability is at least the threshold.
    """
    total = histograms.sum(axis=-1, keepdims=True)
    below = np.cumsum(histograms, axis=-1)[..., :-1]
    above = total - below
    return Counts(
        tp=above[..., 1, :], fp=above[..., 0, :], fn=below[..., 1, :], tn=below[..., 0, :]
    )


def score_counts(counts: Counts) -> dict[str, Float[np.ndarray, "*n"]]:
    """Compute the five scores of each set of counts.

    If neither the true nor the found mask holds a nucleus, all five are 1. Any other ratio with a
    zero denominator is 0.
    """
    tp, fp, fn, tn = (np.asarray(count, dtype=np.float64) for count in counts)
    empty = tp + fp + fn == 0
    ratios = {
        "accuracy": (tp + tn, tp + fp + fn + tn),
        "f1": (2 * tp, 2 * tp + fp + fn),
        "jaccard": (tp, tp + fp + fn),
        "recall": (tp, tp + fn),
        "precision": (tp, tp + fp),
    }
    return {
        name: np.where(empty, 1.0, above / np.maximum(below, 1))
        for name, (above, below) in ratios.items()
    }


def pooled_scores(counts: Counts) -> dict[str, float]:
    """Compute the scores of the pixels of all images together."""
    pooled = Counts(*(np.asarray(np.sum(count)) for count in counts))
    return {name: float(value) for name, value in score_counts(pooled).items()}
