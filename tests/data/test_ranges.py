"""Planes of a file that share one range: equal counts are equally bright, whoever reads them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tifffile

from resunet_ray.data.ranges import share_range
from resunet_ray.data.raster.planes import Selection
from resunet_ray.data.raster.scene import Plane, Scene, Window
from resunet_ray.data.stacks import read_from_stack
from resunet_ray.errors import ImageError, ResourceError
from resunet_ray.storage import Cache

HEIGHT, WIDTH = 60, 75
FIELD = np.tile(np.linspace(100, 1100, WIDTH).round(), (HEIGHT, 1))


class Drawn:
    """A raster of planes in memory, some of which are damaged."""

    format = "drawn"

    def __init__(
        self, planes: np.ndarray, *, damaged: Sequence[int] = (), error: type[Exception] = OSError
    ) -> None:
        self._planes, self._damaged, self._error = planes, damaged, error
        self.read_planes: set[int] = set()
        levels = [planes.shape[1:3]]
        self.scenes = [Scene(levels=levels, channels=[None], dtype=planes.dtype, num_t=len(planes))]

    def read(self, plane: Plane, _level: int, window: Window) -> np.ndarray:
        self.read_planes.add(plane.t)
        if plane.t in self._damaged:
            raise self._error("no")
        top, left, height, width = window
        return self._planes[plane.t, top : top + height, left : left + width]

    def close(self) -> None:
        """Nothing to close."""


def test_a_few_planes_stand_for_all() -> None:
    """Of 1000 planes with 0 to 999 counts more; 16 of them at equal distances are read."""
    planes = (FIELD + np.arange(1000)[:, None, None]).astype(np.uint16)
    raster = Drawn(planes)
    found = share_range(raster, Plane(t=437), stored=False)
    assert len(raster.read_planes) == 16
    assert {0, 999} < raster.read_planes
    expected = np.percentile(planes[::9], (1, 99.8))
    assert found.counts == pytest.approx(tuple(expected), abs=50)
    assert found == share_range(raster, Plane(t=3), stored=False)


def test_damaged_planes_do_not_count_but_a_storage_that_does_not_answer_does() -> None:
    planes = np.stack([FIELD, FIELD, FIELD * 50]).astype(np.uint16)
    whole = share_range(Drawn(planes[:2]), Plane(), stored=False)
    assert share_range(Drawn(planes, damaged=[2]), Plane(), stored=False) == whole
    with pytest.raises(ImageError, match="none of the 3 planes that were looked at is read: no "):
        share_range(Drawn(planes, damaged=[0, 1, 2]), Plane(), stored=False)
    with pytest.raises(ResourceError):
        share_range(Drawn(planes, damaged=[2], error=ResourceError), Plane(), stored=False)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_a_dark_plane_stays_dark(dtype: type, tmp_path: Path) -> None:
    """Of two channels and three points in time, each half as bright as the one before."""
    values = FIELD / 5 if dtype == np.uint8 else FIELD
    other = np.full_like(values, 250)
    planes = np.stack([np.stack([other, values * share]) for share in (1, 0.5, 0.25)])
    path = tmp_path / "lapse.ome.tif"
    tifffile.imwrite(path, planes.astype(dtype), metadata={"axes": "TCYX"})

    def read(t: int, *, shared: bool) -> tuple[np.ndarray, tuple[float, float] | None]:
        return read_from_stack(
            str(path),
            Plane(t=t),
            fingerprint=None,
            cache=Cache(str(tmp_path / "cache"), 2**20),
            max_pixels=10**6,
            selection=Selection(channel="1"),
            stored=False,
            shared=shared,
        )

    (first, levels), (last, same) = read(0, shared=True), read(2, shared=True)
    assert levels == same
    assert levels is not None
    bright, dark = (np.clip(grey[0, -5, 0], *levels) - levels[0] for grey in (first, last))
    assert dark < 0.3 * bright
    own, nothing = read(2, shared=False)
    assert nothing is None
    assert dtype == np.uint8 or own[0, -5, 0] > 240, "its own range"
