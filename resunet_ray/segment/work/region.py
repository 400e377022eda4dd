"""What one region comes to: the probability of its pixels → mask, instances with their measures, and sums for its scores."""

import warnings

import cv2
import numpy as np
import rasterio.errors
import rasterio.features
import shapely
from jaxtyping import Float32, Float64, Int32, UInt8

from resunet_ray.config import InstanceConfig
from resunet_ray.data.images import encode_labels, encode_png
from resunet_ray.model.instances import find_instances
from resunet_ray.model.metrics import count_pixels
from resunet_ray.model.tiling import Box
from resunet_ray.segment.rows import Row
from resunet_ray.segment.work.objects import Found, Objects

warnings.filterwarnings("ignore", category=rasterio.errors.NotGeoreferencedWarning)  # an image has no place on Earth

UNCERTAIN = (0.25, 0.75)
"""A pixel whose probability lies between is uncertain."""


def describe_image(
    probability: Float32[np.ndarray, "h w"],
    image: UInt8[np.ndarray, "h w 3"],
    *,
    config: InstanceConfig,
    name: str,
    truth: UInt8[np.ndarray, "h w"] | None = None,
    labels: bool = False,
    probabilities: bool = False,
) -> Row:
    """The columns of REGIONS that the pixels of a whole image decide (see `describe_region`).

    Args:
        probability: of each pixel to be nucleus.
        image: what it was found in.
        config: threshold and instances.
        name: what errors call the image.
        truth: a true mask, 0 or 1.
        labels: keep the label image as well.
        probabilities: keep the probability as well, in 255 steps.
    """
    found = find_instances(probability, config=config)
    whole = Box(0, found.shape[0], 0, found.shape[1])
    objects = Objects(found, probability, [Found(whole, found, probability)], np.empty((0, 2)))
    keep = {"labels": labels, "probabilities": probabilities}
    row = describe_region(objects, image, bounds=found.shape, scale=1.0, name=name, **keep)
    if truth is not None:
        row |= {count: int(value) for count, value in count_pixels((found > 0).astype(np.uint8), truth)._asdict().items()}
    return row


def describe_region(
    objects: Objects,
    image: UInt8[np.ndarray, "h w 3"],
    *,
    bounds: tuple[int, int],
    scale: float,
    name: str,
    labels: bool = False,
    probabilities: bool = False,
) -> Row:
    """The columns of REGIONS that the pixels decide.

    Args:
        objects: what was found in the region.
        image: its window.
        bounds: height and width of the whole image.
        scale: side of a pixel, in level-0 pixels.
        name: what errors call the image.
        labels: keep the label image as well.
        probabilities: keep the probability as well, in 255 steps.

    Raises:
        ImageError: more instances than a label image can number.
    """
    mask = (objects.labels > 0).astype(np.uint8)
    instances = [
        instance
        for found in objects.own
        for instance in measure_instances(
            found.labels, found.probability, corner=(found.window.top, found.window.left), bounds=bounds, scale=scale
        )
    ]
    return {
        "mask": encode_png(mask * np.uint8(255)),
        "labels": encode_labels(objects.labels, name=name) if labels else None,
        "probability": encode_png(np.rint(objects.probability * 255).astype(np.uint8)) if probabilities else None,
        "instances": instances,
        "num_instances": len(instances),
        "neighbours": (objects.neighbours * scale).tolist(),
        "pixels": mask.size,
        "foreground_pixels": int(mask.sum()),
        **_sum_certainty(objects.probability),
        **_sum_sharpness(image),
    }


def measure_instances(
    labels: Int32[np.ndarray, "h w"],
    probability: Float32[np.ndarray, "h w"],
    *,
    corner: tuple[int, int] = (0, 0),
    bounds: tuple[int, int] | None = None,
    scale: float = 1.0,
) -> list[Row]:
    """The measures of each instance, schema INSTANCE, in the order of their numbers, which run from 1 without gaps.

    Args:
        labels: a window of an image.
        probability: of the same.
        corner: row and column where the window begins.
        bounds: height and width of the image; the window's by default.
        scale: side of a pixel, in level-0 pixels.
    """
    count = int(labels.max(initial=0))
    if count == 0:
        return []
    rows, columns = np.nonzero(labels)
    numbers = labels[rows, columns]

    def total(values: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " count"]:
        return np.bincount(numbers, weights=values, minlength=count + 1)[1:]

    area = np.bincount(numbers, minlength=count + 1)[1:]
    y, x = rows + 0.5, columns + 0.5  # the centre of a pixel
    mean_y, mean_x = total(y) / area, total(x) / area
    dy, dx = y - mean_y[numbers - 1], x - mean_x[numbers - 1]
    polygons = shapely.transform(outline_instances(labels), lambda points: points + np.array(corner[::-1]))
    left, top, right, bottom = shapely.bounds(polygons).T
    height, width = bounds or labels.shape
    measures = {
        "centroid_y": (mean_y + corner[0]) * scale,
        "centroid_x": (mean_x + corner[1]) * scale,
        "area_px": area * scale**2,
        "perimeter_px": _perimeters(polygons) * scale,
        "eccentricity": _eccentricities(total(dy * dy) / area, total(dx * dx) / area, total(dy * dx) / area),
        "score": total(probability[rows, columns].astype(np.float64)) / area,
        "touches_edge": (top <= 0) | (left <= 0) | (bottom >= height) | (right >= width),
        "polygon": shapely.to_wkb(polygons if scale == 1 else shapely.transform(polygons, lambda points: points * scale)),
    }
    return [dict(zip(measures, values, strict=True)) for values in zip(*(m.tolist() for m in measures.values()), strict=True)]


def outline_instances(labels: Int32[np.ndarray, "h w"]) -> np.ndarray:
    """The polygon of each instance, along the edges of its pixels: its area is the number of its pixels."""
    polygons = np.empty(int(labels.max(initial=0)), dtype=object)
    for outline, number in rasterio.features.shapes(labels, mask=labels > 0, connectivity=4):
        assert polygons[int(number) - 1] is None, f"instance {number} is in two pieces"
        shell, *holes = outline["coordinates"]
        polygons[int(number) - 1] = shapely.Polygon(shell, holes)
    return polygons


def _perimeters(polygons: np.ndarray) -> Float64[np.ndarray, " n"]:
    """Length of the line through the middles of the pixels' edges: along the edges, a slanted border is up to 41% too long."""
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
    """Of the ellipse with the same second moments; a pixel is a square, whose own moment is 1/12 along each axis."""
    yy, xx = yy + 1 / 12, xx + 1 / 12
    middle, half = (yy + xx) / 2, np.sqrt(((yy - xx) / 2) ** 2 + yx**2)
    eccentricity: Float64[np.ndarray, " n"] = np.sqrt(np.clip(1 - (middle - half) / (middle + half), 0, 1))
    return eccentricity


def _sum_certainty(probability: Float32[np.ndarray, "h w"]) -> Row:
    """Confidence is the probability of the likelier class, entropy is in bits."""
    levels = np.bincount(np.rint(probability * 255).astype(np.int64).ravel(), minlength=256)
    p = np.clip(np.arange(256) / 255, 1e-9, 1 - 1e-9)
    entropy = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
    low, high = UNCERTAIN
    return {
        "confidence_sum": float(levels @ np.maximum(p, 1 - p)),
        "entropy_sum": float(levels @ entropy),
        "uncertain_pixels": int(levels[(p > low) & (p < high)].sum()),
    }


def _sum_sharpness(image: UInt8[np.ndarray, "h w 3"]) -> Row:
    """What the focus score is made of: the Laplacian's energy over the variance of the grey levels."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    laplacian = cv2.Laplacian(grey, cv2.CV_16S)
    return {
        "grey_sum": float(grey.sum(dtype=np.float64)),
        "grey_square_sum": float(np.square(grey, dtype=np.float64).sum()),
        "laplacian_square_sum": float(np.square(laplacian, dtype=np.float64).sum()),
    }
