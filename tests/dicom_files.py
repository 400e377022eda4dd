"""DICOM files, written byte by byte: levels of a slide, and what is not one (DICOM PS3.10)."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"  # VL Whole Slide Microscopy Image Storage
CT = "1.2.840.10008.5.1.4.1.1.2"
PHOTO = "1.2.840.10008.5.1.4.1.1.77.1.4"  # VL Photographic Image Storage
_PLAIN, _JPEG = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.50"
_LONG = ("OB", "SQ")  # whose length takes four bytes


def draw_dicom(
    path: Path,
    image: np.ndarray,
    *,
    series: str = "1.2.3",
    kind: str = SLIDE,
    flavor: str = "VOLUME",
    microns: float = 0.5,
    side: int = 64,
    jpeg: bool = False,
) -> Path:
    """Write one level.

    Args:
        path: the file.
        image: (h, w, 3) uint8, or grey (h, w).
        series: its number, which levels of one slide share.
        kind: its number of a class.
        flavor: what it shows: VOLUME, LABEL, OVERVIEW.
        microns: side of a pixel.
        side: of a frame.
        jpeg: compress the frames, without loss of more than a few grey levels.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    (height, width), number = image.shape[:2], f"1.2.3.{zlib.crc32(str(path).encode())}"
    syntax, samples = _JPEG if jpeg else _PLAIN, image.shape[2] if image.ndim == 3 else 1
    colours = "MONOCHROME2" if samples == 1 else "YBR_FULL_422" if jpeg else "RGB"
    derived = "DERIVED\\PRIMARY\\{}\\RESAMPLED" if microns > 0.5 else "ORIGINAL\\PRIMARY\\{}\\NONE"
    frames = _cut(image, side)
    spacing = _tag(0x0028, 0x0030, "DS", f"{microns / 1000:.9g}\\{microns / 1000:.9g}")
    measures = _tag(0x0028, 0x9110, "SQ", _item(spacing))
    dataset = [
        _tag(0x0008, 0x0008, "CS", derived.format(flavor)),
        _tag(0x0008, 0x0016, "UI", kind),
        _tag(0x0008, 0x0018, "UI", number),
        # A sequence of unknown length stands before the series.
        struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF)
        + _item(_tag(0x0008, 0x1150, "UI", kind))
        + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0),
        _tag(0x0020, 0x000E, "UI", series),
        _tag(0x0028, 0x0002, "US", samples),
        _tag(0x0028, 0x0004, "CS", colours),
        _tag(0x0028, 0x0006, "US", 0),
        _tag(0x0028, 0x0008, "IS", str(len(frames))),
        _tag(0x0028, 0x0010, "US", side),
        _tag(0x0028, 0x0011, "US", side),
        *(_tag(0x0028, place, "US", value) for place, value in _BITS.items()),
        _tag(0x0048, 0x0006, "UL", width),
        _tag(0x0048, 0x0007, "UL", height),
        _tag(0x5200, 0x9229, "SQ", _item(measures)),
        _encapsulate(frames)
        if jpeg
        else _tag(0x7FE0, 0x0010, "OB", b"".join(map(np.ndarray.tobytes, frames))),
    ]
    meta = _tag(0x0002, 0x0002, "UI", kind) + _tag(0x0002, 0x0003, "UI", number)
    meta += _tag(0x0002, 0x0010, "UI", syntax)
    start = bytes(128) + b"DICM" + _tag(0x0002, 0x0000, "UL", len(meta))
    path.write_bytes(start + meta + b"".join(dataset))
    return path


_BITS = {0x0100: 8, 0x0101: 8, 0x0102: 7, 0x0103: 0}
"""Bits allocated, stored, the highest of them, and whether values are signed."""


def _tag(group: int, element: int, kind: str, value: str | int | bytes) -> bytes:
    if isinstance(value, int):
        value = struct.pack("<H" if kind == "US" else "<I", value)
    if isinstance(value, str):
        value = value.encode()
        value += (b"\0" if kind == "UI" else b" ") * (len(value) % 2)
    size = struct.pack("<HI", 0, len(value)) if kind in _LONG else struct.pack("<H", len(value))
    return struct.pack("<HH2s", group, element, kind.encode()) + size + value


def _item(content: bytes) -> bytes:
    return struct.pack("<HHI", 0xFFFE, 0xE000, len(content)) + content


def _cut(image: np.ndarray, side: int) -> list[np.ndarray]:
    """Return square frames, row by row; the last ones reach beyond the image."""
    height, width = image.shape[:2]
    frames = np.zeros((-(-height // side) * side, -(-width // side) * side, *image.shape[2:]), "u1")
    frames[:height, :width] = image
    return [
        np.ascontiguousarray(frames[top : top + side, left : left + side])
        for top in range(0, height, side)
        for left in range(0, width, side)
    ]


def _encapsulate(frames: list[np.ndarray]) -> bytes:
    content = _item(b"")  # a table of offsets that is left out
    for frame in frames:
        file = io.BytesIO()
        Image.fromarray(frame).save(file, "JPEG", quality=98, subsampling=1)
        content += _item(file.getvalue() + b"\0" * (len(file.getvalue()) % 2))
    start = struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFF)
    return start + content + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
