"""What a TIFF's pages and values mean: never guessed, never left out in silence."""

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile

from resunet_ray.data.images import decode_image
from resunet_ray.data.raster import copies
from resunet_ray.data.raster.opening import open_image
from resunet_ray.data.raster.planes import list_planes
from resunet_ray.data.raster.scene import FIRST, Raster, believe
from resunet_ray.errors import ImageError

HEIGHT, WIDTH = 48, 64
GREY = np.add.outer(np.arange(HEIGHT) * 2, np.arange(WIDTH)).astype(np.uint8)  # 0 to 157
COLOUR = np.dstack((GREY, 255 - GREY, GREY // 2))
Page = tuple[np.ndarray, dict[str, Any]]
RGB, BLACK = {"photometric": "rgb"}, {"photometric": "minisblack"}


def write(*pages: Page, **options: Any) -> bytes:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer, **options) as writer:
        for array, settings in pages:
            options_of_page: dict[str, Any] = {"metadata": None, **settings}
            writer.write(np.ascontiguousarray(array), **options_of_page)
    return buffer.getvalue()


def open_bytes(content: bytes) -> Raster:
    return open_image(io.BytesIO(content), max_pixels=2**20)


def read_all(content: bytes, channel: str | None = None) -> list[np.ndarray]:
    raster = open_bytes(content)
    return [
        raster.read(plane, 0, (0, 0, *raster.scenes[plane.scene].levels[0]))
        for plane in list_planes(raster.scenes, channel=channel)
    ]


def check(content: bytes, *expected: np.ndarray) -> None:
    found = read_all(content)
    assert len(found) == len(expected)
    for read, written in zip(found, expected, strict=True):
        np.testing.assert_array_equal(read, written)


def test_pages_of_other_sizes_and_types_are_images_of_their_own() -> None:
    check(write((COLOUR, RGB), (GREY, BLACK)), COLOUR, GREY)
    check(write((GREY, BLACK), (GREY, BLACK), (GREY[:36, :48], BLACK)), GREY, GREY, GREY[:36, :48])
    check(write((COLOUR, RGB), (COLOUR[:20, :40], RGB)), COLOUR, COLOUR[:20, :40])
    fields = [(COLOUR, "field 1"), (COLOUR[:20, :40], "field 2")]
    named = [(array, RGB | {"metadata": {"axes": "YXS", "Name": name}}) for array, name in fields]
    check(write(*named, ome=True), COLOUR, COLOUR[:20, :40])


def test_thumbnails_labels_and_levels_are_no_images() -> None:
    small = COLOUR[::4, ::4]
    check(write((small, RGB), (COLOUR, RGB)), COLOUR)
    check(write((COLOUR, RGB), (COLOUR[::2, ::2], RGB), (small, RGB)), COLOUR)
    check(write((COLOUR[:9, :30], RGB | {"subfiletype": 1}), (COLOUR, RGB)), COLOUR)
    images = [(COLOUR, "slide"), (COLOUR[:20, :20], "label image"), (COLOUR[:9], "Macro")]
    named = [(array, RGB | {"metadata": {"axes": "YXS", "Name": name}}) for array, name in images]
    check(write(*named, ome=True), COLOUR)


def test_the_pixel_size_is_that_of_the_image_and_not_of_its_thumbnail() -> None:
    of = {mpp: {"resolution": (1e4 / mpp,) * 2, "resolutionunit": "CENTIMETER"} for mpp in (0.5, 4)}
    content = write((COLOUR[::8, ::8], RGB | of[4]), (COLOUR, RGB | of[0.5]))
    assert believe(open_bytes(content).scenes[0].mpp) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("resolution", "units"),
    [
        ((4, 4), {"unit": "Micron"}),
        ((4, 4), {"unit": "micrometers"}),
        ((101600, 101600), {"unit": "inches"}),
        ((4, 0.004), {"unit": "um", "yunit": "nm"}),
    ],
)
def test_units_of_imagej_are_known(resolution: Any, units: dict[str, str]) -> None:
    content = write((GREY, {"resolution": resolution, "metadata": units}), imagej=True)
    assert believe(open_bytes(content).scenes[0].mpp) == pytest.approx(0.25, rel=1e-3)


@pytest.mark.parametrize(("unit", "size"), [("Å", 2500.0), ("in", 0.25 / 25400)])
def test_units_of_ome_are_known(unit: str, size: float) -> None:
    sizes: dict[str, Any] = {f"PhysicalSize{axis}": size for axis in "XY"}
    sizes |= {f"PhysicalSize{axis}Unit": unit for axis in "XY"}
    content = write((GREY, {"metadata": {"axes": "YX", **sizes}}), ome=True)
    assert believe(open_bytes(content).scenes[0].mpp) == pytest.approx(0.25, rel=1e-3)


@pytest.mark.parametrize(
    "channels",
    [
        {},
        {"Name": ["CD3", "CD8", "PanCK"]},
        {"Color": [0xFF0000FF - 2**32, 0x00FF00FF, 0x0000FFFF], "Name": ["CD3", "CD8", "PanCK"]},
    ],
)
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_three_channels_of_ome_are_not_taken_for_colours(
    channels: dict[str, Any], dtype: str
) -> None:
    planes = np.moveaxis(COLOUR, -1, 0).astype(dtype)
    content = write((planes, BLACK | {"metadata": {"axes": "CYX", "Channel": channels}}), ome=True)
    with pytest.raises(ImageError, match="it has 3 channels, .* not clear which of them"):
        decode_image(content, name="a")
    np.testing.assert_array_equal(read_all(content, channel="1")[0], planes[1])


def test_of_three_named_channels_the_nuclear_one_is_read() -> None:
    planes = np.moveaxis(COLOUR, -1, 0)
    channels = {"Channel": {"Name": ["CD3", "H2B-GFP", "PanCK"]}}
    check(write((planes, BLACK | {"metadata": {"axes": "CYX", **channels}}), ome=True), planes[1])


def test_channels_of_colours_are_refused() -> None:
    with pytest.raises(ImageError, match="it has 2 channels of 3 samples each"):
        open_bytes(write((np.stack([COLOUR] * 2), RGB | {"metadata": {"axes": "CYXS"}})))


def test_levels_are_turned_like_their_image() -> None:
    turned = {"extratags": [(274, 3, 1, 6, True)], "subifds": 1}
    content = write((COLOUR, RGB | turned), (COLOUR[::2, ::2], RGB | {"subfiletype": 1}))
    raster = open_bytes(content)
    for level, step in enumerate((1, 2)):
        size = raster.scenes[0].levels[level]
        read = raster.read(FIRST, level, (0, 0, *size))
        np.testing.assert_array_equal(read, np.rot90(COLOUR[::step, ::step], -1))


def test_pages_turned_in_several_ways_are_refused() -> None:
    pages = [(GREY, BLACK | {"extratags": [(274, 3, 1, turned, True)]}) for turned in (1, 3)]
    with pytest.raises(ImageError, match="turned in several ways"):
        read_all(write(*pages))


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('SizeZ="4"', 'SizeZ="2"', "leave out 2 of its 4 pages"),
        ('SizeX="64"', 'SizeX="65"', "do not describe its pages"),
        ("</OME>", "", "metadata are damaged"),
    ],
)
def test_pages_that_ome_does_not_describe_are_not_left_out(
    old: str, new: str, reason: str, tmp_path: Path
) -> None:
    content = write((np.stack([GREY] * 4), BLACK | {"metadata": {"axes": "ZYX"}}), ome=True)
    path = tmp_path / "a.ome.tif"
    path.write_bytes(content)
    text = tifffile.tiffcomment(path)
    assert isinstance(text, str)
    assert old in text
    tifffile.tiffcomment(path, text.replace(old, new).encode())
    with pytest.raises(ImageError, match=reason):
        open_bytes(path.read_bytes())


def palette(colours: np.ndarray, *, factor: int = 257) -> dict[str, Any]:
    whole = np.full((256, 3), 255, np.uint16)
    whole[: len(colours)] = colours
    return {"photometric": "palette", "colormap": whole.T * np.uint16(factor)}


def test_the_colours_of_a_palette_are_shown_unless_they_are_a_tint() -> None:
    steps = np.repeat(np.array([[0], [30], [200], [210]], np.uint16), 3, axis=1)
    stains = np.array([(98, 62, 140), (232, 190, 214), (246, 246, 246)], np.uint16)  # ever brighter
    other = np.array([(232, 190, 214), (98, 62, 140)], np.uint16)
    for colours, factor in ((steps, 257), (stains, 257), (other, 257), (other, 1)):
        index = GREY % len(colours)
        check(write((index, palette(colours, factor=factor))), colours[index])
    blue = np.arange(256)[:, None] * np.array([[0, 0, 1]])
    check(write((GREY, palette(blue))), GREY)


@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
@pytest.mark.parametrize(("bits", "step"), [(2, 85), (4, 17)])
def test_few_bits_reach_from_black_to_white(bits: int, step: int, photometric: str) -> None:
    levels = GREY % 2**bits
    stored = levels if photometric == "minisblack" else 2**bits - 1 - levels
    check(write((stored, {"bitspersample": bits, "photometric": photometric})), levels * step)


@pytest.mark.parametrize("is_large", [False, True])
def test_smaller_pages_are_copies_by_content_and_not_by_shape_alone(
    is_large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None of them says that it is reduced. Large images are compared in places."""
    if is_large:
        monkeypatch.setattr(copies, "_WHOLE", 100_000)
    noise = np.random.default_rng(0)
    fields = [
        cv2.resize(
            noise.integers(0, 255, size, np.uint8), (640, 480), interpolation=cv2.INTER_CUBIC
        )
        for size in ((48, 64), (48, 64), (24, 32))
    ]
    image, other, third = fields
    half = (320, 240)
    average, nearest = (
        cv2.resize(image, half, interpolation=way) for way in (cv2.INTER_AREA, cv2.INTER_NEAREST)
    )
    check(write((image, BLACK), (average, BLACK), (nearest[::2, ::2], BLACK)), image)
    smaller = cv2.resize(other, half, interpolation=cv2.INTER_AREA)
    check(write((image, BLACK), (smaller, BLACK)), image, smaller)
    thumbnail = third[::8, ::8]
    check(write((thumbnail, BLACK), (image, BLACK)), thumbnail, image)
    empty = np.full_like(image, 7)
    check(write((image, BLACK), (empty[::2, ::2], BLACK)), image, empty[::2, ::2])
    check(write((empty, BLACK), (empty[::2, ::2], BLACK)), empty)
    dark = np.zeros_like(image)
    dark[100:110, 200:210] = 90
    elsewhere = np.zeros_like(average)
    elsewhere[130:135, 20:25] = 90
    check(write((dark, BLACK), (elsewhere, BLACK)), dark, elsewhere)
    check(write((dark, BLACK), (dark[::2, ::2], BLACK)), dark)
    check(write((image.astype("u2") * 9, BLACK), (average, BLACK)), image.astype("u2") * 9, average)


@pytest.mark.parametrize(("photometric", "shown"), [("minisblack", 1), ("miniswhite", 0)])
def test_single_bits_are_black_and_white(photometric: str, shown: int) -> None:
    bits = GREY > 60
    check(write((bits, {"photometric": photometric})), np.where(bits == shown, 255, 0))


def test_the_channels_of_qptiff_have_the_names_of_their_pages() -> None:
    def page(image: np.ndarray, name: str, kind: str = "FullResolution") -> Page:
        about = f"<PerkinElmer-QPI-ImageDescription><ImageType>{kind}</ImageType>"
        about += f"<Name>{name}</Name></PerkinElmer-QPI-ImageDescription>"
        is_level = {"subfiletype": 1} if kind == "ReducedResolution" else {}
        described = {"description": about, "software": "PerkinElmer-QPI", "tile": (16, 16)}
        return image, BLACK | described | is_level

    planes = GREY, 255 - GREY
    pages = [
        page(image, name) for image, name in zip(planes, ("CD3 &amp; CD8", "DAPI"), strict=True)
    ]
    levels = [page(image[::2, ::2], "a", "ReducedResolution") for image in planes]
    thumbnail = np.dstack([GREY[::4, ::4]] * 3), RGB | {"description": "", "subfiletype": 1}
    content = write(*pages, thumbnail, *levels)
    raster = open_bytes(content)
    assert [(scene.channels, scene.levels) for scene in raster.scenes] == [
        (["CD3 & CD8", "DAPI"], [(48, 64), (24, 32)])
    ]
    check(content, 255 - GREY)


def test_a_page_that_does_not_say_what_0_is_is_refused() -> None:
    """The tag that says it becomes another one, which nobody asks for."""
    content = bytearray(write((GREY, BLACK)))
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        place = file.pages.first.tags["PhotometricInterpretation"].offset
    content[place : place + 2] = (263).to_bytes(2, "little")
    with pytest.raises(ImageError, match="does not say whether 0 is black or white"):
        open_bytes(bytes(content))
