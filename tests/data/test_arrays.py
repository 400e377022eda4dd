"""Each element of a NumPy stack is an image of its own, and nothing in a file is executed."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from resunet_ray.data.check import CheckedImage, Reject, check_source
from resunet_ray.data.images import decode_stored, encode_png
from resunet_ray.data.metadata import Metadata
from resunet_ray.data.sources import Source, list_sources
from resunet_ray.storage import Cache

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (11, 6, 9, 3), dtype=np.uint8)
LABELS = RANDOM.integers(0, 4, (11, 6, 9)).astype(np.int64)


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def claim(*shape: int) -> bytes:
    """Return the header of an array whose values are missing."""
    buffer = io.BytesIO()
    header = {"shape": shape, "fortran_order": False, "descr": "|u1"}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue()


def listed(folder: Path, *, packed: bool = False, **files: bytes) -> list[Source]:
    """Write images and labels under one name, each with the suffix that it begins with."""
    cache = Cache(str(folder / "cache"), 2**30)
    names = {
        f"{kind}/x{'.png' if content[1:4] == b'PNG' else '.npy'}": content
        for kind, content in files.items()
    }
    if packed:
        with zipfile.ZipFile(folder / "in.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in names.items():
                archive.writestr(name, content)
        return list_sources([str(folder / "in.zip")], cache=cache)
    for name, content in names.items():
        (folder / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "in" / name).write_bytes(content)
    return list_sources([str(folder / "in")], cache=cache)


def check(source: Source, folder: Path) -> CheckedImage | Reject:
    cache = Cache(str(folder / "cache"), 2**30)
    return check_source(source, max_pixels=1000, known=Metadata(), cache=cache)


def assert_is(found: CheckedImage | Reject, image: np.ndarray, labels: np.ndarray) -> None:
    assert isinstance(found, CheckedImage), found
    assert found.labels is not None
    np.testing.assert_array_equal(decode_stored(found.image), image)
    np.testing.assert_array_equal(decode_stored(found.labels), labels)


@pytest.mark.parametrize("packed", [False, True])
def test_each_element_of_a_stack_is_an_image(tmp_path: Path, packed: bool) -> None:
    sources = listed(tmp_path, packed=packed, images=npy(IMAGES), labels=npy(LABELS))
    assert [source.image_id for source in sources] == [f"x-{number:02d}" for number in range(11)]
    assert sources[3].name.endswith("images/x.npy[3]")
    for source, image, labels in zip(sources, IMAGES, LABELS, strict=True):
        assert_is(check(source, tmp_path), image, labels)


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (IMAGES.astype(np.float64), IMAGES),
        (IMAGES[..., 0], np.repeat(IMAGES[..., :1], 3, axis=3)),
        (IMAGES.astype(np.uint16) * 257, IMAGES),
    ],
)
def test_grey_16_bit_and_whole_floating_point_images_are_read(
    tmp_path: Path, images: np.ndarray, expected: np.ndarray
) -> None:
    sources = listed(tmp_path, images=npy(images), masks=npy(LABELS > 0))
    for source, image in zip(sources, expected, strict=True):
        found = check(source, tmp_path)
        assert isinstance(found, CheckedImage), found
        np.testing.assert_array_equal(np.abs(decode_stored(found.image) - image.astype(int)), 0)
        np.testing.assert_array_equal(
            decode_stored(found.mask), (LABELS[source.element or 0] > 0) * 255
        )


def test_an_array_without_a_further_dimension_is_one_image(tmp_path: Path) -> None:
    """Also beside a picture, and in MATLAB's and Fortran's order of values."""
    (source,) = listed(tmp_path, images=encode_png(IMAGES[2]), labels=npy(LABELS[2].copy("F")))
    assert source.image_id == "x"
    assert_is(check(source, tmp_path), IMAGES[2], LABELS[2])


@pytest.mark.parametrize(
    ("images", "labels", "reason", "message"),
    [
        (npy(IMAGES[:5]), npy(LABELS), "unreadable", "the same for images and labels"),
        (npy(IMAGES[0]), npy(LABELS), "unreadable_mask", "needs a stack of as many images"),
        (encode_png(IMAGES[0]), npy(LABELS), "unreadable_mask", "needs a stack of as many"),
        (npy(IMAGES), encode_png(LABELS[0].astype(np.uint8)), "unreadable", "the number of images"),
        (npy(IMAGES), npy(LABELS.copy("F")), "unreadable_mask", "in column order"),
        (npy(IMAGES), npy(LABELS + 0.5), "unreadable_mask", "expected whole numbers"),
        (npy(IMAGES), npy(LABELS - 9), "unreadable_mask", "has values from -9"),
        (npy(IMAGES.repeat(2, axis=3)), npy(LABELS), "unreadable", "has 6 channels"),
        (npy(IMAGES[0]), npy(LABELS[0].astype(object)), "unreadable_mask", "array of object"),
        (npy(IMAGES[0]), npy(LABELS[0])[:-8], "unreadable_mask", "ends early"),
        (claim(10**12, 6, 9, 3), claim(10**12, 6, 9), "unreadable", "its shape (1000000000000, "),
        (claim(0, 6, 9, 3), claim(0, 6, 9), "unreadable", "has no pixels"),
        (claim(-1, -9), claim(-1, -9), "unreadable", "has no pixels"),
        (npy(IMAGES[0]), b"", "unreadable_mask", "is not a .npy file"),
        (
            npy(np.zeros((40, 30))),
            npy(np.zeros((40, 30))),
            "unreadable",
            "expected at most 1000 pixels",
        ),
    ],
)
def test_other_arrays_are_refused_by_name(
    tmp_path: Path, images: bytes, labels: bytes, reason: str, message: str
) -> None:
    found = check(listed(tmp_path, images=images, labels=labels)[-1], tmp_path)
    assert isinstance(found, Reject), found
    assert found.reason == reason
    assert message in found.message
