"""Plain images of known pixel size are seen at the bundle's, and described in their own pixels."""

import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import tifffile
from support import read_output

from resunet_ray.config import SegmentConfig
from resunet_ray.data.images import decode_stored, encode_png
from resunet_ray.data.raster.planes import EVERYTHING
from resunet_ray.segment.rows import ImageRef, PlannedRegion
from resunet_ray.segment.run import segment
from resunet_ray.segment.work.sample import read_image
from resunet_ray.storage import Cache

PLACES = ((20, 24), (24, 90), (70, 40), (80, 110))


def draw(scale: int) -> np.ndarray:
    """Dark discs with a radius of 8 pixels times the scale."""
    image = np.full((100 * scale, 140 * scale, 3), 230, np.uint8)
    for y, x in PLACES:
        cv2.circle(image, (x * scale, y * scale), 8 * scale, (30, 30, 30), -1)
    return image


def run(folder: Path, bundle: str, **options: Any) -> pd.DataFrame:
    inputs = options.pop("input", (str(folder / "in"),))
    output = str(folder / "out")
    config = SegmentConfig(bundle=bundle, input=inputs, output=output, actors=0, **options)
    segment(config)
    return read_output(output, "images").sort_values("image_uri")


@pytest.mark.parametrize(
    "source", ["manifest", "sidecar", "argument", "metadata", "metadata in an archive"]
)
def test_an_image_of_twice_the_resolution_has_the_same_nuclei(
    source: str, dark_bundle: str, tmp_path: Path
) -> None:
    """The bundle has 0.5 microns per pixel. Discs with a radius of 4 microns cover 50.3 µm²."""
    (tmp_path / "in").mkdir()
    fine = tmp_path / "in" / ("fine.tif" if "metadata" in source else "fine.png")
    fine.write_bytes(encode_png(draw(2)))
    options: dict[str, Any] = {}
    if source == "manifest":
        (tmp_path / "list.csv").write_text(f"uri,mpp\n{fine},0.25\n")
        options["input"] = (str(tmp_path / "list.csv"),)
    elif source == "sidecar":
        (tmp_path / "sizes.csv").write_text("name,mpp\nfine.png,0.25\n")
        options["mpp_csv"] = str(tmp_path / "sizes.csv")
    elif source == "argument":
        options["mpp"] = 0.25
    else:
        size = {"resolution": (40000, 40000), "resolutionunit": "CENTIMETER"}
        tifffile.imwrite(fine, draw(2), photometric="rgb", **size)  # type: ignore[arg-type]
    if "archive" in source:
        with zipfile.ZipFile(tmp_path / "in" / "a.zip", "w") as archive:
            archive.write(fine, "fine.tif")
        fine.unlink()
    (image,) = run(tmp_path, dark_bundle, **options).itertuples()
    assert (image.mpp, image.mpp_source) == (pytest.approx(0.25), source.split()[0])
    assert (image.height, image.width, image.num_nuclei) == (200, 280, len(PLACES))
    assert image.median_nucleus_area_um2 == pytest.approx(np.pi * 4**2, rel=0.1)
    found = read_output(str(tmp_path / "out"), "instances")
    places = sorted(zip(found["centroid_y"], found["centroid_x"], strict=True))
    np.testing.assert_allclose(places, 2 * np.array(PLACES), atol=1.5)
    (region,) = read_output(str(tmp_path / "out"), "regions").itertuples()
    expected = cv2.cvtColor(draw(2), cv2.COLOR_RGB2GRAY) < 128
    assert np.mean((decode_stored(region.mask) > 0) != expected) < 0.02


def test_a_mistaken_pixel_size_is_refused_before_it_takes_all_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encode_png(draw(1)))
    ref = ImageRef(image_id="a", image_uri=str(path), mpp=20.0, mpp_source="argument")
    sample = read_image(
        PlannedRegion(image=ref),
        cache=Cache(str(tmp_path / "cache"), 2**20),
        max_pixels=10**6,
        measure=False,
        selection=EVERYTHING,
        scale_at=lambda mpp: 0.5 / (mpp or 0),
    )
    assert sample.failure is not None
    assert (
        "has 20 microns per pixel (argument), and at the bundle's scale it would have 4000 x"
        in (sample.failure.error_message)
    )


def test_a_tiff_that_becomes_too_large_is_read_in_parts(dark_bundle: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    size = {"resolution": (10000, 10000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(tmp_path / "in" / "a.tif", draw(2), photometric="rgb", **size)  # type: ignore[arg-type]
    (image,) = run(tmp_path, dark_bundle, max_pixels=100_000, tissue="off").itertuples()
    assert (image.is_slide, image.num_nuclei, image.status) == (True, len(PLACES), "ok")
