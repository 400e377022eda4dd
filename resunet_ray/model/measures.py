"""Measures of nuclei: place, size, shape, and the polygon along their pixels' edges."""

import warnings

import numpy as np
import pyarrow as pa
import rasterio.errors
import rasterio.features
import shapely
from jaxtyping import Float32, Float64, Int32

from resunet_ray.schema import INSTANCE

# An image has no place on Earth.
warnings.filterwarnings("ignore", category=rasterio.errors.NotGeoreferencedWarning)


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
    count = int(labels.max(initial=0))
    if count == 0:
        return pa.array([], INSTANCE)
    rows, columns = np.nonzero(labels)
    numbers = labels[rows, columns]

    def total(values: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " count"]:
        return np.bincount(numbers, weights=values, minlength=count + 1)[1:]

    area = np.bincount(numbers, minlength=count + 1)[1:]
    y, x = rows + 0.5, columns + 0.5  # of the pixels' centres
    mean_y, mean_x = total(y) / area, total(x) / area
    dy, dx = y - mean_y[numbers - 1], x - mean_x[numbers - 1]
    polygons = shapely.transform(
        outline_instances(labels), lambda points: points + np.array(corner[::-1])
    )
    left, top, right, bottom = shapely.bounds(polygons).T
    height, width = bounds or labels.shape
    measures = {
        "centroid_y": (mean_y + corner[0]) * scale,
        "centroid_x": (mean_x + corner[1]) * scale,
        "area_px": area * scale**2,
        "perimeter_px": _perimeters(polygons) * scale,
        "eccentricity": _eccentricities(
            total(dy * dy) / area, total(dx * dx) / area, total(dy * dx) / area
        ),
        "score": total(probability[rows, columns].astype(np.float64)) / area,
        "touches_edge": (top <= 0) | (left <= 0) | (bottom >= height) | (right >= width),
        "polygon": shapely.to_wkb(
            polygons if scale == 1 else shapely.transform(polygons, lambda points: points * scale)
        ),
    }
    arrays = [pa.array(measures[field.name], field.type) for field in INSTANCE]
    return pa.StructArray.from_arrays(arrays, fields=list(INSTANCE))


def outline_instances(labels: Int32[np.ndarray, "h w"]) -> np.ndarray:
    """Trace each instance along the edges of its pixels, so that its area is their number."""
    polygons = np.empty(int(labels.max(initial=0)), dtype=object)
    for outline, number in rasterio.features.shapes(labels, mask=labels > 0, connectivity=4):
        assert polygons[int(number) - 1] is None, f"instance {number} is in two pieces"
        shell, *holes = outline["coordinates"]
        polygons[int(number) - 1] = shapely.Polygon(shell, holes)
    return polygons


def _perimeters(polygons: np.ndarray) -> Float64[np.ndarray, " n"]:
    """Measure the line through the middles of the pixels' edges.

    Along the edges themselves, a slanted border is up to 41% too long.
    """
    edges = shapely.segmentize(polygons, 1.0)
    rings, owner = shapely.get_rings(edges, return_index=True)
    points, ring = shapely.get_coordinates(rings, return_index=True)
    inside = ring[1:] == ring[:-1]
    middles, middle_ring = ((points[1:] + points[:-1]) / 2)[inside], ring[1:][inside]
    steps = np.linalg.norm(np.diff(middles, axis=0), axis=1) * (middle_ring[1:] == middle_ring[:-1])
    length = np.bincount(middle_ring[1:], weights=steps, minlength=len(rings))
    first = np.searchsorted(middle_ring, np.arange(len(rings)))
    last = np.searchsorted(middle_ring, np.arange(len(rings)), side="right") - 1
    length += np.linalg.norm(middles[last] - middles[first], axis=1)
    around: Float64[np.ndarray, " n"] = np.bincount(owner, weights=length, minlength=len(polygons))
    return around


def _eccentricities(
    yy: Float64[np.ndarray, " n"], xx: Float64[np.ndarray, " n"], yx: Float64[np.ndarray, " n"]
) -> Float64[np.ndarray, " n"]:
    """Of the ellipse with the same second moments. A pixel's own moment is 1/12 along each axis."""
    yy, xx = yy + 1 / 12, xx + 1 / 12
    middle, half = (yy + xx) / 2, np.sqrt(((yy - xx) / 2) ** 2 + yx**2)
    eccentricity: Float64[np.ndarray, " n"] = np.sqrt(
        np.clip(1 - (middle - half) / (middle + half), 0, 1)
    )
    return eccentricity
