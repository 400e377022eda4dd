"""Images with large nuclei are predicted smaller, and the prediction has their own size."""

from collections.abc import Sequence

import cv2
import numpy as np
import pytest

from resunet_ray.config.model import Diameter, Head
from resunet_ray.intensity import Range
from resunet_ray.model.diameter import choose_scale, estimate_diameter, predict_scaled
from resunet_ray.model.prediction import Prediction

HEADS: tuple[Head, ...] = ("distance", "centre", "diameter")


def draw_disc(diameter: int) -> np.ndarray:
    image = np.zeros((200, 240, 3), np.uint8)
    cv2.circle(image, (110, 100), diameter // 2, (255, 255, 255), -1)
    return image


class Seer:
    """Sees each image's disc, but none as larger than 130 pixels; notes what it was given."""

    def __init__(self) -> None:
        self.sizes: list[tuple[int, int]] = []

    def __call__(
        self, images: Sequence[np.ndarray], _: Sequence[Range | None] | None, packed: bool
    ) -> list[Prediction]:
        self.sizes += [image.shape[:2] for image in images]
        found = [self._see(image) for image in images]
        return [one.pack() for one in found] if packed else found

    def _see(self, image: np.ndarray) -> Prediction:
        maps = np.zeros((5, *image.shape[:2]), np.float32)
        inside = image[..., 0] > 127
        rows, columns = np.nonzero(inside)
        maps[0, inside] = 1
        maps[2, inside], maps[3, inside] = rows.mean() - rows, columns.mean() - columns
        maps[4] = min(130, 2 * np.sqrt(inside.sum() / np.pi))
        return Prediction(maps, HEADS)


@pytest.mark.parametrize(
    ("disc", "diameter", "runs"),
    [(40, "auto", 1), (90, "auto", 2), (180, "auto", 2), (90, "none", 1), (90, 90.0, 1)],
)
def test_an_image_is_seen_at_a_scale_at_which_its_nuclei_are_known(
    disc: int, diameter: Diameter, runs: int
) -> None:
    seer = Seer()
    (found,) = predict_scaled(seer, [draw_disc(disc)], None, scales=[choose_scale(diameter)])
    assert len(seer.sizes) == runs
    smaller = disc > 60 and diameter != "none"
    assert (seer.sizes[-1] != (200, 240)) == smaller
    if smaller:
        assert seer.sizes[-1][0] / 200 * disc == pytest.approx(30, rel=0.5)
    assert found.probability.shape == (200, 240)
    assert estimate_diameter(found) == pytest.approx(disc, rel=0.1)
    assert found.centre is not None
    for row, column in ((100, 110), (90, 120)):
        way = found.centre[:, row, column]
        assert way == pytest.approx([100 - row, 110 - column], abs=3)


def test_without_the_head_or_nuclei_nothing_is_estimated() -> None:
    assert estimate_diameter(Prediction(np.ones((4, 8, 9), np.float32), HEADS[:2])) is None
    assert estimate_diameter(Prediction(np.zeros((5, 8, 9), np.float32), HEADS)) is None


@pytest.mark.parametrize(
    ("mpp", "bundle_mpp", "size"),
    [(0.5, 0.25, (400, 480)), (0.25, 0.5, (100, 120)), (0.5, 0.502, (200, 240))],
)
def test_an_image_is_seen_at_the_bundle_s_pixel_size(
    mpp: float, bundle_mpp: float, size: tuple[int, int]
) -> None:
    """Its nuclei's diameter does not count then, and the prediction has the image's pixels."""
    seer = Seer()
    scale = choose_scale(90.0, mpp=mpp, bundle_mpp=bundle_mpp)
    (found,) = predict_scaled(seer, [draw_disc(40)], None, scales=[scale])
    assert seer.sizes == [size]
    assert found.probability.shape == (200, 240)
    assert estimate_diameter(found) == pytest.approx(40, rel=0.1)


def test_one_pixel_size_alone_says_nothing() -> None:
    assert choose_scale("auto", mpp=0.5) is choose_scale("auto", bundle_mpp=0.5) is None
    assert choose_scale(90.0, mpp=0.5) == choose_scale(90.0) == 3.0
