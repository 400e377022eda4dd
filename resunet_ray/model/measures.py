"""Measures of nuclei: place, size, shape, and the polygon along their pixels' edges.

Sums are of whole numbers, counted from the nucleus's own corner, so that its measures do not depend
on the window around it.
"""

import numpy as np
import pyarrow as pa
import shapely
from jaxtyping import Float32, Float64, Int32, Int64

from resunet_ray.compiled import compiled
from resunet_ray.model.outlines import Outlines, trace_outlines
from resunet_ray.schema import INSTANCE

_CUT = 1 - np.sqrt(0.5)
"""By how much a corner shortens the line through the middles of the edges, pixels."""


def measure_instances(
    labels: Int32[np.ndarray, "h w"],
    probability: Float32[np.ndarray, "h w"],
    *,
    corner: tuple[int, int] = (0, 0),
    bounds: tuple[int, int] | None = None,
    scale: float = 1.0,
) -> pa.StructArray:
    """Measure each instance, in the order of their numbers, which run from 1 without gaps.

    Args:
        labels: a window of an image.
        probability: of the window.
        corner: row and column where the window begins.
        bounds: height and width of the image; the window's by default.
        scale: side of a pixel, in level-0 pixels.

    Returns:
        One item for each instance, of type INSTANCE.
    """
    outlines = trace_outlines(labels, corner=corner)
    if not len(outlines.owner):
        return pa.array([], INSTANCE)
    low, high = outlines.boxes
    sums, scores = _sum_up(labels, probability, low - corner[::-1])
    area, first, second = sums[:, 0], sums[:, 1:3], sums[:, 3:]
    centroid = (first + area[:, None] * (low + 0.5)) / area[:, None] * scale
    height, width = bounds or labels.shape
    measures = {
        "centroid_y": centroid[:, 1],
        "centroid_x": centroid[:, 0],
        "area_px": area * scale**2,
        "perimeter_px": _perimeters(outlines) * scale,
        "eccentricity": _eccentricities(area, first, second),
        "score": scores / area,
        "touches_edge": (low <= 0).any(axis=1) | (high >= (width, height)).any(axis=1),
        "polygon": shapely.to_wkb(outlines.build_polygons(scale=scale)),
    }
    arrays = [pa.array(measures[field.name], field.type) for field in INSTANCE]
    return pa.StructArray.from_arrays(arrays, fields=list(INSTANCE))


@compiled
def _sum_up(
    labels: Int32[np.ndarray, "h w"],
    probability: Float32[np.ndarray, "h w"],
    low: Int64[np.ndarray, "n 2"],
) -> tuple[Int64[np.ndarray, "n 6"], Float64[np.ndarray, " n"]]:
    """Sum 1, x, y, x², y² and xy over the pixels of each instance, and their probability.

    Args:
        labels: numbers from 1 without gaps.
        probability: of the same pixels.
        low: column and row where each instance's box begins, from which x and y are counted.
    """
    sums = np.zeros((len(low), 6), np.int64)
    scores = np.zeros(len(low), np.float64)
    for row in range(labels.shape[0]):
        column = 0
        while column < labels.shape[1]:
            label, start = labels[row, column], column
            if label == 0:
                column += 1
                continue
            number = label - 1
            score = scores[number]
            while column < labels.shape[1] and labels[row, column] == label:
                score += probability[row, column]
                column += 1
            scores[number] = score
            y, length = row - low[number, 1], column - start
            first, last = start - low[number, 0], column - 1 - low[number, 0]
            along = (first + last) * length // 2
            sums[number, 0] += length
            sums[number, 1] += along
            sums[number, 2] += y * length
            sums[number, 3] += _square_pyramid(last) - _square_pyramid(first - 1)
            sums[number, 4] += y * y * length
            sums[number, 5] += along * y
    return sums, scores


@compiled
def _square_pyramid(last: int) -> int:
    """Return the sum of the squares up to that of `last`; 0 for −1."""
    return last * (last + 1) * (2 * last + 1) // 6


def _perimeters(outlines: Outlines) -> Float64[np.ndarray, " count"]:
    """Measure the line through the middles of the pixels' edges.

    Along the edges themselves, a slanted border is up to 41% too long.
    """
    edges = np.abs(outlines.following - outlines.corners).sum(axis=1)
    perimeters: Float64[np.ndarray, " count"] = outlines.sum(edges - _CUT)
    return perimeters


def _eccentricities(
    area: Int64[np.ndarray, " n"], first: Int64[np.ndarray, "n 2"], second: Int64[np.ndarray, "n 3"]
) -> Float64[np.ndarray, " n"]:
    """Of the ellipse with the same second moments. A pixel's own moment is 1/12 along each axis.

    Args:
        area: number of pixels.
        first: sums of x and y over them.
        second: sums of x², y² and xy.
    """
    mean_x, mean_y = (first / area[:, None]).T
    xx, yy, xy = (second / area[:, None]).T
    xx, yy, xy = xx - mean_x**2 + 1 / 12, yy - mean_y**2 + 1 / 12, xy - mean_x * mean_y
    middle, half = (xx + yy) / 2, np.sqrt(((xx - yy) / 2) ** 2 + xy**2)
    eccentricity: Float64[np.ndarray, " n"] = np.sqrt(
        np.clip(1 - (middle - half) / (middle + half), 0, 1)
    )
    return eccentricity
