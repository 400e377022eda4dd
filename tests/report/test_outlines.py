"""Outlines show each nucleus on its image, also where nuclei touch or are cut by the edge."""

import numpy as np

from resunet_ray.report.outlines import draw_outlines


def test_each_nucleus_has_a_closed_outline_on_its_own_pixels() -> None:
    labels = np.zeros((7, 11), np.int32)
    labels[1:6, 0:4] = 1  # at the edge of the image
    labels[1:6, 4:9] = 2  # touches the first
    image = np.full((7, 11, 3), 9, np.uint8)
    marked = draw_outlines(image, labels, colour=(1, 2, 3))
    inside = np.zeros(labels.shape, bool)
    inside[2:5, 1:3] = inside[2:5, 5:8] = True
    expected = np.where((labels > 0) & ~inside, 1, 9)
    np.testing.assert_array_equal(marked[..., 0], expected)
    assert (image == 9).all(), "the image itself is not changed"
