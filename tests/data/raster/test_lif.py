"""LIF as scenes of planes, from files written byte by byte."""

import math
import struct
import sys
from pathlib import Path
from typing import Any

import liffile
import numpy as np
import pytest
from lif_files import draw_lif

from resunet_ray.data.raster.lif import LifRaster
from resunet_ray.data.raster.scene import Plane
from resunet_ray.errors import ImageError

_SIZES = {"x": 23, "y": 17, "z": 3, "t": 2, "c": 2, "m": 3, "l": 2, "s": 3}


def _values(axes: str, dtype: Any = np.uint16) -> np.ndarray:
    shape = [_SIZES[axis] for axis in axes]
    return np.arange(1, math.prod(shape) + 1).reshape(shape).astype(dtype)


@pytest.mark.parametrize("axes", ["yx", "cyx", "zyx", "tzcyx", "ctzyx", "xy"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_every_plane_is_that_of_its_axes(axes: str, dtype: Any, tmp_path: Path) -> None:
    values = _values(axes, dtype)
    path = draw_lif(tmp_path / "a.lif", {"one": (values, axes)})
    raster = LifRaster(path)
    (scene,) = raster.scenes
    assert (scene.levels, scene.dtype, scene.name) == ([(17, 23)], dtype, "one")
    assert (scene.num_t, len(scene.channels), scene.num_z) == tuple(
        _SIZES[axis] if axis in axes else 1 for axis in "tcz"
    )
    assert scene.mpp == pytest.approx((0.5, 0.25))
    with liffile.LifFile(path) as file:
        image = file.images[0]
        read = image.asarray()
        order = "".join(image.dims).lower()
    for t in range(scene.num_t):
        for channel in range(len(scene.channels)):
            for z in range(scene.num_z):
                place = {"t": t, "c": channel, "z": z}
                index = tuple(place.get(axis, slice(None)) for axis in axes)
                expected = values[index] if "yx" in axes else values[index].T
                window = raster.read(Plane(channel=channel, z=z, t=t), 0, (0, 0, 17, 23))
                assert (window == expected).all()
                theirs = read[tuple(place.get(axis, slice(None)) for axis in order)]
                assert (window == (theirs if "yx" in axes else theirs.T)).all()
                part = raster.read(Plane(channel=channel, z=z, t=t), 0, (5, 7, 12, 16))
                assert (part == expected[5:, 7:]).all()
                assert part.dtype == dtype


@pytest.mark.parametrize(("tags", "order"), [((1, 2, 3), [0, 1, 2]), ((3, 2, 1), [2, 1, 0])])
@pytest.mark.parametrize("axes", ["yxs", "syx"])
def test_tagged_colours_are_red_green_and_blue(
    tags: tuple[int, ...], order: list[int], axes: str, tmp_path: Path
) -> None:
    values = _values(axes, np.uint8)
    path = draw_lif(tmp_path / "a.lif", {"one": (values, axes)}, tags=tags)
    (scene,) = (raster := LifRaster(path)).scenes
    assert (scene.rgb, scene.channels) == (True, [None])
    colours = values if axes == "yxs" else np.moveaxis(values, 0, -1)
    assert (raster.read(Plane(), 0, (1, 2, 9, 8)) == colours[1:10, 2:10, order]).all()
    if axes == "yxs":
        with liffile.LifFile(path) as file:
            assert (raster.read(Plane(), 0, (0, 0, 17, 23)) == file.images[0].asarray()).all()


def test_channels_are_named_by_their_dye_or_else_their_colour(tmp_path: Path) -> None:
    images = {"one": (_values("cyx"), "cyx")}
    assert LifRaster(draw_lif(tmp_path / "a", images)).scenes[0].channels == ["Green", "Green"]
    dyed = draw_lif(tmp_path / "b", images, dyes=("DAPI", "Alexa 488"))
    assert LifRaster(dyed).scenes[0].channels == ["DAPI", "Alexa 488"]


def test_each_position_of_each_image_is_a_scene(tmp_path: Path) -> None:
    """Lines without rows are passed over."""
    images = {
        "line": (_values("tx"), "tx"),
        "plain": (_values("yx"), "yx"),
        "tiles": (_values("mcyx"), "mcyx"),
        "spectrum": (_values("lyx"), "lyx"),
    }
    raster = LifRaster(draw_lif(tmp_path / "a", images))
    assert [scene.name for scene in raster.scenes] == [
        "plain",
        *(f"tiles, position {number}" for number in (1, 2, 3)),
        *(f"spectrum, dimension 5 {number}" for number in (1, 2)),
    ]
    window = raster.read(Plane(scene=2, channel=1), 0, (3, 4, 5, 6))
    assert (window == images["tiles"][0][1, 1, 3:8, 4:10]).all()
    window = raster.read(Plane(scene=5), 0, (3, 4, 5, 6))
    assert (window == images["spectrum"][0][1, 3:8, 4:10]).all()


def test_a_file_cut_short_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    path = draw_lif(tmp_path / "a", {"one": (_values("yx"), "yx"), "two": (_values("yx"), "yx")})
    content = Path(path).read_bytes()
    for size in (*range(0, len(content), 37), len(content) - 1):
        Path(path).write_bytes(content[:size])
        with pytest.raises(ImageError):
            LifRaster(path)


@pytest.mark.parametrize(
    ("text", "other", "message"),
    [
        ('NumberOfElements="23"', 'NumberOfElements="99"', "claims 3366 bytes but has 782"),
        ('NumberOfElements="23"', 'NumberOfElements="9999999"', "claims .17, 9999999."),
        ('BytesInc="46"', 'BytesInc="-6"', "its header is damaged"),
        ('BytesInc="46"', 'BytesInc="99"', "its header is damaged"),
        ('Resolution="16"', 'Resolution="32"', "its header is damaged"),
        ('Resolution="16"', 'Resolution="99"', "it is damaged"),
        ('MemoryBlockID="Block_one"', 'MemoryBlockID="Block_two"', "it is damaged"),
        ('DimID="1"', 'DimID="9"', "no images with rows and columns"),
    ],
)
def test_an_xml_that_makes_no_sense_is_refused(
    text: str, other: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "a"
    draw_lif(path, {"one": (_values("yx"), "yx")})
    header, content = struct.unpack("<IIBI", path.read_bytes()[:13]), path.read_bytes()[13:]
    xml = content[: 2 * header[3]].decode("utf-16-le")
    assert text in xml
    xml, blocks = xml.replace(text, other), content[2 * header[3] :]
    start = struct.pack("<IIBI", 0x70, 2 * len(xml) + 5, 0x2A, len(xml))
    path.write_bytes(start + xml.encode("utf-16-le") + blocks)
    with pytest.raises(ImageError, match=message):
        LifRaster(str(path))


def test_changed_bytes_are_image_errors_or_read_in_the_size_that_is_claimed(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    path = tmp_path / "a"
    draw_lif(path, {"one": (_values("cyx"), "cyx")})
    content, refused = path.read_bytes(), 0
    for _ in range(150):
        changed = bytearray(content)
        for place in rng.integers(len(content), size=2):
            changed[place] = rng.integers(256)
        path.write_bytes(changed)
        try:
            raster = LifRaster(str(path))
            height, width = raster.scenes[0].levels[0]
            assert raster.read(Plane(), 0, (0, 0, height, width)).shape[:2] == (height, width)
        except ImageError:
            refused += 1
    assert refused > 40


def test_without_its_library_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = draw_lif(tmp_path / "a", {"one": (_values("yx"), "yx")})
    monkeypatch.setitem(sys.modules, "liffile", None)
    with pytest.raises(ImageError, match=r"liffile: install resunet_ray\[formats\]"):
        LifRaster(path)
