"""Tissue is found on slides of every kind, and glass is not taken for it."""

import cv2
import numpy as np
import pytest

from resunet_ray.data.tissue import find_tissue

STAINS = {
    "haematoxylin": ((245, 243, 246), (120, 80, 150)),
    "pale": ((244, 244, 244), (228, 226, 232)),
    "ihc": ((240, 241, 243), (150, 110, 70)),
    "fluorescence": ((6, 6, 8), (20, 60, 200)),
    "weak fluorescence": ((3, 3, 3), (16, 16, 22)),
}


def view(
    background: tuple[int, int, int], tissue: tuple[int, int, int], *, dust: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a round piece of tissue on glass, with noise and specks of dust, and its mask."""
    rng = np.random.default_rng(0)
    truth = cv2.circle(np.zeros((500, 800), np.uint8), (300, 200), 90, 1, -1)
    picture = np.where(truth[..., None] > 0, tissue, background) + rng.normal(0, 1.5, (500, 800, 3))
    for y, x in rng.integers(0, 400, (dust, 2)):
        picture[y : y + 3, x + 400 : x + 403] = 90
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8), truth > 0


@pytest.mark.parametrize("stain", STAINS)
def test_tissue_is_found_in_every_stain(stain: str) -> None:
    picture, truth = view(*STAINS[stain])
    found = find_tissue(picture, scale=6.0)
    assert found.fluorescence == ("fluorescence" in stain)
    assert found.mask[truth].all()
    assert found.fraction == pytest.approx(truth.mean(), rel=0.25)
    squares = found.squares(5000, 8000, side=700)  # a pixel of the view is ten of the slide
    assert squares.shape == (8, 12)
    for (row, column), has_tissue in np.ndenumerate(squares):
        part = slice(70 * row, 70 * (row + 1)), slice(70 * column, 70 * (column + 1))
        assert has_tissue == found.mask[part].any()


def test_dust_beside_tissue_is_left_out_but_single_cells_are_not() -> None:
    picture, truth = view(*STAINS["haematoxylin"], dust=30)
    found = find_tissue(picture, scale=6.0)
    assert not found.mask[:, 420:].any()
    cells = np.where(truth, 245, picture[..., 0])  # only the specks are left
    specks = np.repeat(cells[..., None], 3, axis=2).astype(np.uint8)
    assert find_tissue(specks, scale=6.0).mask[:, 420:].any()


def test_empty_glass_has_no_tissue_and_a_view_without_glass_is_all_tissue() -> None:
    glass, _ = view((243, 243, 243), (243, 243, 243))
    assert find_tissue(glass, scale=6.0).fraction == 0
    stroma, _ = view((205, 165, 215), (90, 60, 150))
    assert find_tissue(stroma, scale=6.0).fraction == 1
