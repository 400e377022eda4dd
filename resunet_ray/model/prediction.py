"""What the network says about an image: the probability, and the outputs of its heads.

| head | outputs | meaning of the activated output |
|---|---|---|
| mask | 1 | probability that a pixel belongs to a nucleus |
| distance | 1 | distance to the border of the nucleus, over its maximum there: 0 to 1 |
| centre | 2 | rows and columns from the pixel to the centre of its nucleus, pixels |
| diameter | 1 | diameter of the disc with the area of the nucleus, pixels |
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, Float32, UInt8, UInt16

from resunet_ray.compiled import compiled
from resunet_ray.config.model import Head
from resunet_ray.model.tiling import Slices


class _Outputs(NamedTuple):
    number: int
    low: float
    high: float
    """The range of the activated outputs that 8 bits hold."""


_OUTPUTS: dict[Head, _Outputs] = {
    "distance": _Outputs(1, 0, 1),
    "centre": _Outputs(2, -64, 64),
    "diameter": _Outputs(1, 0, 255),
}


def count_outputs(heads: Sequence[Head]) -> int:
    """Return the number of the network's outputs."""
    return 1 + sum(_OUTPUTS[head].number for head in heads)


def slice_head(heads: Sequence[Head], head: Head) -> slice:
    """Return the outputs of one head."""
    start = count_outputs(heads[: heads.index(head)])
    return slice(start, start + _OUTPUTS[head].number)


@dataclass(frozen=True)
class Prediction:
    """What the network says about each pixel of an image or of a part of it."""

    maps: Float[np.ndarray, "k h w"]
    """Activated outputs: the probability, then those of the heads; float16 if packed."""
    heads: tuple[Head, ...] = ()
    exact: Float32[np.ndarray, "h w"] | None = None
    """The probability of a packed prediction, which decides about masks and stays float32."""

    @property
    def probability(self) -> Float32[np.ndarray, "h w"]:
        """Probability that a pixel belongs to a nucleus."""
        return self.maps[0] if self.exact is None else self.exact

    @property
    def distance(self) -> Float32[np.ndarray, "h w"] | None:
        """Distance to the border, 0 to 1; None if the network lacks the head."""
        found = self._read("distance")
        return None if found is None else found[0]

    @property
    def centre(self) -> Float32[np.ndarray, "2 h w"] | None:
        """Rows and columns to the centre, pixels; None if the network lacks the head."""
        return self._read("centre")

    @property
    def diameter(self) -> Float32[np.ndarray, "h w"] | None:
        """Diameter of the nucleus, pixels; None if the network lacks the head."""
        found = self._read("diameter")
        return None if found is None else found[0]

    def _read(self, head: Head) -> Float32[np.ndarray, "k h w"] | None:
        if head not in self.heads:
            return None
        found = self.maps[slice_head(self.heads, head)]
        if found.dtype != np.float16:
            return found
        read = np.zeros(found.shape, np.float32)
        rows, columns = (np.ones(length, np.float32) for length in found.shape[1:])
        _add_halves(read, found.view(np.uint16), (0, 0, 0, 0), rows, columns)
        return read

    def pack(self) -> "Prediction":
        """Store the outputs of the heads in half the memory: a job holds many predictions."""
        if not self.heads or self.exact is not None:
            return self
        import torch  # ten times as fast as NumPy; what plans and commits does without it

        halves = torch.from_numpy(self.maps).half().numpy()
        return Prediction(halves, self.heads, self.maps[0].copy())

    def add_to(
        self,
        total: Float32[np.ndarray, "k _h _w"],
        *,
        part: Slices,
        place: Slices,
        rows: Float32[np.ndarray, " h"],
        columns: Float32[np.ndarray, " w"],
    ) -> None:
        """Add a part of the maps, weighted, to a place of the same shape in a total.

        Args:
            total: maps of the same outputs.
            part: rows and columns of these maps.
            place: rows and columns of the total.
            rows: weight of each row.
            columns: weight of each column. That of a pixel is their product.
        """
        corners = part[0].start, part[1].start, place[0].start, place[1].start
        if self.exact is None:
            _add(total, self.maps, corners, rows, columns)
        else:
            _add(total[:1], self.exact[None], corners, rows, columns)
            _add_halves(total[1:], self.maps[1:].view(np.uint16), corners, rows, columns)

    def encode(self) -> UInt8[np.ndarray, "kh w"]:
        """Encode the maps one below the other, in 255 steps."""
        shares = [self.maps[:1]]
        for head in self.heads:
            _, low, high = _OUTPUTS[head]
            shares.append((self.maps[slice_head(self.heads, head)] - low) / (high - low))
        steps = np.rint(np.concatenate(shares).clip(0, 1) * 255).astype(np.uint8)
        encoded: UInt8[np.ndarray, "kh w"] = steps.reshape(-1, steps.shape[2])
        return encoded

    def resize(self, height: int, width: int) -> "Prediction":
        """Resize the maps; ways to a centre and diameters grow with the image."""
        size = width, height
        maps = np.stack(
            [cv2.resize(one, size, interpolation=cv2.INTER_LINEAR) for one in self.maps]
        )
        ratio = np.array([height / self.maps.shape[1], width / self.maps.shape[2]], np.float32)
        if "centre" in self.heads:
            maps[slice_head(self.heads, "centre")] *= ratio[:, None, None]
        if "diameter" in self.heads:
            maps[slice_head(self.heads, "diameter")] *= np.sqrt(ratio.prod())
        return Prediction(maps, self.heads)


_HALF_SCALE = np.float32(2**112)
"""Between numbers of single precision and those of half precision with the same bits."""


@compiled
def _add(
    total: Float32[np.ndarray, "k _h _w"],
    maps: Float32[np.ndarray, "k _i _j"],
    corners: tuple[int, int, int, int],
    rows: Float32[np.ndarray, " h"],
    columns: Float32[np.ndarray, " w"],
) -> None:
    top, left, down, across = corners
    for one in range(len(maps)):
        for y in range(len(rows)):
            values = maps[one, top + y, left : left + len(columns)]
            sums = total[one, down + y, across : across + len(columns)]
            for x in range(len(columns)):
                sums[x] += values[x] * (rows[y] * columns[x])


@compiled
def _add_halves(
    total: Float32[np.ndarray, "k _h _w"],
    halves: UInt16[np.ndarray, "k _i _j"],
    corners: tuple[int, int, int, int],
    rows: Float32[np.ndarray, " h"],
    columns: Float32[np.ndarray, " w"],
) -> None:
    """Add numbers of half precision: shifted into place, they are 2¹¹² too small."""
    top, left, down, across = corners
    bits = np.empty(len(columns), np.uint32)
    values = bits.view(np.float32)
    for one in range(len(halves)):
        for y in range(len(rows)):
            line = halves[one, top + y, left : left + len(columns)]
            sums = total[one, down + y, across : across + len(columns)]
            for x in range(len(columns)):
                half = np.uint32(line[x])
                bits[x] = (half & 0x7FFF) << 13 | (half & 0x8000) << 16
            for x in range(len(columns)):
                sums[x] += values[x] * _HALF_SCALE * (rows[y] * columns[x])
