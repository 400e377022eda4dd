"""Whatever a microscope's software writes is read correctly, or refused by name."""

import io
import struct
import zlib
from typing import Any

import cv2
import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from resunet_ray.data.images import (
    decode_image,
    decode_stored,
    encode_png,
    is_stored_form,
)
from resunet_ray.data.raster.opening import open_image
from resunet_ray.data.raster.scene import FIRST
from resunet_ray.errors import ImageError

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
GREY = RGB[..., 0]


def write_tiff(array: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **options)
    return buffer.getvalue()


def save(array: np.ndarray, *, format: str, mode: str | None = None, **options: object) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(buffer, format=format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("format", ["PNG", "TIFF", "BMP"])
def test_rgb_order_survives_every_lossless_format(format: str) -> None:
    np.testing.assert_array_equal(decode_image(save(RGB, format=format), name="a"), RGB)


def test_lossy_formats_keep_the_channels_in_order() -> None:
    red = np.zeros((32, 48, 3), np.uint8)
    red[..., 0] = 200
    for format in ("JPEG", "WEBP", "JPEG2000"):
        mean = decode_image(save(red, format=format), name="a").reshape(-1, 3).mean(axis=0)
        assert np.abs(mean - [200, 0, 0]).max() < 8


def test_grey_one_bit_and_opaque_alpha_become_rgb() -> None:
    grey = np.repeat(GREY[..., None], 3, axis=2)
    np.testing.assert_array_equal(decode_image(save(GREY, format="PNG"), name="a"), grey)
    np.testing.assert_array_equal(decode_image(save(GREY, format="PNG", mode="LA"), name="a"), grey)
    np.testing.assert_array_equal(decode_image(save(RGB, format="PNG", mode="RGBA"), name="a"), RGB)
    black_white = (GREY > 100).astype(np.uint8) * 255
    np.testing.assert_array_equal(
        decode_image(save(black_white, format="PNG", mode="1"), name="a")[..., 1], black_white
    )


def test_a_palette_is_replaced_by_its_colours() -> None:
    few = (RGB // 64) * 64
    content = save(few, format="PNG", mode="P")
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    np.testing.assert_array_equal(decode_image(content, name="a"), expected)


@pytest.mark.parametrize(("bits", "largest"), [(10, 1023), (12, 4095), (14, 16383), (16, 65535)])
def test_stored_counts_are_scaled_by_the_camera_s_depth(bits: int, largest: int) -> None:
    counts = np.linspace(0, largest, 35).reshape(5, 7).astype(np.uint16)
    for format in ("PNG", "TIFF"):
        decoded = decode_image(save(counts, format=format), name="a", stored=True)
        np.testing.assert_array_equal(decoded[..., 2], np.rint(counts * (255 / largest)))


@pytest.mark.parametrize("ending", [".png", ".tiff"])
def test_sixteen_bit_colour_keeps_its_order_and_depth(ending: str) -> None:
    deep = RGB.astype(np.uint16) * 257
    content = cv2.imencode(ending, deep[..., ::-1])[1].tobytes()
    np.testing.assert_array_equal(decode_image(content, name="a"), RGB)
    opaque = np.dstack((deep[..., ::-1], np.full(GREY.shape, 65535, np.uint16)))
    np.testing.assert_array_equal(
        decode_image(cv2.imencode(ending, opaque)[1].tobytes(), name="a"), RGB
    )


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF"])
def test_exif_orientation_turns_the_image_upright(orientation: int, format: str) -> None:
    smooth = cv2.resize(RGB, (56, 40), interpolation=cv2.INTER_LINEAR)
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = save(smooth, format=format, exif=exif)
    with Image.open(io.BytesIO(content)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(decode_image(content, name="a"), expected)
    assert expected.shape[:2] == ((56, 40) if orientation > 4 else (40, 56))


def test_ambiguous_images_are_refused_by_name() -> None:
    pages = io.BytesIO()
    Image.fromarray(RGB).save(
        pages, format="TIFF", save_all=True, append_images=[Image.fromarray(RGB)]
    )
    glass = np.dstack((RGB, np.full(GREY.shape, 9, np.uint8)))
    cases = {
        "2 planes": pages.getvalue(),
        "partly transparent": save(glass, format="PNG"),
        "colour mode CMYK": save(RGB, format="JPEG", mode="CMYK"),
        "values are complex64": write_tiff(GREY.astype(np.complex64)),
        "is not an image": b"MZ\x90\x00 this program",
        "is empty": b"",
    }
    for reason, content in cases.items():
        with pytest.raises(ImageError, match=f"^scan-7 .*{reason}"):
            decode_image(content, name="scan-7")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP"])
def test_a_file_that_ends_early_is_refused_and_not_filled_with_grey(format: str) -> None:
    big = np.random.default_rng(1).integers(0, 256, (64, 80, 3), dtype=np.uint8)
    content = save(big, format=format)
    with pytest.raises(ImageError, match=r"^half cannot be read: .*(damaged|cut short)"):
        decode_image(content[: len(content) // 2], name="half")


@pytest.mark.parametrize("kept", [0.5, 0.8])
def test_a_byte_that_was_changed_is_noticed_where_the_format_has_a_checksum(kept: float) -> None:
    """Whatever its EXIF says, which is read as well."""
    noise = np.random.default_rng(1).integers(0, 256, (64, 80, 3), dtype=np.uint8)
    content = bytearray(save(noise, format="PNG"))
    content[int(kept * len(content))] ^= 255
    with pytest.raises(ImageError, match="^half cannot be read: it is damaged"):
        decode_image(bytes(content), name="half")


def test_a_bomb_is_refused_by_its_header() -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    def bomb(side: int) -> bytes:
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        return (
            b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", header)
            + chunk(b"IDAT", zlib.compress(b""))
            + chunk(b"IEND", b"")
        )

    with pytest.raises(ImageError, match="claims 50000 x 50000 pixels: expected at most 268435456"):
        decode_image(bomb(50_000), name="bomb")
    with pytest.raises(ImageError, match="claims 9000 x 9000 pixels: expected at most 1000"):
        decode_image(bomb(9_000), name="bomb", max_pixels=1000)


def test_images_stored_unchanged_decode_the_same_without_checks() -> None:
    jpeg = save(RGB, format="JPEG")
    assert is_stored_form(jpeg)
    np.testing.assert_array_equal(decode_stored(jpeg), decode_image(jpeg, name="a"))
    exif = Image.Exif()
    exif[0x0112] = 6
    grey = save(GREY, format="JPEG")
    for content in (
        save(RGB, format="PNG"),
        save(RGB, format="BMP"),
        save(RGB, format="JPEG", exif=exif),
        grey,
    ):
        assert not is_stored_form(content)
    for deflate in (True, False):
        np.testing.assert_array_equal(decode_stored(encode_png(RGB, deflate=deflate)), RGB)


def test_more_than_eight_bits_are_not_cut() -> None:
    """Of a camera of 12 bits, in formats whose colours Pillow cuts to 8."""
    counts = np.add.outer(np.arange(40), np.arange(60)).astype(np.uint16) * 41  # 0 to 4018
    colours = np.dstack((counts, counts // 2, counts // 3))
    opaque = np.full_like(counts, 65535)
    chunk = b"tRNS" + struct.pack(">H", 65535)  # a value that no pixel has
    whole = save(counts, format="PNG")
    files = {
        "JPEG 2000, RGB": (imagecodecs.jpeg2k_encode(colours, level=0, reversible=True), colours),
        "JPEG 2000, 12 bits": (
            imagecodecs.jpeg2k_encode(colours, level=0, reversible=True, bitspersample=12),
            colours,
        ),
        "JPEG 2000, signed": (
            imagecodecs.jpeg2k_encode(counts.astype(np.int16) - 2000, level=0, reversible=True),
            counts.astype(np.int16) - 2000,
        ),
        "PNG, grey and alpha": (grey_alpha_png(counts, opaque), counts),
        "PNG with a clear value": (
            whole[:33] + struct.pack(">I", 2) + chunk + struct.pack(">I", zlib.crc32(chunk))
            + whole[33:],
            counts,
        ),
    }  # fmt: skip
    for form, (content, written) in files.items():
        raster = open_image(io.BytesIO(content), max_pixels=2**20)
        assert raster.scenes[0].rgb == (written.ndim == 3), form
        read = raster.read(FIRST, 0, (0, 0, 40, 60))
        np.testing.assert_array_equal(read, written, err_msg=form)


def grey_alpha_png(counts: np.ndarray, alpha: np.ndarray) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        part = kind + content
        return struct.pack(">I", len(content)) + part + struct.pack(">I", zlib.crc32(part))

    rows = b"".join(b"\0" + row.tobytes() for row in np.dstack((counts, alpha)).astype(">u2"))
    header = struct.pack(">IIBBBBB", counts.shape[1], counts.shape[0], 16, 4, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_hot_pixels_do_not_darken_colours_of_sixteen_bits() -> None:
    """Grey of a camera of 10 bits, saved as RGB."""
    counts = np.add.outer(np.arange(40), np.arange(60)).astype(np.uint16) * 10  # 0 to 980
    hot = np.dstack([counts] * 3)
    hot[3, 3] = 65535
    content = io.BytesIO()
    tifffile.imwrite(content, hot, photometric="rgb", metadata=None)
    read = decode_image(content.getvalue(), name="a")[..., 0].astype(int)
    expected = np.rint(counts / 1023 * 255)
    expected[3, 3] = 255
    np.testing.assert_array_equal(read, expected)


@pytest.mark.parametrize("scale", [2**24, 2**20 + 1])
def test_colours_of_32_bits_are_not_all_white(scale: int) -> None:
    levels = np.add.outer(np.arange(40), np.arange(60)).astype(np.uint32)
    content = io.BytesIO()
    tifffile.imwrite(content, np.dstack([levels * scale] * 3), photometric="rgb", metadata=None)
    for stored in (False, True):
        read = decode_image(content.getvalue(), name="a", stored=stored)[..., 0]
        assert read.min() == 0
        assert read.max() == 255
        assert np.corrcoef(read.ravel(), levels.ravel())[0, 1] > 0.99
