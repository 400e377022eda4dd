"""Polygons to pixels: a pixel is inside if its centre is."""

import numpy as np
import shapely
from jaxtyping import Bool


def fill_polygon(polygon: shapely.Geometry, shape: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """Return which pixels have their centre inside a polygon, or inside one of several.

    Seen along a row from the left, every edge leads in or out. A centre on an edge is inside if
    the polygon is to its right.

    Args:
        polygon: x and y in pixels; the centre of the first pixel is 0.5.
        shape: height and width of the pixels. What lies beyond is left out.
    """
    height, width = shape
    rings = shapely.get_rings(shapely.get_parts(polygon))
    points, ring = shapely.get_coordinates(rings, return_index=True)
    edges = np.concatenate([points[:-1], points[1:]], axis=1)[ring[1:] == ring[:-1]]
    edges = np.where(edges[:, 1:2] <= edges[:, 3:], edges, edges[:, [2, 3, 0, 1]])  # downwards
    x, y, end_x, end_y = edges.T
    first, end = (np.ceil(edge - 0.5).clip(0, height).astype(np.intp) for edge in (y, end_y))
    # One crossing for each row of centres between an edge's ends.
    edge = np.repeat(np.arange(len(edges)), end - first)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(end - first) - end, end - first)
    slope = (end_x - x)[edge] / (end_y - y)[edge]
    crossing = x[edge] + (row + 0.5 - y[edge]) * slope
    turns = np.zeros((height, width + 1), np.uint8)
    np.add.at(turns, (row, np.floor(crossing + 0.5).clip(0, width).astype(np.intp)), 1)
    inside: Bool[np.ndarray, "h w"] = np.bitwise_xor.accumulate(turns & 1, axis=1)[:, :-1] > 0
    return inside
