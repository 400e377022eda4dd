"""A folder of DICOM files is one slide for each series; what is none is refused by name."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import openslide
import pytest
from dicom_files import CT, PHOTO, draw_dicom

from resunet_ray.data.raster.dicom import DicomRaster, list_series
from resunet_ray.data.raster.openslide import OpenSlideRaster
from resunet_ray.data.raster.scene import FIRST
from resunet_ray.data.slides import Slide
from resunet_ray.errors import ImageError

COLOUR = cv2.resize(
    np.random.default_rng(0).integers(0, 256, (15, 21, 3), np.uint8),
    (210, 150),
    interpolation=cv2.INTER_CUBIC,
)


def draw_slide(folder: Path, *, series: str = "1.2.3", image: np.ndarray = COLOUR) -> Path:
    """Two levels and a label, the smaller level first by name."""
    draw_dicom(folder / f"{series}-a.dcm", image[::2, ::2], series=series, microns=1.0)
    draw_dicom(folder / f"{series}-b.DCM", image, series=series)
    draw_dicom(folder / f"{series}-c.dcm", image[:64, :64], series=series, flavor="LABEL")
    return folder


def test_the_levels_of_a_series_are_one_slide(tmp_path: Path) -> None:
    slide = Slide(str(draw_slide(tmp_path) / "1.2.3-c.dcm"), name="a")
    assert (slide.info.height, slide.info.width, slide.info.format) == (150, 210, "dicom")
    assert slide.info.pixel == (0.5, 0.5)
    np.testing.assert_array_equal(slide.read(0, 0, 150, 210, scale=1.0), COLOUR)
    np.testing.assert_array_equal(slide.read(30, 40, 70, 80, scale=1.0), COLOUR[30:100, 40:120])
    np.testing.assert_array_equal(slide.read(0, 0, 75, 105, scale=2.0), COLOUR[::2, ::2])


def test_compressed_frames_are_read_as_openslide_reads_them(tmp_path: Path) -> None:
    path = draw_dicom(tmp_path / "a.dcm", COLOUR, jpeg=True)
    raster = DicomRaster(str(path))
    found = raster.read(FIRST, 0, (0, 0, 150, 210))
    expected = np.asarray(openslide.OpenSlide(path).read_region((0, 0), 0, (210, 150)))
    np.testing.assert_array_equal(found, expected[..., :3])
    assert np.abs(found.astype(int) - COLOUR).mean() < 4


def test_every_series_of_a_folder_is_a_slide(tmp_path: Path) -> None:
    draw_slide(tmp_path, series="1.2.10", image=COLOUR[:100])
    draw_slide(tmp_path, series="1.2.9", image=COLOUR)
    (tmp_path / "._hidden.dcm").write_bytes(b"as macOS writes it")
    (tmp_path / "notes.txt").write_text("no DICOM")
    series = list_series(str(tmp_path))
    assert [sorted(files) for files in series] == [
        [f"{number}-a.dcm", f"{number}-b.DCM", f"{number}-c.dcm"] for number in ("1.2.10", "1.2.9")
    ]
    for files, image in zip(series, (COLOUR[:100], COLOUR), strict=True):
        raster = DicomRaster(str(tmp_path / next(iter(files))))
        found = raster.read(FIRST, 0, (0, 0, *image.shape[:2]))
        np.testing.assert_array_equal(found, image)


def test_what_is_no_slide_is_refused_by_name(tmp_path: Path) -> None:
    plain = draw_dicom(tmp_path / "plain.dcm", COLOUR).read_bytes()
    syntax = plain.index(b"1.2.840.10008.1.2.1\0")
    cases = {
        "ct": (
            draw_dicom(tmp_path / "x", COLOUR[..., 0], kind=CT).read_bytes(),
            "class CT Image Storage",
        ),
        "photo": (
            draw_dicom(tmp_path / "x", COLOUR, kind=PHOTO).read_bytes(),
            "class VL Photographic Image",
        ),
        "grey": (draw_dicom(tmp_path / "x", COLOUR[..., 0]).read_bytes(), "SamplesPerPixel"),
        "text": (b"no DICOM", "text.dcm is not DICOM"),
        "empty": (b"", "empty.dcm is not DICOM"),
        "implicit": (
            plain[:syntax] + b"1.2.840.10008.1.2\0\0\0" + plain[syntax + 20 :],
            "implicit.dcm has the transfer syntax Implicit VR",
        ),
        "header": (plain[:400], "header.dcm is damaged|SeriesInstanceUID"),
    }
    for name, (content, message) in cases.items():
        folder = draw_slide(tmp_path / "in")
        (folder / f"{name}.dcm").write_bytes(content)
        with pytest.raises(
            ImageError, match=f"^the slide cannot be opened as a slide: .*{message}"
        ):
            Slide(str(folder / "1.2.3-a.dcm"), name="the slide")
        shutil.rmtree(folder)


def test_a_level_that_openslide_leaves_out_is_missed(tmp_path: Path) -> None:
    folder = draw_slide(tmp_path)
    content = draw_dicom(folder / "odd.dcm", COLOUR[::3, ::3], microns=1.5).read_bytes()
    shared = content.index(bytes.fromhex("00522992"))  # a tag after those of its size
    (folder / "odd.dcm").write_bytes(content[: shared + 20])
    assert len(OpenSlideRaster(str(folder / "1.2.3-a.dcm")).scenes[0].levels) == 2
    with pytest.raises(ImageError, match="odd.dcm, of 50 x 70 pixels, is none of the levels"):
        DicomRaster(str(folder / "1.2.3-a.dcm"))


def test_a_file_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    """Not read as a slide of its smaller level alone, nor as empty glass."""
    path = draw_slide(tmp_path) / "1.2.3-b.DCM"
    content = path.read_bytes()
    for end in np.linspace(0, len(content) - 1, 9).astype(int):
        path.write_bytes(content[:end])
        with pytest.raises(ImageError):
            Slide(str(path), name="a").read(0, 0, 150, 210, scale=1.0)
