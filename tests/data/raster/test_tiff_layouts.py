"""A TIFF of any drawn layout is read as it was written, or refused; never as something else."""

import io
import itertools
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from resunet_ray.data.raster.opening import open_image
from resunet_ray.data.raster.planes import list_planes
from resunet_ray.data.raster.scene import Plane
from resunet_ray.errors import ImageError

HEIGHT, WIDTH = 37, 50
COLOURS = np.random.default_rng(3).integers(0, 2**16, (3, 256), dtype=np.uint16)
LOSSLESS = [None, None, "zlib", "lzw", "zstd", "packbits", "lzma", "lerc", "png", "jpegxl", "webp"]
TYPES = ["uint8", "uint16", "uint32", "int8", "int16", "float16", "float32", "float64"]
PLAIN: dict[str, tuple[str, int, int]] = {
    "grey": ("minisblack", 1, 0),
    "inverted": ("miniswhite", 1, 0),
    "palette": ("palette", 1, 0),
    "rgb": ("rgb", 3, 0),
    "rgba": ("rgb", 4, 1),
    "grey and alpha": ("minisblack", 2, 1),
    "two": ("minisblack", 2, 0),
    "five": ("minisblack", 5, 0),
}
"""Photometric interpretation, samples of a pixel, and how many of them are opacity."""


def draw_values(shape: tuple[int, ...], dtype: np.dtype, *, alpha_axis: int | None) -> np.ndarray:
    """Draw values over the range of the type; the last sample is opaque if it is opacity."""
    rng = np.random.default_rng(4)
    if dtype.kind == "f":
        values, most = rng.normal(0, 100, shape).astype(dtype), 1
    else:
        least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
        values = rng.integers(least, most, shape, dtype, endpoint=True)
    if alpha_axis is not None:
        np.moveaxis(values, alpha_axis, 0)[-1] = most
    return values


def show(values: np.ndarray, photometric: str) -> np.ndarray:
    """Return what the values of one sample mean: more is brighter, and palettes are colours."""
    if photometric == "miniswhite":
        return np.asarray(np.iinfo(values.dtype).max - values)
    return (COLOURS.T >> 8)[values] if photometric == "palette" else values


DRAWN: dict[str, Any] = {
    "kind": st.sampled_from(sorted(PLAIN)),
    "dtype": st.sampled_from(TYPES).map(np.dtype),
    "pages": st.sampled_from([1, 1, 2]),
    "separate": st.booleans(),
    "metadata": st.sampled_from([None, {}]),
    "compression": st.sampled_from(LOSSLESS),
    "predictor": st.booleans(),
    "rows": st.sampled_from([{}, {"tile": (16, 32)}, {"rowsperstrip": 7}]),
    "byteorder": st.sampled_from(["<", ">"]),
    "bigtiff": st.booleans(),
}


@given(**DRAWN)
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_tiff_is_read_as_written_or_refused(**drawn: Any) -> None:
    compare(**drawn)


@pytest.mark.campaign
@given(**DRAWN)
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
def test_hundreds_of_tiffs_are_read_as_written_or_refused(**drawn: Any) -> None:
    compare(**drawn)


def compare(
    kind: str,
    dtype: np.dtype,
    pages: int,
    separate: bool,
    rows: dict[str, Any],
    compression: str | None,
    **options: Any,
) -> None:
    photometric, samples, opaque = PLAIN[kind]
    several = samples > 1
    shape = (HEIGHT, WIDTH, samples) if several else (HEIGHT, WIDTH)
    shape = (samples, HEIGHT, WIDTH) if several and separate else shape
    axis = (1 if separate else 3) if opaque else None
    array = draw_values((pages, *shape), dtype, alpha_axis=axis)
    if several:
        options |= {"planarconfig": "separate" if separate else "contig"}
        options |= {"extrasamples": ["unassalpha"]} if opaque else {}
    if photometric == "palette":
        options["colormap"] = COLOURS
    if compression in ("jpegxl", "webp"):
        options["compressionargs"] = {"lossless": True}
    options["predictor"] &= compression in ("zlib", "lzw", "zstd", "lzma")
    buffer = io.BytesIO()
    try:
        tifffile.imwrite(
            buffer, array, photometric=photometric, compression=compression, **options, **rows
        )
        assume(
            np.array_equal(tifffile.imread(io.BytesIO(buffer.getvalue())).ravel(), array.ravel())
        )
    except Exception:  # noqa: BLE001 (the writer does not support what was drawn)
        assume(False)
    buffer.seek(0)
    try:
        raster = open_image(buffer, max_pixels=2**20)
        check(raster, array, photometric, colours=samples - opaque, last=several and not separate)
    except ImageError:
        assert (kind, dtype.name) not in REQUIRED or compression not in COMMON


COMMON = (None, "zlib", "lzw", "zstd", "packbits")
REQUIRED = {
    *itertools.product(("grey", "rgb", "five", "two"), ("uint8", "uint16", "uint32", "float32")),
    *itertools.product(("grey", "inverted", "rgba", "grey and alpha"), ("uint8", "uint16")),
    ("palette", "uint8"),
} - set(itertools.product(("rgb",), ("uint32", "float32")))
"""What may not be refused."""


def check(raster: Any, array: np.ndarray, photometric: str, *, colours: int, last: bool) -> None:
    """Compare all planes, in their order, with the pages and samples that were written."""
    pages = array if array.ndim == 3 or not last else np.moveaxis(array, -1, 1)
    pages = pages[:, None] if pages.ndim == 3 else pages[:, :colours]
    found = []
    for number, scene in enumerate(raster.scenes):
        for t, z, channel in itertools.product(
            range(scene.num_t), range(scene.num_z), range(len(scene.channels))
        ):
            plane = Plane(scene=number, t=t, z=z, channel=channel)
            whole = raster.read(plane, 0, (0, 0, HEIGHT, WIDTH))
            found.append(whole)
    part = raster.read(plane, 0, (11, 30, 22, 17))
    np.testing.assert_array_equal(part, whole[11:33, 30:47])
    if photometric == "rgb" and raster.scenes[0].rgb:
        expected = np.moveaxis(pages, 1, -1)
    else:
        expected = show(pages.reshape(-1, HEIGHT, WIDTH), photometric)
    np.testing.assert_array_equal(np.stack(found), expected)


@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "f4"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("samples", [1, 3])
def test_lzw_is_decoded_as_written_in_any_window(dtype: str, order: Any, samples: int) -> None:
    steps = np.random.default_rng(0).integers(0, 4, (3, 53, 71, samples))
    images = (np.cumsum(steps, axis=2) - 60 * (dtype == "i2")).astype(dtype)
    images = images if samples == 3 else images[..., 0]
    cuts: list[dict[str, Any]] = [{"tile": (16, 32)}, {"rowsperstrip": 7}, {"rowsperstrip": 53}]
    kinds = [{"planarconfig": "contig"}, {"planarconfig": "separate"}] if samples == 3 else [{}]
    for cut, kind, predictor in itertools.product(cuts, kinds, (False, True)):
        stored = np.moveaxis(images, -1, 1) if kind.get("planarconfig") == "separate" else images
        buffer = io.BytesIO()
        tifffile.imwrite(
            buffer,
            stored,
            byteorder=order,
            compression="lzw",
            predictor=predictor,
            photometric="rgb" if samples == 3 else "minisblack",
            **cut,
            **kind,
        )
        buffer.seek(0)
        raster = open_image(buffer, max_pixels=2**20)
        for number, plane in enumerate(list_planes(raster.scenes, channel=None)):
            for top, left, height, width in ((0, 0, 53, 71), (5, 30, 20, 35), (52, 70, 1, 1)):
                np.testing.assert_array_equal(
                    raster.read(plane, 0, (top, left, height, width)),
                    images[number, top : top + height, left : left + width],
                )
