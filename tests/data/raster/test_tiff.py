"""A TIFF of any layout is read exactly as it was written, or refused by name."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from support import write_ome, write_pyramid

from resunet_ray.data.raster import tiff_checks
from resunet_ray.data.raster.opening import open_image
from resunet_ray.data.raster.scene import believe
from resunet_ray.data.slides import Slide
from resunet_ray.data.synthetic import generate_image
from resunet_ray.errors import ImageError


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return generate_image(
        300, 440, modality="stained", num_nuclei=60, rng=np.random.default_rng(5)
    )[0]


def check(path: Path, expected: np.ndarray, *, mpp: float | None = None, levels: int = 1) -> None:
    """Check the pixels of a slide whole and in part, and of levels with every second pixel."""
    slide = Slide(str(path), name=path.name, stored=True)
    assert believe(slide.info.pixel) == (None if mpp is None else pytest.approx(mpp, rel=1e-3))
    np.testing.assert_array_equal(slide.read(0, 0, *expected.shape[:2], scale=1.0), expected)
    np.testing.assert_array_equal(slide.read(123, 45, 67, 89, scale=1.0), expected[123:190, 45:134])
    assert len(slide._levels) == levels
    for level in range(1, levels):
        small = expected[:: 2**level, :: 2**level]
        np.testing.assert_array_equal(slide.read(0, 0, *small.shape[:2], scale=2.0**level), small)
    slide.close()


def grey(counts: np.ndarray, *, bits: int) -> np.ndarray:
    return np.repeat(np.rint(counts * (255 / (2**bits - 1))).astype(np.uint8)[..., None], 3, axis=2)


@pytest.mark.parametrize(
    ("unit", "size"), [("µm", 0.5), ("μm", 0.5), ("mm", 5e-4), ("nm", 500.0), ("pixel", None)]
)
def test_a_fluorescence_slide_is_read_as_written(
    picture: np.ndarray, tmp_path: Path, unit: str, size: float | None
) -> None:
    counts = picture[..., 0].astype(np.uint16) * 16  # of a camera of 12 bits
    sizes = {f"PhysicalSize{axis}": size or 1.0 for axis in "XY"} | {
        f"PhysicalSize{axis}Unit": unit for axis in "XY"
    }
    write_ome(tmp_path / "a.ome.tif", counts, axes="YX", levels=3, bigtiff=unit == "mm", **sizes)
    check(
        tmp_path / "a.ome.tif", grey(counts, bits=12), mpp=None if size is None else 0.5, levels=3
    )


def test_colour_is_read_as_written_in_any_layout(picture: np.ndarray, tmp_path: Path) -> None:
    planes = np.ascontiguousarray(np.moveaxis(picture, -1, 0))
    for axes, image in (("YXS", picture), ("SYX", planes), ("CYX", planes)):
        colours: dict[str, Any] = {"Channel": {"Name": ["Red", "Green", "Blue"]}}
        named = colours if axes == "CYX" else {}
        write_ome(tmp_path / f"{axes}.ome.tif", image, axes=axes, levels=2, **named)
        check(tmp_path / f"{axes}.ome.tif", picture, levels=2)
    kinds: dict[str, dict[str, Any]] = {
        "whole": {},  # one uncompressed strip of any size
        "strips": {"rowsperstrip": 16, "compression": "lzw", "predictor": True},
        "big-endian": {"byteorder": ">", "bigtiff": True, "tile": (64, 64)},
    }
    for name, settings in kinds.items():
        tifffile.imwrite(tmp_path / f"{name}.tif", picture, photometric="rgb", **settings)
        check(tmp_path / f"{name}.tif", picture)
    deep = picture[..., 0].astype(np.uint16) * 16
    for tile in (None, (64, 64)):
        tifffile.imwrite(
            tmp_path / "deep.tif", deep, byteorder=">", photometric="minisblack", tile=tile
        )
        check(tmp_path / "deep.tif", grey(deep, bits=12))


def test_sixteen_bits_are_scaled_alike_in_every_window(tmp_path: Path) -> None:
    counts = np.zeros((400, 400), np.uint16)
    counts[:200], counts[200:] = 900, 3800  # of a camera of 12 bits
    write_ome(tmp_path / "a.ome.tif", counts, axes="YX")
    slide = Slide(str(tmp_path / "a.ome.tif"), name="a", stored=True)
    dark, light = slide.read(0, 0, 100, 100, scale=1.0), slide.read(300, 0, 100, 100, scale=1.0)
    assert (np.unique(dark).tolist(), np.unique(light).tolist()) == (
        [round(900 / 4095 * 255)],
        [round(3800 / 4095 * 255)],
    )


def test_small_bright_nuclei_are_not_lost_in_averages(tmp_path: Path) -> None:
    """In the smallest level of a sparse fluorescence slide, averaging has faded the nuclei."""
    counts = np.full((512, 512), 100, np.uint16)
    counts[200:206, 300:306] = 3000
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as writer:
        writer.write(counts, subifds=3, metadata={"axes": "YX"}, tile=(64, 64), compression="zlib")
        for level in (4, 8, 16):
            small = (
                counts.reshape(512 // level, level, 512 // level, level)
                .mean(axis=(1, 3))
                .astype(np.uint16)
            )
            writer.write(small, subfiletype=1, tile=(64, 64), compression="zlib")
    slide = Slide(str(tmp_path / "a.ome.tif"), name="a", stored=True)
    np.testing.assert_array_equal(slide.read(0, 0, 512, 512, scale=1.0), grey(counts, bits=12))
    content = bytearray((tmp_path / "a.ome.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as file:
        offset, size = file.pages[0].dataoffsets[0], file.pages[0].databytecounts[0]
    content[offset : offset + size] = bytes(size)
    (tmp_path / "b.ome.tif").write_bytes(content)
    damaged = Slide(str(tmp_path / "b.ome.tif"), name="b", stored=True)  # its other tiles are good
    np.testing.assert_array_equal(
        damaged.read(200, 200, 200, 200, scale=1.0), grey(counts, bits=12)[200:400, 200:400]
    )
    with pytest.raises(ImageError, match="b cannot be read as a slide"):
        damaged.read(0, 0, 10, 10, scale=1.0)


def test_a_file_that_was_cut_short_is_refused(picture: np.ndarray, tmp_path: Path) -> None:
    """What is left of it would pass for a plain image, without its levels and its pixel size."""
    write_pyramid(tmp_path / "cut.tiff", picture)
    content = (tmp_path / "cut.tiff").read_bytes()
    (tmp_path / "cut.tiff").write_bytes(content[: int(0.7 * len(content))])
    with tifffile.TiffWriter(tmp_path / "inner.tiff") as writer:
        writer.write(picture, subifds=1, tile=(64, 64))
        end = (tmp_path / "inner.tiff").stat().st_size
        writer.write(picture[::2, ::2], subfiletype=1, tile=(64, 64))
    (tmp_path / "inner.tiff").write_bytes((tmp_path / "inner.tiff").read_bytes()[:end])
    for name in ("cut.tiff", "inner.tiff"):
        with pytest.raises(ImageError, match="cut short"):
            Slide(str(tmp_path / name), name=name)
        with (tmp_path / name).open("rb") as file, pytest.raises(ImageError, match="cut short"):
            open_image(file, max_pixels=2**26)


def test_a_file_without_what_describes_it_is_refused(picture: np.ndarray, tmp_path: Path) -> None:
    """Its pixels are all there, but its last bytes say what they are, or list smaller levels."""
    stack = picture[..., 0][:, :440].reshape(2, 150, 440)
    tifffile.imwrite(tmp_path / "a.ome.tif", stack, metadata={"axes": "CYX"})
    write_ome(tmp_path / "b.ome.tif", picture, axes="YXS", levels=2)
    ends = {}
    for name in ("a.ome.tif", "b.ome.tif"):
        with tifffile.TiffFile(tmp_path / name) as file:
            page = file.pages.first
            described = page.tags["ImageDescription"].valueoffset + 20
            ends[name] = page.subifds[0] + 60 if page.subifds else described
    for name, end in ends.items():
        content = (tmp_path / name).read_bytes()
        assert end < len(content)
        (tmp_path / name).write_bytes(content[:end])
        with (tmp_path / name).open("rb") as file, pytest.raises(ImageError, match="cut short"):
            open_image(file, max_pixels=2**26)


def test_files_that_would_give_wrong_colours_are_refused(
    picture: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planes = np.ascontiguousarray(np.moveaxis(picture, -1, 0))
    tiles: dict[str, Any] = {"tile": (64, 64)}
    lamp = {"Channel": {"Name": ["Cy3", "FITC", "TRITC"], "Fluor": ["a", "b", "c"]}}
    waves = {"Channel": {"EmissionWavelength": [460, 520, 580]}}
    images: dict[str, tuple[np.ndarray, dict[str, Any], str]] = {
        "raw": (picture, {"photometric": "ycbcr", "subsampling": (1, 1)}, "stored as YCBCR"),
        "lab": (picture, {"photometric": "cielab"}, "stored as CIELAB"),
        "named": (
            planes,
            {"photometric": "minisblack", "metadata": {"axes": "CYX", **lamp}},
            "it has 3 channels, .*it is not clear which of them",
        ),
        "lit": (
            planes,
            {"photometric": "minisblack", "metadata": {"axes": "CYX", **waves}},
            "it has 3 channels, .*it is not clear which of them",
        ),
        "hyper": (
            planes,
            {"imagej": True, "metadata": {"axes": "CYX"}, "tile": None},
            "it has 3 channels, .*it is not clear which of them",
        ),
    }
    for name, (image, settings, message) in images.items():
        path = tmp_path / (f"{name}.ome.tif" if name in ("named", "lit") else f"{name}.tif")
        tifffile.imwrite(path, image, **(tiles | settings))
        with pytest.raises(ImageError, match=rf"{name} cannot be opened as a slide: .*{message}"):
            Slide(str(path), name=name)
    tifffile.imwrite(tmp_path / "piece.tif", picture, compression="zlib", rowsperstrip=300)
    monkeypatch.setattr(tiff_checks, "_LARGEST_PIECE", 100_000)
    with pytest.raises(ImageError, match="compressed in pieces of .*Save it tiled"):
        Slide(str(tmp_path / "piece.tif"), name="piece")


def test_planes_in_other_files_are_not_read_as_black(picture: np.ndarray, tmp_path: Path) -> None:
    """OME's metadata list three files, and only one of them is present."""
    tifffile.imwrite(
        tmp_path / "a.ome.tif", picture[..., 0], metadata={"axes": "YX"}, tile=(64, 64)
    )
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as file:
        text = str(file.ome_metadata).replace('SizeC="1"', 'SizeC="3"')
    own = re.search(r'UUID="(urn:uuid:[^"]*)"', text)
    assert own is not None
    uuids = [
        own[1],
        *(f"urn:uuid:1000000{number}-0000-0000-0000-000000000000" for number in (1, 2)),
    ]
    names = "".join(
        f'<TiffData IFD="0" FirstC="{number}" PlaneCount="1">'
        f'<UUID FileName="{"abc"[number]}.ome.tif">{uuid}</UUID></TiffData>'
        for number, uuid in enumerate(uuids)
    )
    text = re.sub(r"<TiffData[^>]*/>", names, text)
    tifffile.imwrite(
        tmp_path / "a.ome.tif",
        picture[..., 0],
        description=text.encode(),
        metadata=None,
        tile=(64, 64),
        ome=False,
    )
    with pytest.raises(ImageError, match="some of its planes are missing or in other files"):
        Slide(str(tmp_path / "a.ome.tif"), name="a")
