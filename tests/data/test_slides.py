"""A slide is read at any scale, in any format, and the same however it is divided into windows."""

import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from support import REAL_SLIDES, tiff_header, write_ome, write_pyramid, write_svs

from resunet_ray.data import slides
from resunet_ray.data.raster import opening
from resunet_ray.data.raster.scene import Plane, Window, believe
from resunet_ray.data.slides import Slide, companions
from resunet_ray.data.synthetic import generate_image
from resunet_ray.errors import ImageError, InputError


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return generate_image(
        500, 640, modality="stained", num_nuclei=120, rng=np.random.default_rng(5)
    )[0]


def test_the_largest_level_is_what_was_written(picture: np.ndarray, tmp_path: Path) -> None:
    write_pyramid(tmp_path / "a.tiff", picture, mpp=0.4)
    write_ome(
        tmp_path / "b.ome.tif", picture, axes="YXS", PhysicalSizeX=400, PhysicalSizeXUnit="nm"
    )
    colours = {"Color": [0xFF0000FF - 2**32, 0x00FF00FF, 0x0000FFFF]}  # with alpha, signed
    planes = np.moveaxis(picture, -1, 0)
    write_ome(tmp_path / "c.ome.tif", planes, axes="CYX", Channel=colours)
    for name, form, mpp in (
        ("a.tiff", "tiff", 0.4),
        ("b.ome.tif", "ome-tiff", 0.4),
        ("c.ome.tif", "ome-tiff", None),
    ):
        slide = Slide(str(tmp_path / name), name=name)
        assert (slide.info.height, slide.info.width, slide.info.format) == (500, 640, form)
        assert believe(slide.info.pixel) == (None if mpp is None else pytest.approx(mpp, rel=1e-3))
        np.testing.assert_array_equal(slide.read(0, 0, 500, 640, scale=1.0), picture)
        np.testing.assert_array_equal(
            slide.read(123, 45, 67, 89, scale=1.0), picture[123:190, 45:134]
        )
        slide.close()


def test_a_scaled_window_does_not_depend_on_how_the_slide_is_divided(
    picture: np.ndarray, tmp_path: Path
) -> None:
    write_pyramid(tmp_path / "a.tiff", picture)
    slide = Slide(str(tmp_path / "a.tiff"), name="a")
    for scale in (0.45, 0.998, 1.004, 1.7, 2.0, 2.03, 3.1):
        height, width = slide.size_at(scale)
        whole = slide.read(0, 0, height, width, scale=scale).astype(int)
        part = slide.read(40, 60, 90, 77, scale=scale).astype(int)
        assert np.abs(whole[40:130, 60:137] - part).max() <= 1, "up to its edge"
        expected = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA).astype(int)
        assert np.abs(whole - expected).mean() < 6


@pytest.mark.parametrize("scale", [0.2401, 0.996, 1.0, 1.004, 1.5, 2.0, 2.009, 2.03])
def test_positions_are_exact_far_from_the_origin(tmp_path: Path, scale: float) -> None:
    """Dark lines on a slide 60,000 pixels wide are found to a fraction of a pixel."""
    lines = np.array([8, 20_000, 59_980])
    glass = np.full((40, 60_000, 3), 255, np.uint8)
    for line in lines:
        glass[:, line : line + 4] = 0
    write_pyramid(tmp_path / "a.tiff", glass, levels=2)
    slide = Slide(str(tmp_path / "a.tiff"), name="a")
    height, width = slide.size_at(scale)
    for middle in lines + 2:
        left = min(max(0, int(middle / scale) - 30), width - 60)
        darkness = 255.0 - slide.read(0, left, height, 60, scale=scale)[height // 2, :, 0]
        found = left + (darkness * (np.arange(60) + 0.5)).sum() / darkness.sum()
        assert found * scale == pytest.approx(middle, abs=0.3 * max(1, scale))


def test_a_slide_without_small_levels_is_read_in_pieces(
    picture: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A low-power view would otherwise hold the whole slide in memory."""
    write_pyramid(tmp_path / "a.tiff", picture, levels=1)
    slide = Slide(str(tmp_path / "a.tiff"), name="a")
    whole = slide.read(0, 0, 125, 160, scale=4.0).astype(int)
    sizes: list[int] = []
    original = slide._raster.read

    def read(plane: Plane, level: int, window: Window) -> np.ndarray:
        sizes.append(window[2] * window[3])
        return original(plane, level, window)

    monkeypatch.setattr(slide._raster, "read", read)
    monkeypatch.setattr(slides, "_READ_PIXELS", 9000)
    pieces = slide.read(0, 0, 125, 160, scale=4.0).astype(int)
    assert max(sizes) <= 9000
    assert pieces.shape == whole.shape
    assert np.abs(pieces - whole).mean() < 1


@pytest.mark.parametrize("kept", [0.0, 3e-5, 0.001, 0.4, 0.6, 0.9, 0.97, 0.995])
def test_a_truncated_slide_is_refused(picture: np.ndarray, tmp_path: Path, kept: float) -> None:
    """The rest would have a wrong pixel size, and decoders invent the end of a cut JPEG tile."""
    write_svs(tmp_path / "a.svs", picture)
    write_pyramid(tmp_path / "b.tiff", picture)
    for name in ("a.svs", "b.tiff"):
        content = (tmp_path / name).read_bytes()
        Slide(str(tmp_path / name), name=name).close()
        (tmp_path / name).write_bytes(content[: int(kept * len(content))])
        reason = "cut short|not a TIFF file|Short read|Can't read|corrupted IFD"
        with pytest.raises(ImageError, match=rf"{name} cannot be opened as a slide: .*({reason})"):
            Slide(str(tmp_path / name), name=name)


def test_a_truncated_real_slide_is_refused_or_read_correctly(tmp_path: Path) -> None:
    if not REAL_SLIDES.exists():
        pytest.skip(f"no real slides at {REAL_SLIDES}")
    content = (REAL_SLIDES / "CMU-1-Small-Region.svs").read_bytes()
    whole = Slide(str(REAL_SLIDES / "CMU-1-Small-Region.svs"), name="whole")
    path = tmp_path / "cut.svs"
    # Before, within and after its tiles, and in its last page.
    for kept in (1000, len(content) // 2, 1_290_000, 1_900_000):
        path.write_bytes(content[:kept])
        with pytest.raises(ImageError, match="cut short"):
            Slide(str(path), name="cut")
    path.write_bytes(content[:-100])  # within the macro image, which is never read
    cut = Slide(str(path), name="cut")
    assert cut.info == whole.info
    np.testing.assert_array_equal(
        cut.read(0, 0, 2967, 2220, scale=1.0), whole.read(0, 0, 2967, 2220, scale=1.0)
    )


def test_a_header_that_claims_more_than_the_file_has_is_refused(
    picture: np.ndarray, tmp_path: Path
) -> None:
    """The error names the slide, and nothing of the claimed size is allocated."""
    large = 2**31
    claims = {
        "tiles": (
            tiff_header(height=large, width=large),
            f"claims {large} x {large} in {2**46} tiles or strips but lists 1",
        ),
        "strip": (tiff_header(height=large, width=large, tiled=False), "cut short"),
        "tile": (tiff_header(height=2**20, width=2**20, side=2**20), "cut short"),
        "narrow": (
            tiff_header(height=500, width=0),
            "claims 500 x 0 pixels",
        ),
        "flat": (
            tiff_header(height=0, width=500),
            "claims 0 x 500 pixels",
        ),
        "empty": (b"II*\0" + bytes(100), "its last pages are missing"),
    }
    write_svs(tmp_path / "aperio", picture)
    with tifffile.TiffFile(tmp_path / "aperio") as file:
        places = [file.pages.first.tags[name].valueoffset for name in ("ImageWidth", "ImageLength")]
    content = bytearray((tmp_path / "aperio").read_bytes())
    for place in places:
        content[place : place + 2] = (60_000).to_bytes(2, "little")
    claims["aperio"] = (
        bytes(content),
        "claims 60000 x 60000 x 3 in 219961 tiles or strips but lists 20",
    )
    for name, (header, message) in claims.items():
        (tmp_path / name).write_bytes(header)
        tracemalloc.start()
        with pytest.raises(ImageError, match=rf"{name}.* {message}"):
            Slide(str(tmp_path / name), name=name)
        assert tracemalloc.get_traced_memory()[1] < 2**25, name
        tracemalloc.stop()


def test_what_cannot_be_a_slide_is_named(
    picture: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.svs").write_bytes(b"no image")
    tifffile.imwrite(tmp_path / "deep.tif", np.zeros((40, 50), np.complex64))
    tifffile.imwrite(
        tmp_path / "four.tif",
        np.zeros((4, 40, 50), np.uint8),
        metadata={"axes": "CYX"},
        photometric="minisblack",
    )
    for name, message in (
        ("text.svs", "not a TIFF"),
        ("deep.tif", "its values are complex64"),
        ("four.tif", "4 channels"),
    ):
        with pytest.raises(ImageError, match=rf"{name} cannot be opened as a slide: .*{message}"):
            Slide(str(tmp_path / name), name=name)
    write_pyramid(tmp_path / "large.tiff", picture)
    monkeypatch.setattr(opening, "_MAX_SIDE", 600)
    with pytest.raises(
        ImageError, match="large .* it claims 500 x 640 pixels: expected 1 to 600 per side"
    ):
        Slide(str(tmp_path / "large.tiff"), name="large")
    assert companions("s3://lab/a.mrxs") == ["s3://lab/a"]
    for name in ("s3://lab/a.vms", "/scans/b.VMU"):
        with pytest.raises(
            InputError,
            match=rf"{name}: \.\w+ slides are not supported. Convert the slide to one tiled TIFF",
        ):
            companions(name)
    with pytest.raises(InputError, match=r"scan.dcm may be one of several files .* the folder"):
        companions("s3://lab/scan.dcm")
