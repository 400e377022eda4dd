"""Generated inputs to measure on: many images, or one slide."""

from pathlib import Path

import cv2
import numpy as np
import tifffile

from benchmarks.bare import SIDE
from resunet_ray import storage
from resunet_ray.data.synthetic import generate_image, write_images

_DISTINCT = 40  # generated images; the others are copies


def write_slide(path: Path, *, side: int) -> None:
    """Write a pyramid of generated images side by side, of which `_DISTINCT` differ."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    pieces = [
        generate_image(SIDE, SIDE, modality="stained", num_nuclei=40, rng=rng)[0]
        for _ in range(_DISTINCT)
    ]
    count = side // SIDE
    rows = [
        np.hstack([pieces[(row * count + column) % _DISTINCT] for column in range(count)])
        for row in range(count)
    ]
    whole = np.vstack(rows)
    with tifffile.TiffWriter(path) as writer:
        for level in range(3):
            writer.write(
                whole,
                tile=(SIDE, SIDE),
                photometric="rgb",
                compression="zlib",
                subfiletype=int(level > 0),
            )
            whole = cv2.resize(whole, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)


def write_copies(folder: str, *, count: int) -> None:
    """Write images of 256×256, of which `_DISTINCT` differ."""
    write_images(folder, count=min(count, _DISTINCT), height=SIDE, width=SIDE, seed=0)
    images = storage.join(folder, "images")
    first = [
        storage.read_bytes(storage.join(images, name)) for name, _ in storage.list_files(images)
    ]
    for number in range(_DISTINCT, count):
        copy = storage.join(images, f"copy-{number:06d}.png")
        storage.write_bytes(copy, first[number % _DISTINCT])
    for name in ("masks", "instances"):
        storage.delete_folder(storage.join(folder, name))
