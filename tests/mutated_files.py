"""Damaged copies of files of every format, and what comes of reading them.

    python tests/mutated_files.py FOLDER COUNT

writes a line of JSON for each of COUNT copies: its name, what was done to it, and what came of it.
"""

import hashlib
import io
import json
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from czi_files import draw_czi
from dicom_files import draw_dicom
from lif_files import draw_lif
from nd2_files import draw_nd2
from PIL import Image
from support import write_ome, write_pyramid, write_svs
from zarr_files import draw_ome_zarr

from resunet_ray.data.raster.dicom import list_series
from resunet_ray.data.raster.opening import naming, open_image, open_slide
from resunet_ray.data.raster.planes import list_planes
from resunet_ray.data.raster.scene import Plane, Raster
from resunet_ray.data.stacks import is_stack, open_stack
from resunet_ray.errors import ImageError
from resunet_ray.storage import Cache

_MAX_PIXELS = 2**22
_HEADER = 400  # bytes at the start, or at the end of formats whose tables are there


def draw_originals(folder: Path) -> list[Path]:
    """Write one whole file of each kind."""
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 256, (150, 210, 3), np.uint8)
    colour[40:90, 60:150] = 200
    deep = colour[..., 0].astype(np.uint16) * 99
    stack = rng.integers(0, 2**16, (3, 2, 60, 70), np.uint16)
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in (("a.png", colour), ("deep.png", deep), ("a.bmp", colour)):
        Image.fromarray(image).save(folder / name)
    for name in ("a.jpg", "a.webp", "a.jp2"):
        Image.fromarray(colour).save(folder / name)
    tiffs: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
        "strips.tif": (deep, {"rowsperstrip": 16}),
        "lzw.tif": (colour, {"compression": "lzw", "predictor": True, "rowsperstrip": 16}),
        "tiles.tif": (colour, {"compression": "zlib", "tile": (64, 64), "bigtiff": True}),
        "planar.tif": (
            np.moveaxis(colour, 2, 0),
            {"compression": "zstd", "tile": (64, 64), "planarconfig": "separate"},
        ),
        "jpeg.tif": (colour, {"compression": "jpeg", "tile": (64, 64), "byteorder": ">"}),
        "imagej.tif": (stack, {"imagej": True, "metadata": {"axes": "ZCYX"}}),
    }
    for name, (image, options) in tiffs.items():
        colours = "rgb" if image.dtype == np.uint8 else "minisblack"
        tifffile.imwrite(folder / name, image, photometric=colours, **options)
    write_ome(folder / "a.ome.tif", deep, axes="YX", levels=2)
    write_pyramid(folder / "pyramid.tif", colour, levels=2)
    write_svs(folder / "a.svs", colour)
    draw_czi(folder / "a.czi", colour)
    draw_dicom(folder / "dicom" / "large.dcm", colour)
    draw_dicom(folder / "dicom" / "small.dcm", colour[::2, ::2], microns=1.0, jpeg=True)
    for version in ("0.4", "0.5"):
        small = stack[..., :30, :40]
        draw_ome_zarr(folder / f"{version}.zarr", small, "zcyx", version=version, levels=2)
    draw_lif(folder / "a.lif", {"one": (stack, "tcyx"), "two": (deep, "yx")})
    draw_nd2(folder / "a.nd2", np.moveaxis(stack, 1, -1), "zyxc")
    return sorted(folder.iterdir())


def read_whole(path: Path) -> str:
    """Return a digest of every value of every plane and level of a file.

    Raises:
        ImageError: the file is damaged.
    """
    if is_stack(path.name):
        cache = Cache(str(path.parent / "cache"), 2**30)
        with open_stack(str(path), fingerprint=None, cache=cache, max_pixels=_MAX_PIXELS) as raster:
            return _digest(raster, path.name)
    if path.is_dir():
        with naming(path.name, done="opened"):
            slides = [str(path / next(iter(files))) for files in list_series(str(path))]
            rasters = [open_slide(slide) for slide in slides]
        return "".join(_digest(raster, path.name) for raster in rasters)
    with naming(path.name, done="opened"):
        raster = (
            open_slide(str(path))
            if path.suffix in (".svs", ".czi")
            else open_image(io.BytesIO(path.read_bytes()), max_pixels=_MAX_PIXELS)
        )
    with closing(raster):
        return _digest(raster, path.name)


def _digest(raster: Raster, name: str) -> str:
    found = hashlib.sha256()
    with naming(name, done="read"):
        for number, scene in enumerate(raster.scenes):
            if scene.num_t * scene.num_z * len(scene.channels) * scene.levels[0][0] > 2**16:
                raise ImageError(f"its planes are more than are read here: {scene}")
            for plane in list_planes([scene], channel="0" if len(scene.channels) > 1 else None):
                for channel in range(len(scene.channels)):
                    place = Plane(scene=number, channel=channel, z=plane.z, t=plane.t)
                    for level, (height, width) in enumerate(scene.levels):
                        values = raster.read(place, level, (0, 0, height, width))
                        found.update(f"{values.shape} {values.dtype}".encode())
                        found.update(np.ascontiguousarray(values).tobytes())
    return found.hexdigest()


def _flip(content: bytearray, rng: np.random.Generator) -> bytearray:
    for place in rng.integers(0, len(content), rng.integers(1, 20)):
        content[place] ^= int(rng.integers(1, 256))
    return content


def _cut(content: bytearray, rng: np.random.Generator) -> bytearray:
    return content[: int(rng.integers(0, len(content)))]


def _change_header(content: bytearray, rng: np.random.Generator) -> bytearray:
    length = min(_HEADER, len(content))
    start = 0 if rng.random() < 0.6 else len(content) - length
    for place in rng.integers(start, start + length, rng.integers(1, 4)):
        values = rng.choice([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\x7f", rng.bytes(2)])
        content[place : place + len(values)] = values[: len(content) - place]
    return content


MUTATIONS: dict[str, Callable[[bytearray, np.random.Generator], bytearray]] = {
    "flipped": _flip,
    "cut": _cut,
    "header": _change_header,
}


def read_mutated(folder: Path, count: int) -> Iterator[dict[str, str]]:
    """Yield what comes of reading damaged copies: same, differs, or the error."""
    originals = draw_originals(folder / "whole")
    known = {path: read_whole(path) for path in originals}
    for number in range(count):
        path, kind = (
            originals[number % len(originals)],
            list(MUTATIONS)[number // len(originals) % 3],
        )
        rng = np.random.default_rng(number)
        copy = folder / f"{number:04d}-{path.name}"
        if path.is_dir():
            shutil.copytree(path, copy)
            files = sorted(file for file in copy.rglob("*") if file.is_file())
            target = files[int(rng.integers(len(files)))]
        else:
            shutil.copyfile(path, copy)
            target = copy
        target.write_bytes(MUTATIONS[kind](bytearray(target.read_bytes()), rng))
        print(copy.name, kind, target.name, file=sys.stderr, flush=True)  # if the process dies
        try:
            result = "same" if read_whole(copy) == known[path] else "differs"
        except ImageError as error:
            result = str(error)
        yield {"name": copy.name, "kind": kind, "file": target.name, "result": result}
        shutil.rmtree(copy) if copy.is_dir() else copy.unlink()


if __name__ == "__main__":
    for line in read_mutated(Path(sys.argv[1]), int(sys.argv[2])):
        print(json.dumps(line))
    print(json.dumps({"peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))
