"""ND2 as scenes of planes, from files written byte by byte."""

import math
import struct
import zlib
from pathlib import Path
from typing import Any

import nd2
import numpy as np
import pytest

from resunet_ray.data.raster.nd2 import Nd2Raster
from resunet_ray.data.raster.scene import Plane
from resunet_ray.errors import ImageError

_SIZES = {"t": 2, "p": 3, "z": 4, "y": 17, "x": 23, "c": 2}
_LOOPS = {"t": 1, "p": 2, "z": 4}  # numbers of the kinds of loops


def _values(axes: str, dtype: Any = np.uint16) -> np.ndarray:
    shape = [_SIZES[axis] for axis in axes]
    return np.arange(1, math.prod(shape) + 1).reshape(shape).astype(dtype)


def _xml(name: str, value: Any) -> str:
    if isinstance(value, dict):
        return f"<{name}>{''.join(_xml(key, part) for key, part in value.items())}</{name}>"
    kinds = {bool: "bool", int: "lx_uint32", float: "double", str: "CLxStringW"}
    return f'<{name} runtype="{kinds[type(value)]}" value="{str(value).lower()}"/>'


def _experiment(axes: str) -> dict[str, Any]:
    """The loops of the axes, each within the one before."""
    count = _SIZES[axes[0]]
    points = {f"p{n}": {"dPosX": 1.0, "dPosName": f"well {n}"} for n in range(count)}
    by_axis: dict[str, dict[str, Any]] = {
        "t": {"uiCount": count, "dStart": 0.0, "dPeriod": 1.0, "dDuration": 1.0},
        "p": {"uiCount": count, "Points": points},
        "z": {"uiCount": count, "dZStep": 0.5},
    }
    loop = {"eType": _LOOPS[axes[0]], "uLoopPars": by_axis[axes[0]]}
    return loop | {"ppNextLevelEx": {"a0": _experiment(axes[1:])}} if axes[1:] else loop


def _draw(
    path: Path,
    values: np.ndarray,
    axes: str,
    *,
    row_bytes: int | None = None,
    left_out: tuple[int, ...] = (),
    claimed: dict[str, int] | None = None,
) -> str:
    """Write an ND2 with frames in the order of the axes, which end with y, x and perhaps c."""
    loops = axes.rstrip("yxc")
    frames = values.reshape(-1, *values.shape[len(loops) :])
    count = frames.shape[3] if axes.endswith("c") else 1
    height, width = frames.shape[1:3]
    row_bytes = row_bytes or width * count * values.itemsize
    attributes = {
        "uiWidth": width,
        "uiHeight": height,
        "uiWidthBytes": row_bytes,
        "uiComp": count,
        "uiBpcInMemory": 8 * values.itemsize,
        "uiBpcSignificant": 8 * values.itemsize,
        "uiSequenceCount": len(frames),
    } | (claimed or {})
    planes = {
        f"a{n}": {
            "sDescription": ("dapi", "gfp")[n],
            "uiCompCount": 1,
            "pFluorescentProbe": {"uiColor": 1},
        }
        for n in range(count)
    }
    metadata = {
        "bCalibrated": True,
        "dCalibration": 0.325,
        "sPicturePlanes": {"uiCount": count, "sPlaneNew": planes},
    }
    documents = {"ImageAttributesLV!": attributes, "ImageMetadataSeqLV|0!": metadata}
    if loops:
        documents["ImageMetadataLV!"] = _experiment(loops)
    chunks = {
        key: _xml("variant", {"no": value}).replace("<no>", "").replace("</no>", "").encode()
        for key, value in documents.items()
    }
    for number, frame in enumerate(frames):
        rows = frame.reshape(height, -1).view(np.uint8)
        pixels = np.pad(rows, ((0, 0), (0, row_bytes - rows.shape[1]))).tobytes()
        pixels = zlib.compress(pixels) if attributes.get("eCompression") == 0 else pixels
        if number not in left_out:
            chunks[f"ImageDataSeq|{number}!"] = bytes(8) + pixels
    content = _chunk(b"ND2 FILE SIGNATURE CHUNK NAME01!", b"Ver3.0".ljust(64, b"\0"), 32)
    entries = b""
    for name, chunk in chunks.items():
        entries += name.encode() + struct.pack("<QQ", len(content), len(chunk))
        content += _chunk(name.encode(), chunk, 4072)
    end = b"ND2 CHUNK MAP SIGNATURE 0000001!" + struct.pack("<Q", len(content))
    path.write_bytes(content + _chunk(b"ND2 FILEMAP SIGNATURE NAME 0001!", entries + end, 32))
    return str(path)


def _chunk(name: bytes, content: bytes, name_bytes: int) -> bytes:
    start = struct.pack("<IIQ", 0x0ABECEDA, name_bytes, len(content))
    return start + name.ljust(name_bytes, b"\0") + content


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
    path = _draw(tmp_path / "a.nd2", values, axes, **options)
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
    raster = Nd2Raster(_draw(tmp_path / "a", _values("pyx"), "pyx"))
    assert [scene.name for scene in raster.scenes] == ["well 0", "well 1", "well 2"]
    raster.close()


def test_a_frame_that_is_missing_or_another_is_never_read_as_zeros(tmp_path: Path) -> None:
    path = tmp_path / "a"
    raster = Nd2Raster(_draw(path, _values("tyx"), "tyx", left_out=(1,)))
    assert raster.read(Plane(t=0), 0, (0, 0, 17, 23)).all()
    with pytest.raises(ImageError, match="frame 2 is missing"):
        raster.read(Plane(t=1), 0, (0, 0, 17, 23))
    raster.close()
    _draw(path, _values("tyx"), "tyx")
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
    path = _draw(tmp_path / "a", _values("yx"), "yx", claimed=claimed)
    with pytest.raises(ImageError, match=message):
        Nd2Raster(path)


@pytest.mark.parametrize("claimed", [{"uiHeight": 18}, {"uiWidthBytes": 48}])
def test_a_frame_of_another_size_than_claimed_is_damaged(
    claimed: dict[str, int], tmp_path: Path
) -> None:
    raster = Nd2Raster(_draw(tmp_path / "a", _values("yx"), "yx", claimed=claimed))
    with pytest.raises(ImageError, match="frame 1 is damaged"):
        raster.read(Plane(), 0, (0, 0, 4, 4))
    raster.close()


def test_a_file_cut_short_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "a"
    _draw(path, _values("tyx"), "tyx")
    content = path.read_bytes()
    for size in (*range(0, len(content), 997), len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(ImageError):
            Nd2Raster(str(path))


def test_changed_bytes_are_image_errors_or_read_in_the_size_that_is_claimed(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    path = tmp_path / "a"
    _draw(path, _values("tyxc"), "tyxc")
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
