"""DICOM slides: a folder of files, of which those of one series are the levels of one slide.

OpenSlide passes over files that it cannot read, so headers are read here first (DICOM PS3.10).
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np

from resunet_ray.data.raster.openslide import OpenSlideRaster
from resunet_ray.data.raster.scene import Plane, Scene, Window
from resunet_ray.errors import ImageError

FORMAT = "dicom"
SUFFIX = ".dcm"

_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"  # VL Whole Slide Microscopy Image Storage
_UNREAD = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99")
"""Transfer syntaxes without types, of big-endian numbers, and deflated."""
_LONG = (b"OB OD OF OL OV OW SQ SV UC UN UR UT UV").split()
"""Types of elements whose length takes four bytes."""
_CLASS, _SYNTAX = 0x0002_0002, 0x0002_0010
_IMAGE_TYPE, _SERIES, _NUM_PATHS = 0x0008_0008, 0x0020_000E, 0x0048_0302
_WIDTH, _HEIGHT = 0x0048_0006, 0x0048_0007
_ITEM_ENDS, _UNKNOWN = (0xFFFE_E00D, 0xFFFE_E0DD), 0xFFFF_FFFF
_LONGEST = 1024  # bytes of a value that is read


class DicomRaster:
    """The slides of a folder, one for each series."""

    format = FORMAT

    def __init__(self, folder: str) -> None:
        """Read the header of every file, and open each series.

        Raises:
            ImageError: a file is damaged or is not part of a slide, or OpenSlide does not read it.
            openslide.OpenSlideError: OpenSlide cannot read a series.
        """
        series: dict[str, list[tuple[Path, dict[int, bytes]]]] = {}
        for path in sorted(Path(folder).iterdir()):
            if path.name.lower().endswith(SUFFIX) and not path.name.startswith("."):
                header = _read_header(path)
                series.setdefault(_text(header, _SERIES), []).append((path, header))
        self._slides: list[OpenSlideRaster] = []
        for _, files in sorted(series.items()):
            slide = OpenSlideRaster(str(files[0][0]))
            self._slides.append(slide)
            _require_all(files, slide.scenes[0])
        self.scenes: Sequence[Scene] = [slide.scenes[0] for slide in self._slides]

    def read(self, plane: Plane, level: int, window: Window) -> np.ndarray:
        """Read a window; see `Raster`."""
        return self._slides[plane.scene].read(replace(plane, scene=0), level, window)

    def close(self) -> None:
        """Close the files."""
        for slide in self._slides:
            slide.close()


def _read_header(path: Path) -> dict[int, bytes]:
    """Return the elements of a file's header up to those that say what it is part of.

    Raises:
        ImageError: it is damaged, or not part of a slide.
    """
    with path.open("rb") as file:
        if file.read(132)[128:] != b"DICM":
            raise ImageError(f"its file {path.name} is not DICOM: expected a file of a slide")
        header: dict[int, bytes] = {}
        for tag, value in _elements(file, name=path.name):
            header[tag] = value
            if tag == _CLASS and _text(header, _CLASS) != _SLIDE:
                raise ImageError(
                    f"its file {path.name} is DICOM of the class {_text(header, _CLASS)}: expected "
                    f"slides ({_SLIDE}). If others are slides, move it to another folder"
                )
            if tag == _SYNTAX and _text(header, _SYNTAX) in _UNREAD:
                raise ImageError(
                    f"its file {path.name} has the transfer syntax {_text(header, _SYNTAX)}: "
                    "expected explicit VR little endian, JPEG or JPEG 2000. Convert it"
                )
    if lost := [f"{tag:08X}" for tag in (_CLASS, _SERIES, _IMAGE_TYPE) if tag not in header]:
        raise ImageError(f"its file {path.name} is damaged: it has no element {', '.join(lost)}")
    if int.from_bytes(header.get(_NUM_PATHS, b"\1"), "little") > 1:
        raise ImageError(f"its file {path.name} has several optical paths: expected one")
    return header


def _elements(file: IO[bytes], *, name: str) -> Iterator[tuple[int, bytes]]:
    """Yield tag and value of each element that is not part of a sequence."""
    wanted = (_CLASS, _SYNTAX, _IMAGE_TYPE, _SERIES, _WIDTH, _HEIGHT, _NUM_PATHS)
    depth = last = 0
    while last < _NUM_PATHS and len(start := file.read(8)) == 8:
        group, element, kind, size = struct.unpack("<HH2sH", start)
        tag = group << 16 | element
        if tag in _ITEM_ENDS:
            depth -= 1
            continue
        if group == 0xFFFE:  # an item, which has no type
            size = int.from_bytes(start[4:], "little")
        elif not kind.isalpha() or (depth == 0 and tag <= last):
            raise ImageError(f"its file {name} is damaged: its header breaks off before {tag:08X}")
        elif kind in _LONG:
            size = int.from_bytes(file.read(4), "little")
        last = tag if depth == 0 else last
        if size == _UNKNOWN:
            depth += 1
        elif depth == 0 and tag in wanted:
            yield tag, file.read(min(size, _LONGEST))
        else:
            file.seek(size, 1)


def _text(header: dict[int, bytes], tag: int) -> str:
    return header[tag].decode("ascii", "replace").strip(" \0")


def _require_all(files: Sequence[tuple[Path, dict[int, bytes]]], slide: Scene) -> None:
    """Refuse a slide of which OpenSlide leaves out a level."""
    for path, header in files:
        size = tuple(int.from_bytes(header.get(tag, b""), "little") for tag in (_HEIGHT, _WIDTH))
        if "VOLUME" in _text(header, _IMAGE_TYPE).split("\\") and size not in slide.levels:
            raise ImageError(
                f"its file {path.name}, of {size[0]} x {size[1]} pixels, is none of the levels "
                f"that OpenSlide reads: {', '.join(f'{h} x {w}' for h, w in slide.levels)}"
            )
