"""CZI files of one uncompressed level, written byte by byte (Zeiss's ZISRAW, version 1.2)."""

import struct
from pathlib import Path

import numpy as np

_GREY, _GREY_16, _BGR = 0, 1, 3  # types of pixels
_HEADER_BYTES = 512


def draw_czi(
    path: Path, image: np.ndarray, *, microns: float = 0.5, side: int = 64, channels: int = 1
) -> str:
    """Write an image in square tiles.

    Args:
        path: the file.
        image: (h, w, 3) uint8, or grey of 8 or 16 bits.
        microns: side of a pixel.
        side: of a tile.
        channels: how often the image is written, as one channel after the other.
    """
    height, width = image.shape[:2]
    kind = _BGR if image.ndim == 3 else {1: _GREY, 2: _GREY_16}[image.itemsize]
    content, entries = bytes(_HEADER_BYTES + 32), []
    for channel in range(channels):
        for top in range(0, height, side):
            for left in range(0, width, side):
                tile = image[top : top + side, left : left + side]
                place = {"X": left, "Y": top, "C": channel, "S": 0}
                sizes = {"X": tile.shape[1], "Y": tile.shape[0]}
                entry = _entry(kind, len(content), place, sizes)
                pixels = (tile[..., ::-1] if kind == _BGR else tile).tobytes()
                body = struct.pack("<iiq", 0, 0, len(pixels)) + entry
                content += _segment(b"ZISRAWSUBBLOCK", body.ljust(256, b"\0") + pixels)
                entries.append(entry)
    directory = len(content)
    body = struct.pack("<i", len(entries)).ljust(128, b"\0") + b"".join(entries)
    content += _segment(b"ZISRAWDIRECTORY", body)
    metadata = len(content)
    scaling = "".join(
        f'<Distance Id="{axis}"><Value>{microns * 1e-6}</Value></Distance>' for axis in "XY"
    )
    xml = (
        "<ImageDocument><Metadata><Information><Image>"
        f"<SizeX>{width}</SizeX><SizeY>{height}</SizeY><SizeS>1</SizeS></Image></Information>"
        f"<Scaling><Items>{scaling}</Items></Scaling></Metadata></ImageDocument>"
    ).encode()
    content += _segment(b"ZISRAWMETADATA", struct.pack("<ii", len(xml), 0).ljust(256, b"\0") + xml)
    attachments = len(content)
    content += _segment(b"ZISRAWATTDIR", bytes(256))
    header = struct.pack(
        "<4i16s16siqqiq", 1, 0, 0, 0, b"1" * 16, b"1" * 16, 0, directory, metadata, 0, attachments
    )
    start = _segment(b"ZISRAWFILE", header.ljust(_HEADER_BYTES, b"\0"))
    path.write_bytes(start + content[len(start) :])
    return str(path)


def _segment(name: bytes, body: bytes) -> bytes:
    """Return a part of the file: its name, its size with and without padding, and its content."""
    padded = body.ljust(-(-len(body) // 32) * 32, b"\0")
    return name.ljust(16, b"\0") + struct.pack("<qq", len(padded), len(body)) + padded


def _entry(kind: int, offset: int, place: dict[str, int], sizes: dict[str, int]) -> bytes:
    start = struct.pack("<2siqiiB5xi", b"DV", kind, offset, 0, 0, 0, len(place))
    return start + b"".join(
        struct.pack("<4siifi", axis.encode(), first, sizes.get(axis, 1), 0.0, sizes.get(axis, 1))
        for axis, first in place.items()
    )
