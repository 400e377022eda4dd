"""DICOM slides: a folder of files, of which those of one series are the levels of one slide.

OpenSlide passes over files that it cannot read, so headers are read first.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resunet_ray import storage
from resunet_ray.data.raster.openslide import OpenSlideRaster
from resunet_ray.data.raster.scene import Plane, Scene, Window
from resunet_ray.errors import ImageError

if TYPE_CHECKING:
    from pydicom import Dataset

FORMAT = "dicom"
SUFFIX = ".dcm"

_LAST = 0x0048_0302
"""Tag of the number of optical paths, after which no more is read."""


class DicomRaster:
    """The slides of a folder, one for each series."""

    format = FORMAT

    def __init__(self, folder: str) -> None:
        """Read the header of every file, and open each series.

        Raises:
            ImageError: a file is damaged or is not part of a slide, or OpenSlide does not read it.
            openslide.OpenSlideError: OpenSlide cannot read a series.
        """
        series: dict[str, list[tuple[Path, Dataset]]] = {}
        for path in sorted(Path(folder).iterdir()):
            if storage.is_part(path.name, suffix=SUFFIX):
                header = _read_header(path)
                series.setdefault(header.SeriesInstanceUID, []).append((path, header))
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


def _read_header(path: Path) -> "Dataset":
    """Return what a file's header says, up to the number of optical paths.

    Raises:
        ImageError: it is damaged, or not part of a slide.
    """
    # Not above: only slides in DICOM need it, and it takes a quarter of a second.
    from pydicom import errors, filereader, uid

    slide = uid.VLWholeSlideMicroscopyImageStorage
    implicit, deflated = uid.ImplicitVRLittleEndian, uid.DeflatedExplicitVRLittleEndian
    try:
        about = filereader.read_file_meta_info(path)
        _require(about, "MediaStorageSOPClassUID", "TransferSyntaxUID", name=path.name)
        kind, syntax = about.MediaStorageSOPClassUID, about.TransferSyntaxUID
        if kind != slide:
            raise ImageError(
                f"its file {path.name} is DICOM of the class {kind.name}: expected {slide.name}. "
                "If others are slides, move it to another folder"
            )
        if syntax in (implicit, deflated, uid.ExplicitVRBigEndian):
            raise ImageError(
                f"its file {path.name} has the transfer syntax {syntax.name}: expected explicit VR "
                "little endian, JPEG or JPEG 2000. Convert it"
            )
        with path.open("rb") as file:
            header = filereader.read_partial(file, stop_when=_is_past)
    except (ImageError, OSError):
        raise
    except errors.InvalidDicomError:
        raise ImageError(f"its file {path.name} is not DICOM: expected a file of a slide") from None
    except Exception as error:  # noqa: BLE001 (pydicom has no type for damage)
        raise ImageError(f"its file {path.name} is damaged: {error}") from None
    _require(header, "ImageType", "SeriesInstanceUID", name=path.name)
    if header.get("NumberOfOpticalPaths", 1) > 1:
        raise ImageError(f"its file {path.name} has several optical paths: expected one")
    return header


def _require(header: "Dataset", *elements: str, name: str) -> None:
    if lost := [element for element in elements if element not in header]:
        raise ImageError(f"its file {name} is damaged: it has no element {', '.join(lost)}")


def _is_past(tag: int, _vr: str | None, _length: int) -> bool:
    return tag > _LAST


def _require_all(files: Sequence[tuple[Path, "Dataset"]], slide: Scene) -> None:
    """Refuse a slide of which OpenSlide leaves out a level."""
    for path, header in files:
        size: Any = header.get("TotalPixelMatrixRows"), header.get("TotalPixelMatrixColumns")
        if "VOLUME" in header.ImageType and size not in slide.levels:
            raise ImageError(
                f"its file {path.name}, of {size[0]} x {size[1]} pixels, is none of the levels "
                f"that OpenSlide reads: {', '.join(f'{h} x {w}' for h, w in slide.levels)}"
            )
