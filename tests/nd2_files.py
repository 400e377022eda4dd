"""ND2 files written byte by byte."""

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

_LOOPS = {"t": 1, "p": 2, "z": 4}  # numbers of the kinds of loops


def _xml(name: str, value: Any) -> str:
    if isinstance(value, dict):
        return f"<{name}>{''.join(_xml(key, part) for key, part in value.items())}</{name}>"
    kinds = {bool: "bool", int: "lx_uint32", float: "double", str: "CLxStringW"}
    return f'<{name} runtype="{kinds[type(value)]}" value="{str(value).lower()}"/>'


def _experiment(axes: str, sizes: dict[str, int]) -> dict[str, Any]:
    """The loops of the axes, each within the one before."""
    count = sizes[axes[0]]
    points = {f"p{n}": {"dPosX": 1.0, "dPosName": f"well {n}"} for n in range(count)}
    by_axis: dict[str, dict[str, Any]] = {
        "t": {"uiCount": count, "dStart": 0.0, "dPeriod": 1.0, "dDuration": 1.0},
        "p": {"uiCount": count, "Points": points},
        "z": {"uiCount": count, "dZStep": 0.5},
    }
    loop = {"eType": _LOOPS[axes[0]], "uLoopPars": by_axis[axes[0]]}
    return loop | {"ppNextLevelEx": {"a0": _experiment(axes[1:], sizes)}} if axes[1:] else loop


def draw_nd2(
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
        documents["ImageMetadataLV!"] = _experiment(
            loops, dict(zip(axes, values.shape, strict=True))
        )
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
