"""ND2 as scenes of planes, from files written byte by byte."""

import math
import struct
from pathlib import Path
from typing import Any

import nd2
import numpy as np
import pytest
from nd2_files import draw_nd2

from resunet_ray.data.raster.nd2 import Nd2Raster
from resunet_ray.data.raster.scene import Plane
from resunet_ray.errors import ImageError

_SIZES = {"t": 2, "p": 3, "z": 4, "y": 17, "x": 23, "c": 2}


def _values(axes: str, dtype: Any = np.uint16) -> np.ndarray:
    shape = [_SIZES[axis] for axis in axes]
    return np.arange(1, math.prod(shape) + 1).reshape(shape).astype(dtype)


@pytest.mark.parametrize("axes", ["yx", "yxc", "zyx", "tpzyxc", "ptyx", "tzyxc"])
@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (np.uint8, {}),
        (np.uint16, {"row_bytes": 100}),
        (np.float32, {}),
        (np.uint16, {"claimed": {"eCompression": 0}}),
    ],
)
def test_every_plane_is_that_of_its_axes(
    axes: str, dtype: Any, options: dict[str, Any], tmp_path: Path
) -> None:
    values = _values(axes, dtype)
    path = draw_nd2(tmp_path / "a.nd2", values, axes, **options)
    raster = Nd2Raster(path)
    assert len(raster.scenes) == (_SIZES["p"] if "p" in axes else 1)
    for scene in raster.scenes:
        assert (scene.levels, scene.dtype, scene.rgb) == ([(17, 23)], dtype, False)
        assert scene.mpp == (0.325, 0.325)
        assert scene.channels == (["dapi", "gfp"] if "c" in axes else ["dapi"])
        assert (scene.num_t, scene.num_z) == tuple(
            _SIZES[axis] if axis in axes else 1 for axis in "tz"
        )
    theirs = nd2.imread(path)
    theirs = np.moveaxis(theirs, -3, -1) if "c" in axes else theirs
    assert theirs.shape == values.shape
    for number, scene in enumerate(raster.scenes):
        for t, channel, z in np.ndindex(scene.num_t, len(scene.channels), scene.num_z):
            plane = Plane(scene=number, channel=channel, z=z, t=t)
            place = {"p": number, "t": t, "c": channel, "z": z}
            index = tuple(place.get(axis, slice(None)) for axis in axes)
            window = raster.read(plane, 0, (0, 0, 17, 23))
            assert (window == values[index]).all()
            assert (window == theirs[index]).all()
            part = raster.read(plane, 0, (5, 7, 12, 16))
            assert (part == values[index][5:, 7:]).all()
            assert part.dtype == dtype
    raster.close()


def test_scenes_are_named_by_their_position(tmp_path: Path) -> None:
    raster = Nd2Raster(draw_nd2(tmp_path / "a", _values("pyx"), "pyx"))
    assert [scene.name for scene in raster.scenes] == ["well 0", "well 1", "well 2"]
    raster.close()


def test_a_frame_that_is_missing_or_another_is_never_read_as_zeros(tmp_path: Path) -> None:
    path = tmp_path / "a"
    raster = Nd2Raster(draw_nd2(path, _values("tyx"), "tyx", left_out=(1,)))
    assert raster.read(Plane(t=0), 0, (0, 0, 17, 23)).all()
    with pytest.raises(ImageError, match="frame 2 is missing"):
        raster.read(Plane(t=1), 0, (0, 0, 17, 23))
    raster.close()
    draw_nd2(path, _values("tyx"), "tyx")
    content = path.read_bytes()
    place = content.rindex(b"ImageDataSeq|1!") + len(b"ImageDataSeq|1!")
    wrong = struct.unpack_from("<Q", content, place)[0] - 4096
    path.write_bytes(content[:place] + struct.pack("<Q", wrong) + content[place + 8 :])
    raster = Nd2Raster(str(path))
    with pytest.raises(ImageError, match="frame 2 is damaged"):
        raster.read(Plane(t=1), 0, (0, 0, 17, 23))
    raster.close()


@pytest.mark.parametrize(
    ("claimed", "message"),
    [
        ({"uiComp": 3}, "1 channels have 3 components"),
        ({"eCompression": 1}, "with loss"),
        ({"uiHeight": 2**21 + 1}, "claims 2097153 x 23"),
        ({"uiWidth": 0}, "claims 17 x 0"),
        ({"eCompression": 0, "uiHeight": 2**20, "uiWidthBytes": 2**11}, "compressed frames have"),
    ],
)
def test_what_would_be_read_wrong_or_not_at_all_is_refused(
    claimed: dict[str, int], message: str, tmp_path: Path
) -> None:
    path = draw_nd2(tmp_path / "a", _values("yx"), "yx", claimed=claimed)
    with pytest.raises(ImageError, match=message):
        Nd2Raster(path)


@pytest.mark.parametrize("claimed", [{"uiHeight": 18}, {"uiWidthBytes": 48}])
def test_a_frame_of_another_size_than_claimed_is_damaged(
    claimed: dict[str, int], tmp_path: Path
) -> None:
    raster = Nd2Raster(draw_nd2(tmp_path / "a", _values("yx"), "yx", claimed=claimed))
    with pytest.raises(ImageError, match="frame 1 is damaged"):
        raster.read(Plane(), 0, (0, 0, 4, 4))
    raster.close()


def test_a_file_cut_short_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "a"
    draw_nd2(path, _values("tyx"), "tyx")
    content = path.read_bytes()
    for size in (*range(0, len(content), 997), len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(ImageError):
            Nd2Raster(str(path))


def test_changed_bytes_are_image_errors_or_read_in_the_size_that_is_claimed(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    path = tmp_path / "a"
    draw_nd2(path, _values("tyxc"), "tyxc")
    content = path.read_bytes()
    used = np.flatnonzero(np.frombuffer(content, np.uint8))
    refused = 0
    for _ in range(200):
        changed = bytearray(content)
        for place in rng.choice(used, size=3):
            changed[place] = rng.integers(256)
        path.write_bytes(changed)
        try:
            raster = Nd2Raster(str(path))
            height, width = raster.scenes[0].levels[0]
            assert raster.read(Plane(), 0, (0, 0, height, width)).shape == (height, width)
            raster.close()
        except ImageError:
            refused += 1
    assert refused > 50
