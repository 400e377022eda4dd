"""A mask or label file means what was drawn, in whatever form it is stored, or is refused."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from resunet_ray.data.archives import Entry
from resunet_ray.data.check import CheckedImage, check_source
from resunet_ray.data.images import decode_image, decode_stored, encode_png
from resunet_ray.data.labels import (
    decode_labels,
    decode_mask,
    decode_truth,
    decode_values,
    encode_labels,
)
from resunet_ray.data.metadata import Metadata
from resunet_ray.data.raster.planes import EVERYTHING
from resunet_ray.data.sources import Source
from resunet_ray.errors import ImageError
from resunet_ray.segment.rows import ImageRef, PlannedRegion
from resunet_ray.segment.work.sample import read_image
from resunet_ray.storage import Cache

INSTANCES = np.zeros((40, 56), np.int32)
for number, (y, x) in enumerate([(4, 5), (4, 30), (20, 8), (22, 40), (30, 20)], start=1):
    cv2.ellipse(INSTANCES, (x + 4, y + 3), (6, 3), 15.0 * number, 0, 360, number, -1)
NUCLEI = INSTANCES > 0
WHITE = NUCLEI.astype(np.uint8) * np.uint8(255)
RAMP = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
BLACK_RGB, WHITE_RGB = (0, 0, 0), (255, 255, 255)
COLOURS = np.array(
    [BLACK_RGB, (200, 30, 30), (30, 200, 30), (30, 30, 200), (200, 200, 0), (0, 90, 0)], np.uint8
)


def pillow(array: np.ndarray, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format=format, **options)
    return buffer.getvalue()


def tiff(array: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **({"metadata": None} | options))
    return buffer.getvalue()


def indexed(index: np.ndarray, palette: Any, format: str = "PNG", **options: Any) -> bytes:
    image = Image.fromarray(index.astype(np.uint8)).convert("P")
    image.putpalette(np.asarray(palette, np.uint8).ravel().tolist())
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def deep_png(channels: np.ndarray, *, colour_type: int) -> bytes:
    """Write 16 bits for each channel (PNG 3, 11.2), which Pillow cannot."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        end = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + end

    height, width = channels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in channels)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, body) for kind, body in chunks)


def with_alpha(values: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return np.dstack((values, alpha.astype(values.dtype)))


OPAQUE = np.full(NUCLEI.shape, 255, np.uint8)
PADDED = [WHITE_RGB] + [BLACK_RGB] * 255
FAX = {"photometric": "miniswhite", "software": False}
MASKS = {
    "grey": pillow(WHITE),
    "ones": pillow(NUCLEI.astype(np.uint8)),
    "1-bit PNG": pillow(NUCLEI),
    "1-bit BMP": pillow(NUCLEI, "BMP"),
    "black first": indexed(NUCLEI, [BLACK_RGB, WHITE_RGB], bits=1),
    "white first": indexed(~NUCLEI, [WHITE_RGB, BLACK_RGB], bits=1),
    "white first, BMP": indexed(~NUCLEI, PADDED, "BMP"),
    "white first, padded": indexed(~NUCLEI, PADDED),
    "white first, TIFF": indexed(~NUCLEI, PADDED, "TIFF"),
    "ImageJ's inverting LUT": tiff(
        WHITE, photometric="miniswhite", byteorder=">", description="ImageJ=1.54f\n"
    ),
    "WhiteIsZero of 16 bit": tiff(WHITE.astype(np.uint16), photometric="miniswhite"),
    "ImageJ's inverting LUT, PNG": indexed(WHITE, RAMP[::-1]),
    "ImageJ's inverting LUT, BMP": indexed(WHITE, RAMP[::-1], "BMP"),
    "inverting colour map": tiff(
        WHITE, photometric="palette", colormap=RAMP[::-1].T.astype(np.uint16) * 257
    ),
    "tifffile's bool": tiff(NUCLEI),
    "tifffile's bool, packed": tiff(NUCLEI, compression="packbits"),
    "Group 4": pillow(NUCLEI, "TIFF", compression="group4"),
    "Group 3": pillow(NUCLEI, "TIFF", compression="group3"),
    "1 bit, WhiteIsZero": tiff(~NUCLEI, **FAX),
    "1 bit, WhiteIsZero, deflated": tiff(~NUCLEI, compression="zlib", **FAX),
    "1 bit, BlackIsZero": tiff(NUCLEI, photometric="minisblack"),
    "RGB": pillow(np.dstack([WHITE] * 3)),
    "RGB in planes": tiff(np.stack([WHITE] * 3), photometric="rgb", planarconfig="separate"),
    "RGB of 16 bit": deep_png(np.dstack([WHITE] * 3), colour_type=2),
    "red": pillow(COLOURS[NUCLEI.astype(int)]),
    "opaque RGBA": pillow(with_alpha(np.dstack([WHITE] * 3), OPAQUE)),
    "opaque LA": pillow(with_alpha(WHITE, OPAQUE)),
    "opaque TIFF": tiff(
        with_alpha(WHITE, OPAQUE), photometric="minisblack", planarconfig="contig",
        extrasamples=["unassalpha"],
    ),
    "transparent background": pillow(with_alpha(np.dstack([WHITE] * 3), WHITE)),
    "transparent black": pillow(WHITE, transparency=0),
    "transparent entry": indexed(NUCLEI, [BLACK_RGB, WHITE_RGB], transparency=b"\0\xff"),
    "lossless WebP": pillow(np.dstack([WHITE] * 3), "WEBP", lossless=True),
    "JPEG 2000": pillow(WHITE, "JPEG2000"),
    "signed": tiff(NUCLEI.astype(np.int8)),
    "floats": tiff(NUCLEI.astype(np.float32)),
    "BigTIFF": tiff(WHITE, bigtiff=True, tile=(16, 32)),
}  # fmt: skip


@pytest.mark.parametrize("form", MASKS)
def test_a_nucleus_is_what_was_drawn_as_one(form: str) -> None:
    np.testing.assert_array_equal(decode_mask(MASKS[form], name="m"), NUCLEI)


@pytest.mark.parametrize(
    "compression",
    ["lzw", "zstd", "zlib", "packbits", "lzma", "jpeg2000", "jpegxl", "lerc", "png", "webp"],
)
def test_labels_are_read_in_every_lossless_compression(compression: str) -> None:
    values, options = INSTANCES.astype(np.uint8), {"photometric": "minisblack"}
    if compression == "webp":
        values, options = np.dstack([values] * 3), {"photometric": "rgb"}
    content = tiff(values, compression=compression, tile=(16, 32), **options)
    np.testing.assert_array_equal(decode_labels(content, name="l"), INSTANCES)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8"])
def test_numbers_of_every_type_are_labels(kind: str, order: str) -> None:
    for photometric in ("minisblack", "miniswhite"):
        content = tiff(INSTANCES.astype(order + kind), photometric=photometric, byteorder=order)
        np.testing.assert_array_equal(decode_labels(content, name="l"), INSTANCES)


def test_numbers_are_kept_up_to_the_largest_that_is_stored() -> None:
    labels = INSTANCES * 13107  # 5 × 13107 = 65535
    np.testing.assert_array_equal(decode_labels(encode_labels(labels, name="l"), name="l"), labels)
    np.testing.assert_array_equal(decode_labels(tiff(labels), name="l"), labels)
    with pytest.raises(ImageError, match="65536 instances"):
        encode_labels(np.full((2, 3), 65536, np.int32), name="a")


@pytest.mark.parametrize("kind", ["u4", "i8", "u8", "f8"])
def test_larger_numbers_are_replaced_in_their_order(kind: str) -> None:
    numbers = np.array([0, 7, 65536, 70_000, 2**31 + 3, 2**32 - 1], np.uint64)
    content = tiff(numbers[INSTANCES].astype(kind))
    np.testing.assert_array_equal(decode_labels(content, name="l"), INSTANCES)
    full = INSTANCES[4:8, 7:9] + 70_000  # a crop within a nucleus, without background
    assert full.min() == full.max() == 70_001
    np.testing.assert_array_equal(decode_labels(tiff(full.astype(kind)), name="l"), full - 70_000)


def test_numbers_beyond_float64_stay_apart() -> None:
    numbers = np.where(INSTANCES, 2**63 + INSTANCES.astype(np.uint64), 0)
    np.testing.assert_array_equal(decode_labels(tiff(numbers), name="l"), INSTANCES)


def test_more_instances_than_can_be_stored_are_refused() -> None:
    labels = np.arange(260 * 256, dtype=np.uint32).reshape(260, 256)
    with pytest.raises(ImageError, match=r"^l\.tif has 66559 instances: expected at most 65535"):
        decode_labels(tiff(labels), name="l.tif")
    many = decode_labels(tiff(labels[:256] * 3), name="l.tif")
    np.testing.assert_array_equal(many, labels[:256])


def test_the_indices_of_a_palette_are_the_numbers_of_its_instances() -> None:
    glasbey = np.vstack(([WHITE_RGB], COLOURS[1:], [BLACK_RGB] * 250))  # 0 is white in ImageJ's
    optimised = np.array([3, 0, 2, 1, 5, 4])  # greys in the order that an optimiser chose
    by_grey = np.argsort(optimised)[INSTANCES]
    forms = {
        "colours": indexed(INSTANCES, COLOURS),
        "ImageJ": tiff(
            INSTANCES.astype(np.uint8), photometric="palette", description="ImageJ=1.54f\n",
            colormap=glasbey.T.astype(np.uint16) * 257,
        ),
        "contrast": indexed(INSTANCES, np.minimum(RAMP.astype(int) * 100, 255)),
        "optimised": indexed(by_grey, np.repeat(optimised[:, None], 3, axis=1)),
        "ramp": indexed(INSTANCES, RAMP, "TIFF"),
    }  # fmt: skip
    for form, content in forms.items():
        np.testing.assert_array_equal(decode_labels(content, name=form), INSTANCES, err_msg=form)


def test_each_colour_is_an_instance_if_it_is_in_one_place() -> None:
    painted = COLOURS[INSTANCES]
    colours = [int(red) << 16 | int(green) << 8 | int(blue) for red, green, blue in COLOURS]
    expected = np.argsort(np.argsort(colours))[INSTANCES]
    clear = with_alpha(painted, WHITE)
    deep = deep_png(painted.astype(np.uint16) * 257, colour_type=2)
    for content in (pillow(painted), pillow(painted, "BMP"), tiff(painted), pillow(clear), deep):
        np.testing.assert_array_equal(decode_labels(content, name="l"), expected)
    with pytest.raises(ImageError, match=r"^l has 6 distinct values .* in instances/"):
        decode_mask(pillow(painted), name="l")


def test_sixteen_bits_beside_transparency_are_not_cut_to_eight() -> None:
    numbers = np.where(INSTANCES, 256 + INSTANCES, 0)  # all 1 in eight bits
    content = deep_png(np.dstack((numbers, np.full_like(numbers, 65535))), colour_type=4)
    np.testing.assert_array_equal(decode_labels(content, name="l"), numbers)


def soft_jpeg() -> bytes:
    return pillow(WHITE, "JPEG", quality=60)


RING = np.where((cv2.dilate(WHITE, np.ones((3, 3), np.uint8)) > 0) & ~NUCLEI, 128, WHITE)
NOT_MASKS = {
    "JPEG": (soft_jpeg(), r"distinct values from 0 to 255: expected 0 and one other"),
    "smoothed": (pillow(cv2.GaussianBlur(WHITE, (0, 0), 1.0)), "distinct values from 0 to 255"),
    "ring": (pillow(RING.astype(np.uint8)), "3 distinct values from 0 to 255"),
    "JPEG in TIFF": (tiff(WHITE, compression="jpeg"), "distinct values from 0 to"),
    "1 and 2": (pillow(NUCLEI.astype(np.uint8) + np.uint8(1)), "2 distinct values from 1 to 2"),
}


@pytest.mark.parametrize("form", NOT_MASKS)
def test_prepare_and_segment_refuse_a_soft_mask_in_the_same_words(
    form: str, tmp_path: Path
) -> None:
    content, reason = NOT_MASKS[form]
    for name, data in (("image", pillow(WHITE)), ("mask", content)):
        (tmp_path / name).write_bytes(data)
    image, mask = Entry(str(tmp_path / "image")), Entry(str(tmp_path / "mask"))
    cache = Cache(str(tmp_path / "cache"), 2**20)
    source = Source("a", image, masks=(mask,))
    checked = check_source(source, max_pixels=10**6, known=Metadata(), cache=cache)
    assert not isinstance(checked, CheckedImage)
    assert checked.reason == "not_a_mask"
    ref = ImageRef(image_id="a", image_uri=image.uri, mask_uri=mask.uri)
    planned = PlannedRegion(image=ref)
    sample = read_image(planned, cache=cache, max_pixels=10**6, measure=False, selection=EVERYTHING)
    assert sample.failure is not None
    assert sample.failure.error_stage == "mask"
    assert checked.message == sample.failure.error_message
    with pytest.raises(ImageError, match=f"^mask has {reason}|^mask has .*{reason}"):
        decode_mask(content, name="mask")


IN_PIECES = INSTANCES.copy()
IN_PIECES[:, 12] = 0  # through the first nucleus
TRUTHS = {
    "8 bits": pillow(INSTANCES.astype(np.uint8)),
    "32 bits": tiff(INSTANCES),
    "float": tiff(INSTANCES.astype(np.float32)),
    "wide": tiff(np.where(INSTANCES, INSTANCES + 70_000, 0).astype(np.uint32)),
    "colours": pillow(COLOURS[INSTANCES]),
}


@pytest.mark.parametrize("form", TRUTHS)
def test_numbered_nuclei_are_scored_as_such(form: str) -> None:
    truth = decode_truth(TRUTHS[form], name="t")
    assert truth.labels is not None
    np.testing.assert_array_equal(truth.mask, NUCLEI)
    places = {tuple(np.unique(INSTANCES[truth.labels == number])) for number in range(1, 6)}
    assert places == {(1,), (2,), (3,), (4,), (5,)}


def test_nuclei_in_two_pieces_are_numbered_all_the_same() -> None:
    truth = decode_truth(pillow(IN_PIECES.astype(np.uint8)), name="t")
    assert truth.labels is not None
    np.testing.assert_array_equal(truth.labels, IN_PIECES)


ONE = np.where(INSTANCES == 1, WHITE, 0).astype(np.uint8)
SOFT = {
    "ring of one": np.where(
        (cv2.dilate(ONE, np.ones((3, 3), np.uint8)) > 0) & (ONE == 0), 128, ONE
    ),
    "smoothed one": cv2.GaussianBlur(ONE, (0, 0), 1.5),
    "classes": np.where(INSTANCES, 1 + INSTANCES % 2, 0).astype(np.uint8),
    "noise": np.random.default_rng(0).integers(0, 9, INSTANCES.shape, dtype=np.uint8),
}


@pytest.mark.parametrize("form", SOFT)
def test_values_that_are_no_numbers_of_nuclei_are_refused(form: str) -> None:
    with pytest.raises(ImageError, match=r"^t has .* distinct values .* must be in one place"):
        decode_truth(pillow(SOFT[form].astype(np.uint8)), name="t")


def test_a_mask_does_not_number_its_nuclei_and_a_jpeg_cannot() -> None:
    truth = decode_truth(pillow(WHITE), name="t")
    np.testing.assert_array_equal(truth.mask, NUCLEI)
    assert truth.labels is None
    with pytest.raises(ImageError, match="distinct values"):
        decode_truth(pillow((50 * INSTANCES).astype(np.uint8), "JPEG", quality=100), name="t")


EDGES = cv2.dilate(WHITE, np.ones((3, 3), np.uint8)) != WHITE
OTHER = {
    "classes": (np.where(NUCLEI, 1 + INSTANCES % 2, 0), "2 numbers that cover 5 separate areas"),
    "a mask": (WHITE, "1 numbers that cover 5 separate areas"),
    "smoothed": (cv2.GaussianBlur(WHITE, (0, 0), 2.0), "separate areas"),
    "borders": (np.where(EDGES, 255, INSTANCES), "6 numbers that cover 10 separate areas"),
    "255 for background": (np.where(NUCLEI, INSTANCES, 255), "has no 0: expected 0 for background"),
    "the last for background": (np.where(NUCLEI, INSTANCES - 1, 5), "or enclose each other"),
}


@pytest.mark.parametrize("form", OTHER)
def test_numbers_of_something_else_are_no_instances(form: str) -> None:
    numbers, reason = OTHER[form]
    with pytest.raises(ImageError, match=f"^l .*{reason}"):
        decode_labels(pillow(numbers.astype(np.uint8)), name="l")


@pytest.mark.parametrize(
    "content",
    [
        tiff((40 * INSTANCES).astype(np.uint8), compression="jpeg", photometric="minisblack"),
        pillow(np.dstack([(40 * INSTANCES).astype(np.uint8)] * 3), "WEBP", quality=90),
        pillow((40 * INSTANCES).astype(np.uint8), "JPEG2000", irreversible=True,
               quality_mode="rates", quality_layers=[10]),
    ],
)  # fmt: skip
def test_compression_with_loss_leaves_no_instances(content: bytes) -> None:
    with pytest.raises(ImageError, match="separate areas"):
        decode_labels(content, name="l")


def test_numbers_of_twenty_bits_are_kept_in_jpeg_2000() -> None:
    numbers = np.where(NUCLEI, 999_990 + INSTANCES, 0).astype(np.uint32)
    content = bytes(imagecodecs.jpeg2k_encode(numbers, level=0, reversible=True, bitspersample=20))
    np.testing.assert_array_equal(decode_labels(content, name="l"), INSTANCES)


HALF = np.where(NUCLEI, 0.5, 0).astype(np.float32)
TWO = np.dstack((WHITE, WHITE))
REFUSED = {
    "alpha": (pillow(with_alpha(np.dstack([OPAQUE] * 3), WHITE)), "is transparent in .*% of its"),
    "alpha of black": (pillow(with_alpha(np.dstack([WHITE * 0] * 3), WHITE)), "is transparent"),
    "alpha of LA": (pillow(with_alpha(OPAQUE, WHITE)), "if the transparency is the mask, save"),
    "alpha, no nucleus": (pillow(with_alpha(OPAQUE, OPAQUE * 0)), "transparent in 100% of"),
    "alpha in TIFF": (
        tiff(with_alpha(np.dstack([OPAQUE] * 3), WHITE), photometric="rgb",
             extrasamples=["unassalpha"]),
        "is transparent",
    ),
    "alpha of a palette": (
        indexed(~NUCLEI, [WHITE_RGB, WHITE_RGB], transparency=b"\xff\0"), "is transparent",
    ),
    "half transparent": (pillow(with_alpha(WHITE, WHITE // 2 + 1)), "transparent"),
    "fractions": (tiff(HALF),  r"values from 0 to 0\.5 that are not whole"),
    "NaN": (tiff(np.where(NUCLEI, np.float32(1), np.float32(np.nan))), "that are not whole"),
    "infinity": (tiff(np.where(NUCLEI, np.float32(np.inf), np.float32(0))), "that are not whole"),
    "negative": (tiff(-INSTANCES), "has the value -5: expected none below 0"),
    "complex": (tiff(INSTANCES.astype(np.complex64)), "values of type complex64"),
    "pages": (tiff(np.stack([WHITE] * 3), photometric="minisblack"), "has 3 pages: expected one"),
    "planes of one page": (
        tiff(np.stack([WHITE] * 4), imagej=True, truncate=True, metadata={"axes": "ZYX"}),
        "has 4 pages",
    ),
    "channels": (
        tiff(TWO, photometric="minisblack", planarconfig="contig", extrasamples=["unspecified"]),
        "has 2 channels: expected one",
    ),
    "channels beside RGB": (
        tiff(np.dstack((TWO, TWO)), photometric="rgb", extrasamples=["unspecified"]),
        "has 4 channels",
    ),
    "float colours": (
        tiff(np.dstack((HALF, HALF, HALF * 0)), photometric="rgb"), "3 channels of float32",
    ),
    "CMYK": (tiff(np.dstack([TWO, TWO]), photometric="separated"), "stores colours as SEPARATED"),
    "empty": (b"", "is empty: 0 bytes"),
    "photograph": (
        pillow(np.random.default_rng(0).integers(1, 256, (40, 56, 3), dtype=np.uint8)),
        "colour image without black",
    ),
    "shuffled palette": (
        indexed((INSTANCES + 2) % 6, np.roll(COLOURS, 2, axis=0)), r"palette in which \(200, 200",
    ),
    "not an image": (b"MZ\x90\0 this program", "is not an image"),
    "not a TIFF": (b"II this is a text", "is damaged"),
}  # fmt: skip


@pytest.mark.parametrize("form", REFUSED)
def test_what_can_be_read_in_more_than_one_way_is_refused_by_name(form: str) -> None:
    content, reason = REFUSED[form]
    for decode in (decode_mask, decode_labels, decode_values):
        with pytest.raises(ImageError, match=f"^scan-7 .*{reason}"):
            decode(content, name="scan-7")


def test_colours_that_stand_for_several_nuclei_are_no_instances() -> None:
    classes = COLOURS[(INSTANCES + 1) // 2]  # two kinds of two nuclei, one of one
    with pytest.raises(ImageError, match="^l is a colour image whose 3 colours cover 5 separate"):
        decode_labels(pillow(classes), name="l")
    with pytest.raises(ImageError, match="^l is a JPEG, whose compression changes numbers"):
        decode_labels(soft_jpeg(), name="l")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_is_turned_like_its_image(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    for format in ("PNG", "TIFF"):
        content = pillow(WHITE, format, exif=exif)
        image = decode_image(content, name="a")[..., 0]
        np.testing.assert_array_equal(decode_mask(content, name="a") * 255, image)
        assert (image.shape == (40, 56)) == (orientation < 5)
    (tmp_path / "a.tif").write_bytes(content)
    numbered = pillow(INSTANCES.astype(np.uint8), "TIFF", exif=exif)
    (tmp_path / "l.tif").write_bytes(numbered)
    entry = Entry(str(tmp_path / "a.tif"))
    source = Source("a", entry, masks=(entry,), labels=Entry(str(tmp_path / "l.tif")))
    cache = Cache(str(tmp_path / "cache"), 2**20)
    checked = check_source(source, max_pixels=10**6, known=Metadata(), cache=cache)
    assert isinstance(checked, CheckedImage)
    assert checked.labels is not None
    np.testing.assert_array_equal(decode_stored(checked.mask), image)
    np.testing.assert_array_equal(decode_stored(checked.labels) > 0, image > 0)


NOISE = np.random.default_rng(1).integers(0, 2, (64, 80), dtype=np.uint8)


@pytest.mark.parametrize("keep", [0.05, 0.5, 0.98])
def test_a_file_that_ends_early_is_an_error(keep: float) -> None:
    forms = [pillow(NOISE), pillow(NOISE, "TIFF"), pillow(NOISE, "BMP"), tiff(NOISE)]
    forms.append(tiff(np.stack([NOISE] * 2), photometric="minisblack"))
    forms += [tiff(NOISE, compression=kind, tile=(16, 32)) for kind in ("lzw", "zlib", "zstd")]
    for content in forms:
        with pytest.raises(ImageError, match=r"^half (cannot be read: .*(damaged|cut short)|has)"):
            decode_labels(content[: int(len(content) * keep)], name="half")


def test_bytes_that_are_overwritten_are_an_error() -> None:
    content = bytearray(tiff(NOISE, compression="zlib"))
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        start = file.pages.first.dataoffsets[0]
    content[start + 20 : start + 60] = bytes(40)
    with pytest.raises(ImageError, match="^l cannot be read: it is damaged: "):
        decode_labels(bytes(content), name="l")


def test_a_bomb_is_refused_by_its_header() -> None:
    content = bytearray(tiff(NOISE))
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        tag = file.pages.first.tags["ImageLength"]
    kind = {2: "<H", 4: "<I"}[tag.valuebytecount]
    struct.pack_into(kind, content, tag.valueoffset, 60_000)
    with pytest.raises(
        ImageError, match="^bomb cannot be read: it claims 60000 x 80 pixels: expected .*10000"
    ):
        decode_labels(bytes(content), name="bomb", max_pixels=10_000)
    with pytest.raises(ImageError, match=r"^bomb .*claims"):
        decode_labels(bytes(content), name="bomb")
    with pytest.raises(ImageError, match="^bomb .*claims 64 x 80 pixels: expected at most 1000"):
        decode_mask(encode_png(NOISE), name="bomb", max_pixels=1000)
