"""The picture of a scored image shows each nucleus in the colour of what happened to it."""

import numpy as np

from resunet_ray.model.matching import Outcome, Outcomes
from resunet_ray.pictures import OUTCOME_COLOURS, draw_outcomes, draw_outlines


def is_coloured(picture: np.ndarray, kind: Outcome) -> np.ndarray:
    """Where the picture has the colour of one kind."""
    return np.asarray((picture == list(bytes.fromhex(OUTCOME_COLOURS[kind][1:]))).all(axis=2))


def test_outlines_lie_inside_the_nuclei_they_belong_to() -> None:
    """Two true nuclei touch; one found nucleus covers the left one. The image is scaled by 8."""
    image = np.full((40, 64, 3), 200, np.uint8)
    true, found = np.zeros((40, 64), np.int32), np.zeros((40, 64), np.int32)
    true[8:16, 8:16], true[8:16, 16:24] = 7, 3  # numbered neither from 1 nor in order
    found[8:16, 8:16] = 1
    picture = draw_outcomes(image, true, found, Outcomes(["missed", "found"], ["found"]))
    assert picture.shape == (320, 3 * 512 + 8, 3)
    drawn_image, drawn_true, drawn_found = (
        picture[:, start : start + 512] for start in (0, 516, 1032)
    )
    assert (drawn_image == 200).all()
    left, right = np.zeros((320, 512), bool), np.zeros((320, 512), bool)
    left[64:128, 64:128], right[64:128, 128:192] = True, True
    for box in (left, right):
        rows, columns = np.nonzero(box)
        box[rows.min() + 2 : rows.max() - 1, columns.min() + 2 : columns.max() - 1] = False
    np.testing.assert_array_equal(is_coloured(drawn_true, "found"), left)
    np.testing.assert_array_equal(is_coloured(drawn_true, "missed"), right)
    np.testing.assert_array_equal(is_coloured(drawn_found, "found"), left)


def test_an_image_without_nuclei_has_no_outlines() -> None:
    empty = np.zeros((40, 64), np.int32)
    picture = draw_outcomes(np.zeros((40, 64, 3), np.uint8), empty, empty, Outcomes([], []))
    assert not any(is_coloured(picture, kind).any() for kind in OUTCOME_COLOURS)


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
