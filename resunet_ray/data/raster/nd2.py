"""Nikon's ND2: a frame for each point of an experiment, with all channels."""

import itertools
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from resunet_ray.data.raster.libraries import as_image_error, load_library
from resunet_ray.data.raster.scene import Plane, Scene, Window
from resunet_ray.errors import ImageError

_MAX_SIDE = 2**21  # pixels; a header that claims more is damaged
_MAX_FRAME = 2**30  # bytes of a compressed frame, which is decoded whole
_MAX_FRAMES = 2**20
_MAGIC = 0x0ABECEDA
_HEADER = struct.Struct("<IIQ")  # of a chunk: magic number, bytes of its name, bytes of its content
_ENTRY = struct.Struct("<QQ")  # of the map: offset and size of a chunk
_END = struct.Struct("<32sQ")  # of the file: signature and offset of the map
_PIXELS = 4096  # bytes from the start of a frame's chunk to its pixels, of which 8 are a time


class Nd2Raster:
    """A file of images of a Nikon microscope; each position on the stage is a scene."""

    format = "nd2"

    def __init__(self, path: str) -> None:
        """Read the metadata.

        Args:
            path: the file on this machine.

        Raises:
            ImageError: it is damaged, of a kind that is not read, or nd2 is not installed.
        """
        library = load_library("nd2")
        with as_image_error():
            self._file = library.ND2File(path)
            try:
                _check_kind(self._file)
                self._offsets = _find_frames(path)
                self._path = path
                self._list_scenes()
            except BaseException as error:
                self._file.close()
                if isinstance(error, MemoryError):  # metadata are small
                    raise ImageError("it is damaged: its metadata claim to be huge") from None
                raise

    def read(self, plane: Plane, _level: int, window: Window) -> np.ndarray:
        """Read a window; see `Raster`."""
        top, left, height, width = window
        number = self._frames[plane.scene, plane.t, plane.z]
        with as_image_error():
            self._check_frame(number)
            rows, columns = self.scenes[plane.scene].levels[0]
            # nd2 leaves out axes with one element.
            frame = self._file.read_frame(number).reshape(-1, rows, columns)
            part = frame[plane.channel, top : top + height, left : left + width]
            return np.array(part, self.scenes[plane.scene].dtype)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _list_scenes(self) -> None:
        """Find the scenes, and which frame each of their planes is in."""
        file, attributes = self._file, self._file.attributes
        loops = file.loop_indices
        keys = sorted({key for loop in loops for key in loop})
        others = [key for key in keys if key not in "TZ"]
        sizes = {key: 1 + max(loop[key] for loop in loops) for key in keys}
        places = list(itertools.product(*(range(sizes[key]) for key in others)))
        order = {place: number for number, place in enumerate(places)}
        self._frames = {
            (order[tuple(loop[key] for key in others)], loop.get("T", 0), loop.get("Z", 0)): number
            for number, loop in enumerate(loops)
        }
        if len(self._frames) != len(loops):
            raise ImageError("it has two axes of the same kind: expected one each for time and z")
        channels = _read_channels(file, count=attributes.componentCount)
        names = _read_positions(file)
        self.scenes = [
            Scene(
                levels=[(attributes.heightPx, attributes.widthPx)],
                channels=channels,
                dtype=np.dtype(file.dtype),
                num_t=sizes.get("T", 1),
                num_z=sizes.get("Z", 1),
                mpp=_read_mpp(file),
                name=_name(others, place, names=names) if len(places) > 1 else None,
            )
            for place in places
        ]

    def _check_frame(self, number: int) -> None:
        """Refuse a frame that is missing, which nd2 would fill with zeros."""
        attributes = self._file.attributes
        offset = self._offsets.get(number)
        if offset is None:
            raise ImageError(f"its frame {number + 1} is missing: the acquisition was stopped")
        name = f"ImageDataSeq|{number}!".encode()
        with open(self._path, "rb") as file:  # noqa: PTH123
            file.seek(offset)
            magic, name_bytes, size = _HEADER.unpack(file.read(_HEADER.size))
            found = file.read(len(name))
            end = file.seek(0, 2)
        stored = attributes.heightPx * attributes.widthBytes + 8
        whole = size >= stored or attributes.compressionType is not None
        fits = _HEADER.size + name_bytes + 8 == _PIXELS and offset + _PIXELS - 8 + size <= end
        if magic != _MAGIC or found != name or not whole or not fits:
            raise ImageError(f"its frame {number + 1} is damaged")


def _check_kind(file: Any) -> None:
    """Refuse what would be read wrong, or not at all."""
    if file.is_legacy:
        raise ImageError("it is of the kind before 2006 (JPEG 2000): save it again in NIS-Elements")
    attributes = file.attributes
    height, width, count = attributes.heightPx, attributes.widthPx, attributes.componentCount
    if not (0 < height <= _MAX_SIDE and 0 < width <= _MAX_SIDE):
        raise ImageError(f"it claims {height} x {width} pixels: expected 1 to {_MAX_SIDE} per side")
    if count != (attributes.channelCount or 1):
        raise ImageError(
            f"its {attributes.channelCount} channels have {count} components: expected grey. "
            "Save colours as TIFF"
        )
    if attributes.compressionType == "lossy":
        raise ImageError("its pixels are compressed with loss: expected none or lossless")
    if attributes.compressionType and height * attributes.widthBytes > _MAX_FRAME:
        raise ImageError(f"its compressed frames have {height} x {width} pixels: save it without")
    frames = 1
    for loop in file.experiment:
        frames *= loop.count
    if frames > _MAX_FRAMES:
        raise ImageError(f"it claims {frames} frames: expected at most {_MAX_FRAMES}")


def _find_frames(path: str) -> dict[int, int]:
    """Return the offset of each frame's chunk by its number, from the map at the file's end."""
    with open(path, "rb") as file:  # noqa: PTH123
        file.seek(-_END.size, 2)
        _, start = _END.unpack(file.read(_END.size))
        file.seek(start)
        _, name_bytes, size = _HEADER.unpack(file.read(_HEADER.size))
        file.seek(name_bytes, 1)
        content = file.read(size)
    frames, place = {}, 0
    while (end := content.find(b"!", place) + 1) and end + _ENTRY.size <= len(content):
        name = content[place:end]
        if name.startswith(b"ImageDataSeq|"):
            frames[int(name[13:-1])] = _ENTRY.unpack_from(content, end)[0]
        place = end + _ENTRY.size
    return frames


def _read_channels(file: Any, *, count: int) -> list[str | None]:
    names = [channel.channel.name or None for channel in file.metadata.channels or ()]
    return names if len(names) == count else [None] * count


def _read_positions(file: Any) -> list[str | None]:
    """Return the names of the positions on the stage."""
    for loop in file.experiment:
        if loop.type == "XYPosLoop":
            return [point.name or None for point in loop.parameters.points]
    return []


def _name(keys: Sequence[str], place: Sequence[int], *, names: Sequence[str | None]) -> str:
    words = {"P": "position", "U": "step"}
    parts: Mapping[str, int] = dict(zip(keys, place, strict=True))
    return ", ".join(
        (names[step] if key == "P" and step < len(names) else None)
        or f"{words.get(key, key)} {step + 1}"
        for key, step in parts.items()
    )


def _read_mpp(file: Any) -> tuple[float, float] | None:
    channels = file.metadata.channels
    if not channels or not all(channels[0].volume.axesCalibrated[:2]):
        return None
    width, height = channels[0].volume.axesCalibration[:2]
    return height, width
