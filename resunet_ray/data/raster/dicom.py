"""DICOM slides: files of a folder, of which those of one series are the levels of one slide.

OpenSlide passes over files that it cannot read, so headers are read first.
"""

import functools
import io
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import numpy as np

from resunet_ray import storage
from resunet_ray.data.raster.libraries import as_image_error
from resunet_ray.data.raster.openslide import OpenSlideRaster
from resunet_ray.data.raster.scene import Scene
from resunet_ray.errors import ChangedError, ImageError

if TYPE_CHECKING:
    from pydicom import Dataset

FORMAT = "dicom"
SUFFIX = ".dcm"

_LAST = 0x0048_0302
"""Tag of the number of optical paths, after which no more is read."""
_FIRST_OF_DATA = 0x0003_0000
"""Tags before are those of the file, not of the slide (DICOM PS3.10, section 7.1)."""


Series = dict[str, tuple[int, int] | None]
"""One slide: its files by name, with height and width of the level that each holds. Files that show
something else, as its label, have none."""


class DicomRaster(OpenSlideRaster):
    """The slide that a file belongs to, with the other files of its series beside it."""

    def __init__(self, path: str) -> None:
        """Read the header of every file in the folder, and open the slide.

        Raises:
            ImageError: for the reasons of `list_series`, or OpenSlide leaves out a level.
        """
        file = Path(path)
        series = next(one for one in list_series(str(file.parent)) if file.name in one)
        super().__init__(path)
        levels = self.scenes[0].levels
        for name, size in series.items():
            if size is not None and size not in levels:
                raise ImageError(
                    f"its file {name}, of {size[0]} x {size[1]} pixels, is none of the levels that "
                    f"OpenSlide reads: {', '.join(f'{h} x {w}' for h, w in levels)}"
                )


def list_series(uri: str, *, fingerprint: str | None = None) -> list[Series]:
    """List the slides of a folder by their series, from the files' headers alone.

    Args:
        uri: the folder.
        fingerprint: as it was listed; None: whatever is there.

    Raises:
        ImageError: a file is damaged, or is not part of a slide that OpenSlide reads.
        ChangedError: the folder is no longer the one that was listed.
    """
    files = [
        file
        for file in storage.walk_files(uri, deep=False)
        if storage.is_part(file.path, suffix=SUFFIX)
    ]
    if fingerprint not in (None, storage.join_folder(files)):
        raise ChangedError(f"{uri} has changed since it was listed")
    found: dict[str, Series] = {}
    for file in sorted(files, key=lambda file: file.path):
        series, size = _read_file(storage.join(uri, file.path), file.fingerprint)
        found.setdefault(series, {})[file.path] = size
    return [files for _, files in sorted(found.items())]


def list_scenes(uri: str, *, fingerprint: str | None) -> list[Scene]:
    """List the slides of a folder as their headers describe them; see `list_series`."""
    return [
        Scene(
            levels=sorted((size for size in series.values() if size is not None), reverse=True),
            channels=[None],
            dtype=np.dtype(np.uint8),
            rgb=True,
        )
        for series in list_series(uri, fingerprint=fingerprint)
    ]


@functools.lru_cache(maxsize=2**12)
def _read_file(uri: str, fingerprint: str) -> tuple[str, tuple[int, int] | None]:
    """Return the series of a file, and height and width of the level that it holds."""
    with storage.Reader(uri, fingerprint=fingerprint) as raw:
        header = _read_header(cast("BinaryIO", io.BufferedReader(raw)), name=uri.rsplit("/", 1)[1])
    is_level = "VOLUME" in header.ImageType
    size = int(header.TotalPixelMatrixRows), int(header.TotalPixelMatrixColumns)
    return str(header.SeriesInstanceUID), size if is_level else None


def _read_header(file: BinaryIO, *, name: str) -> "Dataset":
    """Return what a file's header says, up to the number of optical paths.

    Raises:
        ImageError: it is damaged, or not part of a slide.
    """
    # Not above: only slides in DICOM need it, and it takes a quarter of a second.
    from pydicom import errors, filereader, uid

    slide = uid.VLWholeSlideMicroscopyImageStorage
    implicit, deflated = uid.ImplicitVRLittleEndian, uid.DeflatedExplicitVRLittleEndian
    try:
        filereader.read_preamble(file, force=False)
    except (errors.InvalidDicomError, EOFError):
        raise ImageError(f"its file {name} is not DICOM: expected a file of a slide") from None
    about = _read_tags(file, name=name, end=_FIRST_OF_DATA)
    _require(about, "MediaStorageSOPClassUID", "TransferSyntaxUID", name=name)
    kind, syntax = about.MediaStorageSOPClassUID, about.TransferSyntaxUID
    if kind != slide:
        raise ImageError(
            f"its file {name} is DICOM of the class {kind.name}: expected {slide.name}. "
            "If others are slides, move it to another folder"
        )
    if syntax in (implicit, deflated, uid.ExplicitVRBigEndian):
        raise ImageError(
            f"its file {name} has the transfer syntax {syntax.name}: expected explicit VR "
            "little endian, JPEG or JPEG 2000. Convert it"
        )
    header = _read_tags(file, name=name, end=_LAST + 1)
    needed = "ImageType", "SeriesInstanceUID", "TotalPixelMatrixRows", "TotalPixelMatrixColumns"
    _require(header, *needed, name=name)
    if header.get("NumberOfOpticalPaths", 1) > 1:
        raise ImageError(f"its file {name} has several optical paths: expected one")
    return header


def _read_tags(file: BinaryIO, *, name: str, end: int) -> "Dataset":
    """Return the elements from here to a tag."""
    from pydicom import filereader

    with as_image_error(f"its file {name} is damaged"):
        return filereader.read_dataset(
            file,
            is_implicit_VR=False,
            is_little_endian=True,
            stop_when=lambda tag, *_: tag >= end,
        )


def _require(header: "Dataset", *elements: str, name: str) -> None:
    if lost := [element for element in elements if element not in header]:
        raise ImageError(f"its file {name} is damaged: it has no element {', '.join(lost)}")
