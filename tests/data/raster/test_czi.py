"""CZI of bright field is read as a slide; what OpenSlide cannot read of CZI is refused by name."""

from pathlib import Path

import numpy as np
import pytest
from czi_files import draw_czi

from resunet_ray.data.slides import Slide
from resunet_ray.errors import ImageError

COLOUR = np.random.default_rng(0).integers(0, 256, (150, 210, 3), np.uint8)


def test_bright_field_is_read_as_written(tmp_path: Path) -> None:
    slide = Slide(draw_czi(tmp_path / "a.czi", COLOUR, microns=0.25), name="a.czi")
    assert (slide.info.format, slide.info.pixel) == ("zeiss", (0.25, 0.25))
    np.testing.assert_array_equal(slide.read(0, 0, 150, 210, scale=1.0), COLOUR)
    np.testing.assert_array_equal(slide.read(30, 40, 70, 80, scale=1.0), COLOUR[30:100, 40:120])


@pytest.mark.parametrize(
    ("image", "channels", "found"),
    [
        (COLOUR[..., 0], 1, "GRAY8 is not supported"),
        (COLOUR[..., 0].astype(np.uint16), 1, "GRAY16 is not supported"),
        (COLOUR, 2, "channel 1"),
    ],
)
def test_fluorescence_is_refused_by_name(
    tmp_path: Path, image: np.ndarray, channels: int, found: str
) -> None:
    path = draw_czi(tmp_path / "a.czi", image, channels=channels)
    with pytest.raises(ImageError, match=f"^a.czi cannot be opened as a slide: .*{found}"):
        Slide(path, name="a.czi")


def test_a_file_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    content = Path(draw_czi(tmp_path / "a.czi", COLOUR)).read_bytes()
    for end in np.linspace(0, len(content) - 1, 40).astype(int):
        (tmp_path / "a.czi").write_bytes(content[:end])
        with pytest.raises(ImageError):  # noqa: PT012 (opening or reading it)
            slide = Slide(str(tmp_path / "a.czi"), name="a.czi")
            slide.read(0, 0, 150, 210, scale=1.0)
