"""Files of many planes and channels: each plane is read as written, or the file is refused."""

import io
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resunet_ray.data.images import decode_image, read_plane
from resunet_ray.data.raster.opening import open_image
from resunet_ray.data.raster.planes import Selection, choose_channel, list_planes, name_plane
from resunet_ray.data.raster.scene import Plane, Raster, Scene, believe
from resunet_ray.data.raster.turning import turn, turned_size, turned_window
from resunet_ray.errors import ImageError

HEIGHT, WIDTH = 21, 34
LENGTHS = {"T": 3, "Z": 2, "C": 2, "S": 3, "Y": HEIGHT, "X": WIDTH}


def number(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Values that differ from place to place."""
    values = np.arange(np.prod(shape), dtype=np.uint64) * 40503 % 2**16
    return (values.reshape(shape) % 251).astype(dtype)


def write(array: np.ndarray, **options: Any) -> io.BytesIO:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **options)
    buffer.seek(0)
    return buffer


def open_written(array: np.ndarray, **options: Any) -> Raster:
    return open_image(write(array, **options), max_pixels=2**20)


def expect(array: np.ndarray, axes: str, plane: Plane) -> np.ndarray:
    """Return the plane of an array with named axes."""
    place = {"T": plane.t, "Z": plane.z, "C": plane.channel}
    picked = array[tuple(place.get(axis, slice(None)) for axis in axes)]
    left = [axis for axis in axes if axis not in place]
    return picked.transpose([left.index(axis) for axis in "YXS" if axis in left])


@given(
    axes=st.sampled_from(
        ["YX", "TYX", "ZYX", "CYX", "TZCYX", "ZCTYX", "CZYX", "YXS", "TYXS", "ZYXS"]
    ),
    dtype=st.sampled_from(["uint8", "uint16", "int16", "uint32", "float32", "float64"]),
    compression=st.sampled_from([None, "zlib", "lzw", "zstd"]),
    tile=st.sampled_from([None, (16, 16)]),
    byteorder=st.sampled_from(["<", ">"]),
    bigtiff=st.booleans(),
)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_plane_of_an_ome_tiff_is_read_as_written(
    axes: str, dtype: str, **options: Any
) -> None:
    if "S" in axes and dtype not in ("uint8", "uint16"):
        dtype = "uint8"
    array = number(tuple(LENGTHS[axis] for axis in axes), dtype)
    colours = "rgb" if "S" in axes else "minisblack"
    raster = open_written(array, ome=True, metadata={"axes": axes}, photometric=colours, **options)
    (scene,) = raster.scenes
    assert scene.levels[0] == (HEIGHT, WIDTH)
    assert (scene.num_t, scene.num_z) == tuple(
        LENGTHS[axis] if axis in axes else 1 for axis in "TZ"
    )
    assert (scene.rgb, len(scene.channels)) == ("S" in axes, 2 if "C" in axes else 1)
    for t, z, channel in itertools.product(
        range(scene.num_t), range(scene.num_z), range(len(scene.channels))
    ):
        plane = Plane(t=t, z=z, channel=channel)
        whole = expect(array, axes, plane)
        np.testing.assert_array_equal(raster.read(plane, 0, (0, 0, HEIGHT, WIDTH)), whole)
        np.testing.assert_array_equal(raster.read(plane, 0, (5, 3, 9, 20)), whole[5:14, 3:23])


@pytest.mark.parametrize(
    "options",
    [
        {"imagej": True, "metadata": {"axes": "TZCYX"}},
        {"imagej": True, "truncate": True, "metadata": {"axes": "TZCYX"}},  # all in one IFD
        {"metadata": {"axes": "TZCYX"}, "photometric": "minisblack"},
    ],
)
def test_a_hyperstack_s_planes_are_told_apart(options: dict[str, Any]) -> None:
    array = number((3, 2, 2, HEIGHT, WIDTH), "uint16")
    raster = open_written(array, **options)
    for t, z, channel in itertools.product(range(3), range(2), range(2)):
        read = raster.read(Plane(t=t, z=z, channel=channel), 0, (0, 0, HEIGHT, WIDTH))
        np.testing.assert_array_equal(read, array[t, z, channel])


@pytest.mark.parametrize("count", [2, 4, 5])
def test_channels_last_are_channels(count: int) -> None:
    array = number((HEIGHT, WIDTH, count), "uint8")
    written: list[dict[str, Any]] = [
        {"photometric": "minisblack", "planarconfig": "contig", "metadata": None},
        {"photometric": "rgb" if count > 3 else "minisblack", "planarconfig": "contig"},
    ]
    written[0]["extrasamples"] = ["unspecified"] * (count - 1)
    written[1]["extrasamples"] = ["unspecified"] * (count - (3 if count > 3 else 1))
    named: dict[str, Any] = {"photometric": "minisblack"}  # as rows of pages
    # tifffile takes a fourth channel for opacity
    guessed: list[dict[str, Any]] = [{}] if count == 4 else []
    for options in [*written, named, *guessed]:
        content = write(array, **options).getvalue()
        with pytest.raises(ImageError, match=f"stack cannot be read: it has {count} channels, 0 "):
            decode_image(content, name="stack")
        raster = open_image(io.BytesIO(content), max_pixels=2**20)
        read = raster.read(Plane(channel=count - 1), 0, (2, 3, 10, 12))
        np.testing.assert_array_equal(read, array[2:12, 3:15, -1])


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("compression", [None, "lzw"])
def test_colours_in_separate_planes_are_read_as_written(
    dtype: str, compression: str | None
) -> None:
    array = number((3, HEIGHT, WIDTH), dtype)
    raster = open_written(
        array, photometric="rgb", planarconfig="separate", compression=compression, metadata=None
    )
    assert raster.scenes[0].rgb
    read = raster.read(Plane(), 0, (1, 2, 15, 20))
    np.testing.assert_array_equal(read, np.moveaxis(array, 0, -1)[1:16, 2:22])


def test_white_for_zero_and_palettes_are_seen_as_a_viewer_shows_them() -> None:
    values = number((HEIGHT, WIDTH), "uint8")
    whole = 0, 0, HEIGHT, WIDTH
    white = open_written(values, photometric="miniswhite", metadata=None)
    np.testing.assert_array_equal(white.read(Plane(), 0, whole), 255 - values)
    blue = np.zeros((3, 256), np.uint16)
    blue[2] = np.arange(256) * 257  # a look-up table that only tints
    tinted = open_written(values, photometric="palette", colormap=blue, metadata=None)
    np.testing.assert_array_equal(tinted.read(Plane(), 0, whole), values)
    colours = np.random.default_rng(0).integers(0, 256, (3, 256)).astype(np.uint16)
    painted = open_written(values, photometric="palette", colormap=colours * 257, metadata=None)
    np.testing.assert_array_equal(painted.read(Plane(), 0, whole), colours.T[values])


def test_tiles_that_a_scanner_left_out_are_glass(tmp_path: Path) -> None:
    image = np.full((64, 64, 3), 200, np.uint8)
    path = tmp_path / "sparse.tif"
    tifffile.imwrite(
        path, image, tile=(32, 32), photometric="rgb", compression="zlib", metadata=None
    )
    with tifffile.TiffFile(path, mode="r+") as file:
        page = file.pages.first
        for name, values in (
            ("TileOffsets", page.dataoffsets),
            ("TileByteCounts", page.databytecounts),
        ):
            page.tags[name].overwrite((*values[:3], 0))
    with path.open("rb") as file:
        read = open_image(file, max_pixels=2**20).read(Plane(), 0, (0, 0, 64, 64))
    image[32:, 32:] = 255
    np.testing.assert_array_equal(read, image)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_window_of_a_turned_image_is_part_of_it_upright(orientation: int) -> None:
    array = number((HEIGHT, WIDTH), "uint8")
    raster = open_written(array, metadata=None, extratags=[(274, "H", 1, orientation)])
    whole = turn(array, orientation)
    assert raster.scenes[0].levels[0] == whole.shape == turned_size(array.shape, orientation)
    assert turned_window((0, 0, *whole.shape), whole.shape, orientation) == (0, 0, HEIGHT, WIDTH)
    read = raster.read(Plane(), 0, (3, 4, 10, 11))
    np.testing.assert_array_equal(read, whole[3:13, 4:15])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"imagej": True, "resolution": (4, 4), "metadata": {"unit": "micron"}}, 0.25),
        ({"imagej": True, "resolution": (4, 4), "metadata": {"unit": "um"}}, 0.25),
        ({"imagej": True, "resolution": (4, 4), "metadata": {"unit": "\\u00B5m"}}, 0.25),
        ({"imagej": True, "resolution": (4000, 4000), "metadata": {"unit": "mm"}}, 0.25),
        ({"imagej": True, "resolution": (4, 4), "metadata": {"unit": "pixel"}}, None),
        ({"imagej": True, "resolution": (4, 4)}, None),
        ({"resolution": (40000, 40000), "resolutionunit": "CENTIMETER"}, 0.25),
        ({"resolution": (101600, 101600), "resolutionunit": "INCH"}, 0.25),
        ({"resolution": (96, 96), "resolutionunit": "INCH"}, None),  # a screen's
    ],
)
def test_pixel_sizes_are_read_wherever_they_are_stated(
    options: dict[str, Any], expected: float | None
) -> None:
    raster = open_written(number((HEIGHT, WIDTH), "uint8"), **options)
    assert believe(raster.scenes[0].mpp) == (expected and pytest.approx(expected, rel=1e-3))


def test_pixels_that_are_not_square_are_refused() -> None:
    sizes = {"PhysicalSizeX": 0.25, "PhysicalSizeY": 0.5}
    array = number((HEIGHT, WIDTH), "uint8")
    raster = open_written(array, ome=True, metadata={"axes": "YX", **sizes})
    assert raster.scenes[0].mpp == (0.5, 0.25)
    with pytest.raises(ImageError, match=r"0\.5 microns high and 0\.25 wide: expected square"):
        believe(raster.scenes[0].mpp)


def scene(*names: str | None) -> Scene:
    return Scene(levels=[(5, 5)], channels=names, dtype=np.dtype(np.uint8), num_t=12, num_z=3)


def test_the_nuclear_channel_is_known_by_its_name_or_said() -> None:
    assert choose_channel(scene(None), wanted=None) == 0
    for name in ("DAPI", "Hoechst 33342", "H2B-mCherry", "DRAQ5", "SYTO 13", "nuclei"):
        assert choose_channel(scene("GFP", name, None), wanted=None) == 1, name
    assert choose_channel(scene("GFP", "DAPI"), wanted="GFP") == 0
    assert choose_channel(scene("1", "GFP"), wanted="1") == 0, "a name goes before a number"
    assert choose_channel(scene("GFP", "RFP"), wanted="1") == 1
    for names, wanted in (
        (("GFP", "RFP"), None),
        (("DAPI", "Hoechst"), None),
        (("GFP", "GFP"), "GFP"),
        (("GFP", "RFP"), "2"),
    ):
        with pytest.raises(ImageError, match=r"it has 2 channels, 0 \(\w+\), 1 .*Pass --channel"):
            choose_channel(scene(*names), wanted=wanted)


def test_each_scene_point_in_time_and_focal_plane_is_an_image() -> None:
    scenes = [scene("GFP", "DAPI"), scene("DAPI")]
    planes = list_planes(scenes, channel=None)
    assert len(planes) == len(set(planes)) == 2 * 12 * 3
    assert {(plane.scene, plane.channel) for plane in planes} == {(0, 1), (1, 0)}
    assert name_plane(Plane(scene=1, t=3, z=2), scenes) == "s1-t03-z2"
    assert name_plane(Plane(t=3), [scene("DAPI")]) == "t03-z0"


def test_focal_planes_are_projected() -> None:
    array = number((4, HEIGHT, WIDTH), "uint8")
    content = write(array, imagej=True, metadata={"axes": "ZYX"}).getvalue()
    window = 2, 3, 10, 9
    for z, expected in (
        ("max", array.max(axis=0)),
        ("mean", np.rint(array.mean(axis=0))),
        (2, array[2]),
    ):
        raster = Selection(z=z).apply(open_image(io.BytesIO(content), max_pixels=2**20))
        assert [found.num_z for found in raster.scenes] == [1]
        np.testing.assert_array_equal(
            raster.read(Plane(), 0, window), expected[2:12, 3:12], err_msg=str(z)
        )
    with pytest.raises(ImageError, match="it has 4 focal planes: there is no number 4"):
        Selection(z=4).apply(open_image(io.BytesIO(content), max_pixels=2**20))


def test_a_plane_needs_only_its_own_bytes(tmp_path: Path) -> None:
    """Of a hundred planes, stored one after the other or compressed."""
    array = np.random.default_rng(0).integers(0, 256, (100, 64, 64), dtype=np.uint8)
    for compression in (None, "zlib"):
        path = tmp_path / f"{compression}.tif"
        tifffile.imwrite(path, array, metadata={"axes": "TYX"}, compression=compression)
        read = 0

        class Counted(io.FileIO):
            def readinto(self, buffer: Any) -> int:
                nonlocal read
                count = super().readinto(buffer)
                read += count
                return count

        with Counted(path) as file:
            raster = open_image(file, max_pixels=2**20)
            read = 0
            plane = read_plane(raster, Plane(t=70))
        np.testing.assert_array_equal(plane[..., 0], array[70])
        assert read < 3 * 64 * 64, compression
