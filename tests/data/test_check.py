"""A labelled image of many planes and channels: the one that is asked for is taken, or none."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from lif_files import draw_lif
from nd2_files import draw_nd2
from zarr_files import draw_ome_zarr

from resunet_ray.config import PrepareConfig
from resunet_ray.data.archives import Entry
from resunet_ray.data.check import CheckedImage, check_source
from resunet_ray.data.images import decode_stored, encode_png
from resunet_ray.data.metadata import Metadata
from resunet_ray.data.raster.planes import Selection
from resunet_ray.data.sources import Source
from resunet_ray.errors import ConfigError
from resunet_ray.storage import Cache

HEIGHT, WIDTH = 24, 31
MASK = np.zeros((HEIGHT, WIDTH), np.uint8)
MASK[5:12, 6:20] = 255
PLANES = np.random.default_rng(0).integers(0, 256, (3, 2, HEIGHT, WIDTH), dtype=np.uint8)
"""Three focal planes of two channels."""


def check(image: Path, mask: Path, **flags: Any) -> Any:
    config = PrepareConfig(input=("in",), output="out", **flags)
    source = Source("a", Entry(str(image), size=image.stat().st_size), masks=(Entry(str(mask)),))
    return check_source(
        source,
        max_pixels=config.max_pixels,
        known=Metadata(),
        cache=Cache(str(image.parent / "cache"), 2**20),
        selection=Selection.of(config),
    )


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    path = tmp_path / "mask.png"
    path.write_bytes(encode_png(MASK))
    return path


@pytest.mark.parametrize("name", ["stack.tif", "stack.ome.tif"])
def test_a_plane_of_a_hyperstack_is_prepared_with_its_mask(
    name: str, tmp_path: Path, mask: Path
) -> None:
    path = tmp_path / name
    tifffile.imwrite(path, PLANES, imagej="ome" not in name, metadata={"axes": "ZCYX"})
    expected: dict[str | int, np.ndarray] = {"max": PLANES[:, 1].max(axis=0), 2: PLANES[2, 1]}
    expected["mean"] = np.rint(PLANES[:, 1].mean(axis=0))
    for z, plane in expected.items():
        found = check(path, mask, channel="1", z=z)
        assert isinstance(found, CheckedImage), found.message
        np.testing.assert_array_equal(decode_stored(found.image)[..., 0], plane, err_msg=str(z))
        np.testing.assert_array_equal(decode_stored(found.mask), MASK)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({}, "it has 2 channels, 0 (no name), 1 (no name), and it is not clear which of them"),
        ({"channel": "1"}, "it has 3 planes, named z0 to z2 by scene, time and focal plane"),
        ({"channel": "2", "z": "max"}, "and none of them is 2. Pass --channel"),
        ({"channel": "1", "z": 3}, "it has 3 focal planes: there is no number 3"),
    ],
)
def test_an_image_of_several_planes_is_rejected_by_name(
    flags: dict[str, Any], message: str, tmp_path: Path, mask: Path
) -> None:
    path = tmp_path / "stack.tif"
    tifffile.imwrite(path, PLANES, imagej=True, metadata={"axes": "ZCYX"})
    found = check(path, mask, **flags)
    assert found.reason == "unreadable"
    assert re.search(f"^{path} cannot be read: .*{re.escape(message)}", found.message)


def test_a_channel_of_an_array_is_asked_for_in_the_same_words(tmp_path: Path, mask: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.moveaxis(PLANES[0], 0, -1))
    found = check(path, mask, channel="1")
    np.testing.assert_array_equal(decode_stored(found.image)[..., 0], PLANES[0, 1])
    assert "it has 2 channels, 0 (no name), 1 (no name), and it is not clear" in (
        check(path, mask).message
    )


def test_a_negative_focal_plane_is_refused() -> None:
    with pytest.raises(ConfigError, match="--z -1: must be all, max, mean or a number from 0"):
        PrepareConfig(input=("in",), output="out", z=-1)


def draw_stack(folder: Path, suffix: str) -> Path:
    path = folder / f"a{suffix}"
    if suffix == ".lif":
        draw_lif(path, {"a": (PLANES, "zcyx")}, dyes=("TRITC", "DAPI"))
    elif suffix == ".nd2":
        draw_nd2(path, np.moveaxis(PLANES, 1, -1), "zyxc")
    else:
        draw_ome_zarr(path, PLANES, "zcyx", levels=2)
    return path


@pytest.mark.parametrize("suffix", [".lif", ".nd2", ".zarr"])
def test_a_plane_of_a_microscopes_file_is_prepared_with_its_mask(
    suffix: str, tmp_path: Path, mask: Path
) -> None:
    path = draw_stack(tmp_path, suffix)
    for z, plane in {"max": PLANES[:, 1].max(axis=0), 2: PLANES[2, 1]}.items():
        found = check(path, mask, channel="1", z=z)
        assert isinstance(found, CheckedImage), found.message
        np.testing.assert_array_equal(decode_stored(found.image)[..., 0], plane)
        np.testing.assert_array_equal(decode_stored(found.mask), MASK)
    several = check(path, mask, channel="1")
    assert several.reason == "unreadable"
    assert re.search(rf"a{suffix} cannot be read: it has 3 planes, .*Pass --z max", several.message)
    assert "2 channels, " in check(path, mask, channel="lamin", z=0).message
    truth = check(path, path, channel="1", z=0)
    assert (truth.reason, f"a{suffix} is no mask" in truth.message) == ("unreadable_mask", True)


def test_a_plane_of_too_many_pixels_is_rejected_unread(tmp_path: Path, mask: Path) -> None:
    path = draw_stack(tmp_path, ".zarr")
    found = check(path, mask, channel="1", z=0, max_pixels=700)
    assert "a.zarr cannot be read: it claims 24 x 31 pixels" in found.message
