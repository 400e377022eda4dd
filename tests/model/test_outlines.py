"""Outlines run along the edges of pixels, around all of an instance and nothing else."""

import cv2
import numpy as np
import pytest
import shapely

from resunet_ray.model.outlines import trace_outlines


def draw(*rows: str) -> np.ndarray:
    """Labels from digits; a point is background."""
    return np.array([[int(pixel) for pixel in row.replace(".", "0")] for row in rows], np.int32)


def rings(labels: np.ndarray) -> list[list[list[tuple[float, float]]]]:
    """The corners x, y of each instance's rings, as its polygon holds them."""
    return [
        [list(ring.coords)[:-1] for ring in (polygon.exterior, *polygon.interiors)]
        for polygon in trace_outlines(labels).build_polygons()
    ]


def test_a_shell_runs_down_first_and_a_hole_to_the_right() -> None:
    labels = draw(".111", ".1.1", "1111")
    shell = [(1, 0), (1, 2), (0, 2), (0, 3), (4, 3), (4, 0)]
    assert rings(labels) == [[shell, [(2, 1), (3, 1), (3, 2), (2, 2)]]]


def test_holes_that_touch_at_a_corner_stay_two_and_one_that_touches_the_shell_stays_a_hole() -> (
    None
):
    labels = draw("1111", "1.11", "11.1", "1111")
    assert [len(found) for found in rings(labels)] == [3]
    assert rings(draw("11.", "1.1", "111"))[0][1] == [(1, 1), (2, 1), (2, 2), (1, 2)]


def test_instances_that_touch_share_an_edge() -> None:
    first, second = trace_outlines(draw("1122", "1.22")).build_polygons()
    assert first.intersection(second).length == 1
    assert first.area == 3


def test_polygons_are_valid_and_cover_exactly_the_pixels() -> None:
    """Of thousands of instances with holes, notches and diagonal contacts, many in contact."""
    rng = np.random.default_rng(0)
    count = 0
    for _ in range(60):
        height, width = rng.integers(1, 50, 2)
        share = rng.uniform(0.3, 0.9)
        # A map of three colours falls into pieces that touch one another; one is background.
        colours = (rng.random((height, width)) < share).astype(np.uint8)
        colours += colours * (rng.random((height, width)) < 0.2).astype(np.uint8)
        labels = np.zeros((height, width), np.int32)
        for colour in (1, 2):
            _, pieces = cv2.connectedComponents(
                (colours == colour).astype(np.uint8), connectivity=4
            )
            labels[pieces > 0] = pieces[pieces > 0] + labels.max()
        polygons = trace_outlines(labels).build_polygons()
        assert shapely.is_valid(polygons).all()
        np.testing.assert_array_equal(
            shapely.area(polygons), np.bincount(labels.ravel(), minlength=1)[1:]
        )
        rows, columns = np.nonzero(labels)
        own = polygons[labels[rows, columns] - 1]
        assert shapely.contains_xy(own, columns + 0.5, rows + 0.5).all()
        count += len(polygons)
    assert count > 5000


def test_an_instance_in_two_pieces_is_refused() -> None:
    with pytest.raises(AssertionError, match="instance 1 is in two pieces"):
        trace_outlines(draw("1.1"))
