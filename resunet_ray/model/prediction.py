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
        return _look_up(found.view(np.uint16), _HALVES) if found.dtype == np.float16 else found

    def pack(self) -> "Prediction":
        """Store the outputs of the heads in half the memory: a job holds many predictions."""
        if not self.heads or self.exact is not None:
            return self
        import torch  # ten times as fast as NumPy; what plans and commits does without it

        halves = torch.from_numpy(self.maps).half().numpy()
        return Prediction(halves, self.heads, self.maps[0].copy())

    def add_to(
        self,
        total: Float32[np.ndarray, "k h w"],
        part: tuple[slice, slice],
        weight: Float32[np.ndarray, "h w"],
    ) -> None:
        """Add a part of the maps, weighted, to a total."""
        if self.exact is None:
            total += self.maps[:, *part] * weight
        else:
            total[0] += self.exact[part] * weight
            _add_halves(total[1:], self.maps[1:, *part].view(np.uint16), weight, _HALVES)

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


_HALVES = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
"""Each number of half precision: looking them up is faster than what NumPy does."""


@compiled
def _look_up(
    halves: UInt16[np.ndarray, "k h w"], table: Float32[np.ndarray, "65536"]
) -> Float32[np.ndarray, "k h w"]:
    found = np.empty(halves.shape, np.float32)
    for one in range(halves.shape[0]):
        for y in range(halves.shape[1]):
            for x in range(halves.shape[2]):
                found[one, y, x] = table[halves[one, y, x]]
    return found


@compiled
def _add_halves(
    total: Float32[np.ndarray, "k h w"],
    halves: UInt16[np.ndarray, "k h w"],
    weight: Float32[np.ndarray, "h w"],
    table: Float32[np.ndarray, "65536"],
) -> None:
    for one in range(halves.shape[0]):
        for y in range(halves.shape[1]):
            for x in range(halves.shape[2]):
                total[one, y, x] += table[halves[one, y, x]] * weight[y, x]
