"""Which planes of a file are images of their own, and which of its channels shows the nuclei."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from resunet_ray.config import PrepareConfig, SegmentConfig
from resunet_ray.data.raster.scene import Plane, Raster, Scene, Window
from resunet_ray.errors import ImageError

_NUCLEAR = re.compile(
    r"dapi|hoechst|h-?33342|h3342|draq ?5|syto|sytox|h2b|nuclei|nuclear|nucleus|propidium|to-?pro",
    re.IGNORECASE,
)
"""Names of stains and markers that show nuclei, and of channels that do."""


@dataclass(frozen=True)
class Selection:
    """What of a file is read, beside every scene and every point in time."""

    channel: str | None = None
    """The name or number of the channel that shows nuclei. None: the only channel, or the only one
    whose name is that of a nuclear stain."""
    z: str | int = "all"
    """Number of the focal plane; all: each is an image of its own; max, mean: one image of all."""

    @classmethod
    def of(cls, config: SegmentConfig | PrepareConfig) -> Self:
        """Return what a job reads."""
        return cls(config.channel, config.z)

    def apply(self, raster: Raster) -> Raster:
        """Return the raster with the focal planes that are selected.

        Raises:
            ImageError: a scene has no focal plane of that number.
        """
        if self.z == "all":
            return raster
        if isinstance(self.z, int):
            fewest = min(scene.num_z for scene in raster.scenes)
            if self.z >= fewest:
                raise ImageError(f"it has {fewest} focal planes: there is no number {self.z}")
        return _Projected(raster, self.z)


EVERYTHING = Selection()


class _Projected:
    """A raster with one focal plane in place of several."""

    def __init__(self, raster: Raster, z: str | int) -> None:
        self._raster, self._z = raster, z
        self.format = raster.format
        self.scenes = [replace(scene, num_z=1) for scene in raster.scenes]

    def read(self, plane: Plane, level: int, window: Window) -> np.ndarray:
        if isinstance(self._z, int):
            return self._raster.read(replace(plane, z=self._z), level, window)
        found: np.ndarray | None = None
        count = self._raster.scenes[plane.scene].num_z
        for z in range(count):
            values = self._raster.read(replace(plane, z=z), level, window)
            if self._z == "max":
                found = values if found is None else np.maximum(found, values)
            else:
                share = values.astype(np.float64) / count
                found = share if found is None else found + share
        assert found is not None, "a scene has at least one focal plane"
        kind = self._raster.scenes[plane.scene].dtype
        return (np.rint(found) if kind.kind in "iu" else found).astype(kind)

    def close(self) -> None:
        self._raster.close()


def name_plane(plane: Plane, scenes: Sequence[Scene]) -> str:
    """Name a plane within its file: `s1-t003-z02`, without what there is only one of."""
    scene = scenes[plane.scene]
    counts = (("s", plane.scene, len(scenes)), ("t", plane.t, scene.num_t))
    counts += (("z", plane.z, scene.num_z),)  # type: ignore[assignment]
    return "-".join(
        f"{letter}{number:0{len(str(count - 1))}d}" for letter, number, count in counts if count > 1
    )


def list_planes(scenes: Sequence[Scene], *, channel: str | None) -> list[Plane]:
    """List the planes to segment: every scene, point in time and focal plane, in one channel each.

    Args:
        scenes: of the file.
        channel: the name or number of the channel that shows nuclei. None: the only channel, or
            the only one whose name is that of a nuclear stain.

    Raises:
        ImageError: it is not clear which channel shows nuclei, or there is none of that name.
    """
    return [
        Plane(scene=number, channel=choose_channel(scene, wanted=channel), z=z, t=t)
        for number, scene in enumerate(scenes)
        for t in range(scene.num_t)
        for z in range(scene.num_z)
    ]


def choose_channel(scene: Scene, *, wanted: str | None) -> int:
    """Return the number of the channel that shows nuclei; see `list_planes`."""
    names, count = scene.channels, len(scene.channels)
    if count == 1:
        return 0
    listed = ", ".join(f"{number} ({name or 'no name'})" for number, name in enumerate(names))
    if wanted is None:
        found = [number for number, name in enumerate(names) if name and _NUCLEAR.search(name)]
        problem = "it is not clear which of them shows nuclei"
    else:
        found = [number for number, name in enumerate(names) if name == wanted]
        if not found and wanted.isdigit() and int(wanted) < count:
            found = [int(wanted)]
        problem = f"{len(found) or 'none'} of them is {wanted}"
    if len(found) != 1:
        raise ImageError(
            f"it has {count} channels, {listed}, and {problem}. Pass --channel with a name or "
            "number"
        )
    return found[0]
