"""Generated nucleus images with known truth, for the demo, the tests and the benchmarks.

They do not replace real data, but include what makes real images hard: nuclei that touch, overlap
or are out of focus, dirt, uneven light and noise.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import pandas as pd
from jaxtyping import Bool, Float32, Int32, UInt8

from resunet_ray import storage
from resunet_ray.data.images import encode_png
from resunet_ray.data.labels import encode_labels

MODALITIES = ("fluorescence", "stained")

_SEEN = 0.6  # least share of a nucleus that must not be covered by others
_BLURRED = 0.12  # share of the nuclei that are out of focus
_REACH = 9  # pixels around a nucleus that its light may reach when it is out of focus
_ABSORBANCE = np.array([[1.0, 1.75, 0.65], [0.12, 0.9, 0.3], [0.9, 1.0, 1.2]], np.float32)
"""Absorbance (natural logarithm) of a dark nucleus, cytoplasm and debris in red, green and blue."""


@dataclass(frozen=True, kw_only=True)
class _Nucleus:
    window: tuple[slice, slice]
    """The part of the image that its light may reach."""
    shape: Bool[np.ndarray, "h w"]
    """Its pixels in the window, including those covered by others."""


def generate_image(
    height: int, width: int, *, modality: str, num_nuclei: int, rng: np.random.Generator
) -> tuple[UInt8[np.ndarray, "h w 3"], Int32[np.ndarray, "h w"]]:
    """Generate an image of nuclei, and the number of the nucleus at each pixel.

    The truth is what was drawn. Where two nuclei overlap, the pixel belongs to the one on top. A
    nucleus out of focus counts with the outline that it has in focus, where the blur has fallen
    to about half: annotators draw it there. Specks and fibres are background.

    Args:
        height: pixels.
        width: pixels.
        modality: one of `MODALITIES`: bright on black, or purple on white.
        num_nuclei: how many are tried; one that would hide much of another, or be split in two,
            is left out.
        rng: source of all randomness.
    """
    nuclei, labels = _place_nuclei(height, width, num_nuclei=num_nuclei, rng=rng)
    dye = _stain(nuclei, height=height, width=width, rng=rng)
    debris = _draw_debris(height, width, rng=rng)
    # Cytoplasm, or glow.
    around = cv2.GaussianBlur(dye, (0, 0), rng.uniform(4, 10), sigmaY=rng.uniform(4, 10))
    if modality == "fluorescence":
        light = (0.06 + rng.uniform(0.45, 0.85) * (dye + 0.1 * around + debris))[..., None]
    else:
        # The law of Beer and Lambert.
        light = 0.93 * np.exp(-np.stack([dye, around, debris], axis=2) @ _ABSORBANCE)
    light *= _shade(height, width, most=0.4 if modality == "fluorescence" else 0.2, rng=rng)
    noise = rng.standard_normal((height, width, 1), dtype=np.float32)
    light += noise * np.sqrt(0.0001 + 0.0006 * light)  # read-out noise and shot noise
    image = np.clip(np.rint(light * 255), 0, 255).astype(np.uint8)
    return np.broadcast_to(image, (height, width, 3)).copy(), labels


def _place_nuclei(
    height: int, width: int, *, num_nuclei: int, rng: np.random.Generator
) -> tuple[list[_Nucleus], Int32[np.ndarray, "h w"]]:
    """Place nuclei, each on top of those before it; labels number them from 1 where visible."""
    labels = np.zeros((height, width), np.int32)
    nuclei: list[_Nucleus] = []
    for outline in _draw_outlines(height, width, count=num_nuclei, size=9.0, rng=rng):
        nuclei.append(_build_nucleus(outline, height=height, width=width))
        here, shape = labels[nuclei[-1].window], nuclei[-1].shape
        before = here.copy()
        here[shape] = len(nuclei)
        changed = {len(nuclei), *before[shape].tolist()} - {0}
        if not all(_is_seen(labels, nuclei, number) for number in changed):
            here[:] = before
            nuclei.pop()
    return nuclei, labels


def _draw_outlines(
    height: int, width: int, *, count: int, size: float, rng: np.random.Generator
) -> Int32[np.ndarray, "n 32 2"]:
    """Draw ellipses with bulges and dents, anywhere: corners (x, y) in 1/16 of a pixel.

    Their radius is about `size` pixels.
    """
    angle = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    radius = size * np.exp(rng.normal(0, 0.22, (count, 1)).clip(-0.5, 0.5))
    ellipse = np.cos(angle) + 1j * rng.uniform(0.55, 1.0, (count, 1)) * np.sin(angle)  # x + iy
    waves = np.cos(np.outer((2, 3, 4, 5), angle) + rng.uniform(0, 2 * np.pi, (count, 4, 1)))
    bulges = (rng.normal(0, 0.03, (count, 4, 1)) * waves).sum(axis=1)
    shape = radius * ellipse * (1 + bulges) * np.exp(1j * rng.uniform(0, np.pi, (count, 1)))
    corners = np.stack([shape.real, shape.imag], axis=2) + rng.uniform(
        0, (width, height), (count, 1, 2)
    )
    return np.rint(16 * corners).astype(np.int32)  # OpenCV's fixed point for shift=4


def _build_nucleus(outline: Int32[np.ndarray, "n 2"], *, height: int, width: int) -> _Nucleus:
    left, top = np.maximum(outline.min(axis=0) // 16 - _REACH, 0)
    right, bottom = np.minimum(outline.max(axis=0) // 16 + _REACH, (width, height))
    shape = cv2.fillPoly(
        np.zeros((bottom - top, right - left), np.uint8),
        [outline - 16 * np.array([left, top])],
        1,
        shift=4,
    )
    return _Nucleus(window=np.s_[top:bottom, left:right], shape=shape > 0)


def _is_seen(labels: Int32[np.ndarray, "h w"], nuclei: list[_Nucleus], number: int) -> bool:
    """Whether enough of a nucleus is visible, in one piece."""
    nucleus = nuclei[number - 1]
    piece = labels[nucleus.window] == number
    enough = int(piece.sum()) >= _SEEN * int(nucleus.shape.sum())
    components, _ = cv2.connectedComponents(piece.view(np.uint8), connectivity=4)
    return enough and components == 2  # the background is one


def _stain(
    nuclei: list[_Nucleus], *, height: int, width: int, rng: np.random.Generator
) -> Float32[np.ndarray, "h w"]:
    """Draw how much dye shows at each pixel; 1 is that of the darkest or brightest nucleus."""
    seen = np.zeros((height, width), np.float32)
    chromatin = 1 + cv2.GaussianBlur(
        rng.standard_normal((height, width), dtype=np.float32), (0, 0), 1.5
    )
    for nucleus in nuclei:
        blurred = rng.random() < _BLURRED
        body = cv2.GaussianBlur(
            nucleus.shape * chromatin[nucleus.window],
            (0, 0),
            rng.uniform(2.0, 3.0) if blurred else 0.9,
        )
        # Nuclei let light through, so that a covered one still shows.
        below = seen[nucleus.window] * (1 - 0.6 * np.minimum(body, 1))
        strength = np.float32(rng.uniform(0.4, 1.0) * (0.6 if blurred else 1.0))
        seen[nucleus.window] = below + strength * body
    return seen


def _draw_debris(
    height: int, width: int, *, rng: np.random.Generator
) -> Float32[np.ndarray, "h w"]:
    """Draw how much light specks and fibres add or absorb; 1 is what a nucleus does."""
    debris = np.zeros((height, width), np.float32)
    specks = rng.poisson(height * width / 8000)
    for outline in _draw_outlines(height, width, count=specks, size=1.2, rng=rng):
        cv2.fillPoly(debris, [outline], rng.uniform(0.4, 1.5), shift=4)
    for _ in range(rng.poisson(height * width / 50000)):
        turns = np.cumsum(rng.normal(0, 0.35, 12)) + rng.uniform(0, 2 * np.pi)
        points = 6 * np.stack([np.cos(turns), np.sin(turns)], axis=1).cumsum(axis=0)
        points = (points + rng.uniform(0, (width, height))).astype(np.int32)
        cv2.polylines(debris, [points], isClosed=False, color=rng.uniform(0.3, 0.8))
    return cv2.GaussianBlur(debris, (0, 0), 0.9)


def _shade(
    height: int, width: int, *, most: float, rng: np.random.Generator
) -> Float32[np.ndarray, "h w 1"]:
    """Draw the share of the light that remains.

    It falls with the squared distance from a point near the middle.
    """
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[:, None]
    distance = (y - rng.uniform(-0.5, 0.5)) ** 2 + (x - rng.uniform(-0.5, 0.5)) ** 2
    left: np.ndarray = 1 - rng.uniform(most / 2, most) * distance / distance.max()
    return left


def write_images(uri: str, *, count: int, height: int, width: int, seed: int) -> None:
    """Write `count` images to images/, masks/ and instances/, and metadata.csv with modalities."""
    rows = []
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        modality = MODALITIES[number % 3 % 2]  # two in three are fluorescence
        num_nuclei = int(rng.integers(8, 30)) * height * width // 2**15
        image, labels = generate_image(
            height, width, modality=modality, num_nuclei=num_nuclei, rng=rng
        )
        name = f"synthetic-{number:05d}"
        storage.write_bytes(storage.join(uri, "images", f"{name}.png"), encode_png(image))
        storage.write_bytes(
            storage.join(uri, "masks", f"{name}.png"),
            encode_png((labels > 0).astype(np.uint8) * np.uint8(255)),
        )
        storage.write_bytes(
            storage.join(uri, "instances", f"{name}.png"), encode_labels(labels, name=name)
        )
        rows.append({"id": name, "modality": modality, "mpp": 0.5})
    storage.write_bytes(
        storage.join(uri, "metadata.csv"), pd.DataFrame(rows).to_csv(index=False).encode()
    )
