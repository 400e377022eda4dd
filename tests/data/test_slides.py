"""A slide is read at any scale, in any format, and a window of it is the same however the slide is cut."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from support import write_pyramid

from resunet_ray.data import slides
from resunet_ray.data.slides import Slide, companions, is_slide
from resunet_ray.data.synthetic import generate_image
from resunet_ray.errors import ImageError, InputError


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return generate_image(500, 640, modality="stained", num_nuclei=120, rng=np.random.default_rng(5))[0]


def write_ome(path: Path, image: np.ndarray, *, axes: str, levels: int = 2, **metadata: float | str) -> None:
    with tifffile.TiffWriter(path, ome=True) as writer:
        tiles = {"tile": (64, 64), "photometric": "rgb" if axes.endswith("S") else "minisblack"}
        writer.write(image, subifds=levels - 1, metadata={"axes": axes, **metadata}, **tiles)  # type: ignore[arg-type]
        for level in range(1, levels):
            small = image[..., :: 2**level, :: 2**level] if axes[0] == "C" else image[:: 2**level, :: 2**level]
            writer.write(small, subfiletype=1, **tiles)  # type: ignore[arg-type]


def test_the_largest_level_is_what_was_written(picture: np.ndarray, tmp_path: Path) -> None:
    write_pyramid(tmp_path / "a.tiff", picture, mpp=0.4)
    write_ome(tmp_path / "b.ome.tif", picture, axes="YXS", PhysicalSizeX=400, PhysicalSizeXUnit="nm")
    write_ome(tmp_path / "c.ome.tif", np.moveaxis(picture, -1, 0), axes="CYX")
    for name, form, mpp in (("a.tiff", "tiff", 0.4), ("b.ome.tif", "ome-tiff", 0.4), ("c.ome.tif", "ome-tiff", None)):
        slide = Slide(str(tmp_path / name), name=name)
        assert (slide.info.height, slide.info.width, slide.info.format) == (500, 640, form)
        assert slide.info.mpp == (None if mpp is None else pytest.approx(mpp, rel=1e-3))
        np.testing.assert_array_equal(slide.read(0, 0, 500, 640, scale=1.0), picture)
        np.testing.assert_array_equal(slide.read(123, 45, 67, 89, scale=1.0), picture[123:190, 45:134])
        slide.close()


def test_a_scaled_window_is_the_same_however_it_is_cut(picture: np.ndarray, tmp_path: Path) -> None:
    write_pyramid(tmp_path / "a.tiff", picture)
    slide = Slide(str(tmp_path / "a.tiff"), name="a")
    for scale in (1.7, 2.0, 3.1):
        height, width = slide.size_at(scale)
        whole = slide.read(0, 0, height, width, scale=scale).astype(int)
        part = slide.read(40, 60, 90, 77, scale=scale).astype(int)
        difference = np.abs(whole[40:130, 60:137] - part)
        assert difference[2:-2, 2:-2].max() <= 2
        expected = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA).astype(int)
        assert np.abs(whole - expected).mean() < 6


def test_sixteen_bits_are_cut_down_alike_everywhere(tmp_path: Path) -> None:
    counts = np.zeros((400, 400), np.uint16)
    counts[:200], counts[200:] = 900, 3800  # of a camera of 12 bits
    write_ome(tmp_path / "a.ome.tif", counts, axes="YX")
    slide = Slide(str(tmp_path / "a.ome.tif"), name="a")
    dark, light = slide.read(0, 0, 100, 100, scale=1.0), slide.read(300, 0, 100, 100, scale=1.0)
    assert (np.unique(dark).tolist(), np.unique(light).tolist()) == ([round(900 / 4095 * 255)], [round(3800 / 4095 * 255)])


def test_what_is_a_slide_and_what_a_plain_image(picture: np.ndarray, tmp_path: Path) -> None:
    write_pyramid(tmp_path / "pyramid.tiff", picture)
    tifffile.imwrite(tmp_path / "plain.tif", picture)
    (tmp_path / "text.tif").write_bytes(b"no image")
    for name, limit, expected in (
        ("pyramid.tiff", 2**26, True),
        ("plain.tif", 2**26, False),
        ("plain.tif", 1000, True),
        ("text.tif", 1000, False),
    ):
        with (tmp_path / name).open("rb") as file:
            assert is_slide(file, max_pixels=limit) == expected, name
    slide = Slide(str(tmp_path / "plain.tif"), name="plain")
    np.testing.assert_array_equal(slide.read(10, 20, 30, 40, scale=1.0), picture[10:40, 20:60])


def test_what_cannot_be_a_slide_is_named(picture: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.svs").write_bytes(b"no image")
    tifffile.imwrite(tmp_path / "deep.tif", np.zeros((40, 50), np.float32))
    tifffile.imwrite(tmp_path / "four.tif", np.zeros((4, 40, 50), np.uint8), metadata={"axes": "CYX"}, photometric="minisblack")
    for name, message in (("text.svs", "not a TIFF"), ("deep.tif", "its values float32"), ("four.tif", "4 channels")):
        with pytest.raises(ImageError, match=rf"{name} cannot be opened as a slide: .*{message}"):
            Slide(str(tmp_path / name), name=name)
    write_pyramid(tmp_path / "large.tiff", picture)
    monkeypatch.setattr(slides, "_MAX_SIDE", 600)
    with pytest.raises(ImageError, match="large claims 500 x 640 pixels: expected at most 600 a side"):
        Slide(str(tmp_path / "large.tiff"), name="large")
    assert companions("s3://lab/a.mrxs") == ["s3://lab/a"]
    with pytest.raises(InputError, match="names other files"):
        companions("s3://lab/a.vms")
