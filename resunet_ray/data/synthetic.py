"""Generated nucleus images whose truth is known: for the demo, the tests and the benchmarks, never a substitute for real data."""

import cv2
import numpy as np
import pandas as pd
from jaxtyping import Int32, UInt8

from resunet_ray import storage
from resunet_ray.data.images import encode_labels, encode_png

MODALITIES = ("fluorescence", "stained")


def generate_image(
    height: int, width: int, *, modality: str, num_nuclei: int, rng: np.random.Generator
) -> tuple[UInt8[np.ndarray, "h w 3"], Int32[np.ndarray, "h w"]]:
    """An image of elliptic nuclei and the number of the nucleus at each pixel.

    Args:
        height: pixels.
        width: pixels.
        modality: one of `MODALITIES`: bright on black, or purple on white.
        num_nuclei: how many are tried; one that would touch another is left out.
        rng: where all randomness comes from.
    """
    labels = _draw_labels(height, width, num_nuclei=num_nuclei, rng=rng)
    count = int(labels.max())
    brightness = np.concatenate(([0.0], rng.uniform(0.45, 1.0, count)))[labels]
    soft = cv2.GaussianBlur(brightness.astype(np.float32), (0, 0), 1.0)
    ground = cv2.GaussianBlur(rng.standard_normal((height, width), dtype=np.float32), (0, 0), 12.0) * 0.6
    if modality == "fluorescence":
        light = np.repeat((0.06 + 0.06 * ground + 0.8 * soft)[..., None], 3, axis=2)
    else:
        dye = np.array([0.45, 0.6, 0.3], np.float32)  # what haematoxylin takes from red, green, blue
        light = 0.93 + 0.1 * ground[..., None] - soft[..., None] * dye
    light = light + rng.standard_normal(light.shape, dtype=np.float32) * 0.02
    return np.clip(np.rint(light * 255), 0, 255).astype(np.uint8), labels


def _draw_labels(height: int, width: int, *, num_nuclei: int, rng: np.random.Generator) -> Int32[np.ndarray, "h w"]:
    labels = np.zeros((height, width), np.int32)
    number = 0
    for _ in range(num_nuclei):
        shape = np.zeros((height, width), np.uint8)
        centre = int(rng.integers(width)), int(rng.integers(height))
        axes = int(rng.integers(5, 12)), int(rng.integers(5, 12))
        cv2.ellipse(shape, centre, axes, float(rng.uniform(0, 180)), 0, 360, 1, thickness=-1)
        if not labels[cv2.dilate(shape, np.ones((5, 5), np.uint8)) > 0].any():
            number += 1
            labels[shape > 0] = number
    return labels


def write_images(uri: str, *, count: int, height: int, width: int, seed: int) -> None:
    """Writes `count` images as pairs in images/, masks/ and instances/, and metadata.csv with their modality."""
    rows = []
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        modality = MODALITIES[number % 3 % 2]  # two in three are fluorescence
        num_nuclei = int(rng.integers(8, 30)) * height * width // 2**15
        image, labels = generate_image(height, width, modality=modality, num_nuclei=num_nuclei, rng=rng)
        name = f"synthetic-{number:05d}"
        storage.write_bytes(storage.join(uri, "images", f"{name}.png"), encode_png(image))
        storage.write_bytes(storage.join(uri, "masks", f"{name}.png"), encode_png((labels > 0).astype(np.uint8) * np.uint8(255)))
        storage.write_bytes(storage.join(uri, "instances", f"{name}.png"), encode_labels(labels, name=name))
        rows.append({"id": name, "modality": modality, "mpp": 0.5})
    storage.write_bytes(storage.join(uri, "metadata.csv"), pd.DataFrame(rows).to_csv(index=False).encode())
