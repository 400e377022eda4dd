"""The picture of a scored image shows each nucleus in the colour of what happened to it."""

import numpy as np

from resunet_ray.model.matching import Outcome, Outcomes
from resunet_ray.pictures import OUTCOME_COLOURS, draw_outcomes


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
