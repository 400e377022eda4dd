"""OME-Zarr as scenes of planes, drawn with zarr."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec
from zarr_files import draw_ome_zarr

from resunet_ray import storage
from resunet_ray.data.raster.ome_zarr import ZarrRaster
from resunet_ray.data.raster.scene import Plane
from resunet_ray.data.raster.zarr_store import LocationStore
from resunet_ray.errors import ImageError, ResUNetRayError, UnclearError

_SIZES = {"t": 2, "c": 3, "z": 2, "y": 37, "x": 53}


def _values(axes: str, *, dtype: Any = np.uint16, **sizes: int) -> np.ndarray:
    """Values of which no two are equal, if the type has as many."""
    shape = [(_SIZES | sizes)[axis] for axis in axes]
    return np.arange(1, math.prod(shape) + 1).reshape(shape).astype(dtype)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("axes", ["yx", "cyx", "zyx", "tczyx", "tzcyx", "yxc", "xy"])
def test_every_plane_is_that_of_its_axes(axes: str, version: str, tmp_path: Path) -> None:
    values = _values(axes)
    raster = ZarrRaster(
        str(draw_ome_zarr(tmp_path / "a.zarr", values, axes, version=version, levels=2))
    )
    (scene,) = raster.scenes
    assert scene.levels == [(37, 53), (19, 27)]
    assert (scene.num_t, len(scene.channels), scene.num_z) == tuple(
        _SIZES[axis] if axis in axes else 1 for axis in "tcz"
    )
    assert scene.dtype == np.uint16
    assert scene.mpp == (1.0, 0.5)
    missing = [axis for axis in "tczyx" if axis not in axes]
    whole = np.moveaxis(
        values[(..., *[None] * len(missing))],
        range(5),
        ["tczyx".index(axis) for axis in (*axes, *missing)],
    )
    for t, channel, z in np.ndindex(whole.shape[:3]):
        plane = Plane(channel=channel, z=z, t=t)
        expected = whole[t, channel, z]
        assert (raster.read(plane, 0, (0, 0, 37, 53)) == expected).all()
        assert (raster.read(plane, 0, (11, 30, 20, 23)) == expected[11:31, 30:53]).all()
        assert (raster.read(plane, 1, (3, 4, 5, 6)) == expected[::2, ::2][3:8, 4:10]).all()


def test_axes_of_other_names_are_known_by_their_types(tmp_path: Path) -> None:
    values = _values("tcyx")
    folder = draw_ome_zarr(tmp_path / "a", values, "tcyx")
    for number, name in enumerate(("frame", "stain", "row", "column")):
        _edit(folder / "zarr.json", *_IMAGE, 0, "axes", number, "name", value=name)
    raster = ZarrRaster(str(folder))
    assert (raster.scenes[0].num_t, len(raster.scenes[0].channels)) == (2, 3)
    window = raster.read(Plane(channel=2, t=1), 0, (3, 4, 20, 30))
    assert (window == values[1, 2, 3:23, 4:34]).all()


def test_only_the_chunks_of_a_window_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = _values("cyx")
    raster = ZarrRaster(str(draw_ome_zarr(tmp_path / "a.zarr", values, "cyx")))
    fetched: list[str] = []
    read = LocationStore.read

    def record(self: LocationStore, key: str, *rest: Any) -> bytes | None:
        fetched.append(key)
        return read(self, key, *rest)

    monkeypatch.setattr(LocationStore, "read", record)
    window = raster.read(Plane(channel=2), 0, (17, 20, 10, 20))
    assert (window == values[2, 17:27, 20:40]).all()
    assert sorted(fetched) == ["0/c/2/1/1", "0/c/2/1/2"]


def test_of_a_shard_only_the_chunks_of_a_window_are_fetched(tmp_path: Path) -> None:
    """The other chunks of the shard are overwritten, and must not be decoded."""
    values = _values("yx", y=64, x=64)
    folder = draw_ome_zarr(tmp_path / "a.zarr", values, "yx", shards=(64, 64), compressors=None)
    shard = folder / "0" / "c" / "0" / "0"
    raster = ZarrRaster(str(folder))
    assert (raster.read(Plane(), 0, (16, 32, 16, 16)) == values[16:32, 32:48]).all()
    content = shard.read_bytes()
    place = content.index(values[16, 32:48].tobytes())
    size = 16 * 16 * 2
    index = len(content) - 16 * 16 - 4
    shard.write_bytes(
        bytes(place) + content[place : place + size] + bytes(index - place - size) + content[index:]
    )
    assert (raster.read(Plane(), 0, (16, 32, 16, 16)) == values[16:32, 32:48]).all()
    assert not raster.read(Plane(), 0, (0, 0, 16, 16)).any()


def test_an_object_store_gives_the_same(s3: str, tmp_path: Path) -> None:
    for version in ("0.4", "0.5"):
        values = _values("tczyx", c=2, y=20, x=30)
        folder = draw_ome_zarr(tmp_path / version, values, "tczyx", version=version, levels=2)
        uri = f"{s3}/zarr/{version}.zarr"
        storage.upload(folder, uri)
        raster = ZarrRaster(uri)
        window = raster.read(Plane(t=1, channel=1, z=1), 1, (2, 3, 8, 12))
        assert (window == values[1, 1, 1, ::2, ::2][2:10, 3:15]).all()
    with pytest.raises(UnclearError, match="does not exist"):
        ZarrRaster(f"{s3}/zarr/none.zarr")


def test_a_missing_chunk_has_the_fill_value_but_a_missing_image_is_an_error(tmp_path: Path) -> None:
    values = _values("yx")
    folder = draw_ome_zarr(tmp_path / "a.zarr", values, "yx", fill_value=7)
    raster = ZarrRaster(str(folder))
    (folder / "0" / "c" / "0" / "0").unlink()
    expected = values.copy()
    expected[:16, :16] = 7
    assert (raster.read(Plane(), 0, (0, 0, 37, 53)) == expected).all()
    shutil.rmtree(folder)
    with pytest.raises(UnclearError, match="is gone"):
        raster.read(Plane(), 0, (0, 0, 37, 53))


def test_chunks_in_folders_that_are_not_told_of_are_not_all_missing(tmp_path: Path) -> None:
    folder = draw_ome_zarr(tmp_path / "a.zarr", _values("yx"), "yx", version="0.4")
    metadata = json.loads((folder / "0" / ".zarray").read_text())
    del metadata["dimension_separator"]
    (folder / "0" / ".zarray").write_text(json.dumps(metadata))
    for chunk in list((folder / "0").glob("*.*")):
        if chunk.name[0].isdigit():
            (folder / "0" / chunk.name.split(".")[0]).mkdir(exist_ok=True)
            chunk.rename(folder / "0" / chunk.name.replace(".", "/"))
    assert (folder / "0" / "0" / "0").is_file()
    with pytest.raises(ImageError, match='set "dimension_separator": "/" in 0/.zarray'):
        ZarrRaster(str(folder))


@pytest.mark.parametrize(
    ("labels", "colours", "rgb"),
    [
        (("red", "Green", "BLUE"), ("FF0000",) * 3, True),
        (("", "", ""), ("FF0000", "00ff00", "0000FF"), True),
        (("Channel 0", "Channel 1", "Channel 2"), ("FF0000", "00FF00", "0000FF"), True),
        (("TRITC", "GFP", "DAPI"), ("FF0000", "00FF00", "0000FF"), False),
        (("", "", ""), ("0000FF", "00FF00", "FF0000"), False),
    ],
)
def test_colour_is_what_is_certainly_red_green_and_blue(
    labels: tuple[str, ...], colours: tuple[str, ...], rgb: bool, tmp_path: Path
) -> None:
    pairs = zip(labels, colours, strict=True)
    omero = {"channels": [{"label": label, "color": colour} for label, colour in pairs]}
    values = _values("cyx", dtype=np.uint8)
    (scene,) = (
        raster := ZarrRaster(str(draw_ome_zarr(tmp_path / "a", values, "cyx", omero=omero)))
    ).scenes
    assert scene.rgb is rgb
    assert scene.channels == ([None] if rgb else [label or None for label in labels])
    window = raster.read(Plane(), 0, (1, 2, 30, 40))
    expected = values[:, 1:31, 2:42]
    assert (window == (np.moveaxis(expected, 0, -1) if rgb else expected[0])).all()
    last = np.moveaxis(values, 0, -1)
    raster = ZarrRaster(str(draw_ome_zarr(tmp_path / "c", last, "yxc", omero=omero)))
    window = raster.read(Plane(), 0, (1, 2, 30, 40))
    assert (window == (last if rgb else last[..., 0])[1:31, 2:42]).all()
    deep = ZarrRaster(str(draw_ome_zarr(tmp_path / "b", _values("cyx"), "cyx", omero=omero)))
    assert not deep.scenes[0].rgb


@pytest.mark.parametrize(
    ("unit", "mpp"), [("nanometer", (1e-3, 5e-4)), (None, None), ("parsec", None)]
)
def test_microns_per_pixel_are_known_only_with_a_unit(
    unit: str | None, mpp: tuple[float, float] | None, tmp_path: Path
) -> None:
    raster = ZarrRaster(str(draw_ome_zarr(tmp_path / "a", _values("yx"), "yx", unit=unit)))
    assert raster.scenes[0].mpp == mpp


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_a_container_has_a_scene_for_each_image(version: str, tmp_path: Path) -> None:
    folder, layout = tmp_path / "a.zarr", {"bioformats2raw.layout": 3}
    root = zarr.open_group(str(folder), mode="w", zarr_format=2 if version == "0.4" else 3)
    root.attrs.update(layout if version == "0.4" else {"ome": layout})
    with pytest.raises(ImageError, match="has none"):
        ZarrRaster(str(folder))
    for number in range(2):
        draw_ome_zarr(folder / str(number), _values("yx") + number, "yx", version=version)
    raster = ZarrRaster(str(folder))
    assert [scene.name for scene in raster.scenes] == ["0", "1"]
    assert raster.read(Plane(scene=1), 0, (0, 0, 1, 1)) == 2
    series = root.create_group("OME")
    series.attrs.update({"series": ["1"]} if version == "0.4" else {"ome": {"series": ["1"]}})
    assert [scene.name for scene in ZarrRaster(str(folder)).scenes] == ["1"]
    shutil.rmtree(folder / "1")
    with pytest.raises(ImageError, match="'1' is missing"):
        ZarrRaster(str(folder))


def test_smaller_levels_with_fewer_focal_planes_are_left_out(tmp_path: Path) -> None:
    values = _values("zyx")
    folder = draw_ome_zarr(tmp_path / "a", values, "zyx", levels=2)
    zarr.create_array(str(folder / "1"), data=values[::2, ::2, ::2], overwrite=True)
    assert ZarrRaster(str(folder)).scenes[0].levels == [(37, 53)]


def test_plates_and_damaged_metadata_are_refused_by_name(tmp_path: Path) -> None:
    folder = draw_ome_zarr(tmp_path / "a", _values("yx"), "yx")
    plate = zarr.open_group(str(tmp_path / "b"), mode="w", zarr_format=3)
    plate.attrs["ome"] = {"plate": {"wells": [{"path": "A/1"}, {"path": "A/2"}]}}
    with pytest.raises(ImageError, match="plate of 2 wells"):
        ZarrRaster(str(tmp_path / "b"))
    (folder / "zarr.json").write_text('{"attributes": ')
    with pytest.raises(ImageError, match="damaged"):
        ZarrRaster(str(folder))


def _edit(file: Path, *path: Any, value: Any) -> None:
    document = owner = json.loads(file.read_text())
    for key in path[:-1]:
        owner = owner[key]
    owner[path[-1]] = value
    file.write_text(json.dumps(document))


_IMAGE = ("attributes", "ome", "multiscales")


@pytest.mark.parametrize(
    ("file", "path", "value", "message"),
    [
        ("zarr.json", _IMAGE, [], "no multiscales"),
        ("zarr.json", (*_IMAGE, 0, "axes"), ["y", "x"], "axes are"),
        ("zarr.json", (*_IMAGE, 0, "axes", 0, "name"), "x", "axes are x .space., x"),
        ("zarr.json", (*_IMAGE, 0, "axes", 0, "type"), "time", "axes are y .time."),
        ("zarr.json", (*_IMAGE, 0, "axes"), [{"name": "y"}], "axes are y"),
        ("zarr.json", (*_IMAGE, 0, "datasets"), [], "0 levels"),
        ("zarr.json", (*_IMAGE, 0, "datasets", 0, "path"), "../../a", "damaged"),
        ("zarr.json", (*_IMAGE, 0, "datasets", 0, "path"), "9", "damaged"),
        ("zarr.json", ("attributes", "ome", "image-label"), {}, "labels"),
        ("0/zarr.json", ("shape",), [2**22, 53], "claims .4194304, 53."),
        ("0/zarr.json", ("shape",), [0, 53], "claims .0, 53."),
        ("0/zarr.json", ("shape",), [37], "damaged|shape"),
        (
            "0/zarr.json",
            ("chunk_grid", "configuration", "chunk_shape"),
            [2**15, 2**14],
            "chunks of .32768, 16384.",
        ),
    ],
)
def test_metadata_that_make_no_sense_are_refused_by_name(
    file: str, path: tuple[Any, ...], value: Any, message: str, tmp_path: Path
) -> None:
    folder = draw_ome_zarr(tmp_path / "a", _values("yx"), "yx")
    _edit(folder / file, *path, value=value)
    with pytest.raises(ImageError, match=message):
        ZarrRaster(str(folder))


def test_values_other_than_real_numbers_are_refused(tmp_path: Path) -> None:
    folder = draw_ome_zarr(tmp_path / "a", _values("yx", dtype=np.complex64), "yx")
    with pytest.raises(ImageError, match="values of complex64"):
        ZarrRaster(str(folder))


def test_nothing_outside_of_the_image_is_read(tmp_path: Path) -> None:
    draw_ome_zarr(tmp_path / "secret", _values("yx"), "yx")
    folder = tmp_path / "a"
    root = zarr.open_group(str(folder), mode="w", zarr_format=3)
    root.attrs["ome"] = {"bioformats2raw.layout": 3}
    root.create_group("OME").attrs["ome"] = {"series": ["../secret"]}
    with pytest.raises(ImageError, match="outside of it"):
        ZarrRaster(str(folder))


def test_a_chunk_that_would_run_code_is_refused(tmp_path: Path) -> None:
    values = _values("yx")
    folder = draw_ome_zarr(
        tmp_path / "a", values, "yx", version="0.4", compressors=numcodecs.Pickle()
    )
    with pytest.raises(ImageError, match="pickle"):
        ZarrRaster(str(folder))


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_cut_and_changed_files_are_image_errors_or_read_as_the_same_type(
    version: str, tmp_path: Path
) -> None:
    """Nothing but an ImageError is raised, and shapes are as claimed."""
    rng = np.random.default_rng(4)
    folder = draw_ome_zarr(tmp_path / "a", _values("yx"), "yx", version=version)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    refused = 0
    for number in range(60):
        file = files[number % len(files)]
        content = file.read_bytes()
        changed = bytearray(content)
        for place in rng.integers(len(content), size=3):
            changed[place] = rng.integers(256)
        file.write_bytes(content[: rng.integers(len(content))] if number % 2 else bytes(changed))
        try:
            raster = ZarrRaster(str(folder))
            height, width = raster.scenes[0].levels[0]
            assert raster.read(Plane(), 0, (0, 0, height, width)).shape == (height, width)
        except ImageError:
            refused += 1
        file.write_bytes(content)
    assert refused > 30


@pytest.mark.parametrize("compressors", [None, "auto"])
def test_a_chunk_cut_short_is_never_filled_up(compressors: str | None, tmp_path: Path) -> None:
    folder = draw_ome_zarr(tmp_path / "a", _values("yx"), "yx", compressors=compressors)
    chunk = folder / "0" / "c" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-9])
    raster = ZarrRaster(str(folder))
    assert (raster.read(Plane(), 0, (16, 16, 5, 5)) > 0).all()
    with pytest.raises(ImageError, match="damaged"):
        raster.read(Plane(), 0, (0, 0, 5, 5))


def test_a_storage_that_cannot_be_read_is_no_verdict_on_the_image(s3: str) -> None:
    with pytest.raises(ResUNetRayError) as raised:
        ZarrRaster(f"{s3}-none/a.zarr")
    assert not isinstance(raised.value, ImageError)


@pytest.mark.parametrize(("version", "shards"), [("0.4", None), ("0.5", None), ("0.5", (32, 32))])
def test_a_chunk_that_was_cut_short_is_refused(
    tmp_path: Path, version: str, shards: tuple[int, int] | None
) -> None:
    """Blosc would read on beyond its end."""
    options: dict[str, Any] = {"shards": shards} if shards else {}
    blosc = numcodecs.Blosc() if version == "0.4" else BloscCodec()
    values = np.random.default_rng(0).integers(0, 2**16, (64, 64), np.uint16)
    folder = draw_ome_zarr(
        tmp_path / "a.zarr", values, "yx", version=version, compressors=blosc, **options
    )
    raster = ZarrRaster(str(folder))
    assert (raster.read(Plane(), 0, (0, 0, 64, 64)) == values).all()
    chunk = folder / "0" / ("0.0" if version == "0.4" else "c/0/0")
    content = chunk.read_bytes()
    for kept in (0, 10, len(content) // 2, len(content) - 1):
        chunk.write_bytes(content[:kept])
        with pytest.raises(ImageError):
            ZarrRaster(str(folder)).read(Plane(), 0, (0, 0, 16, 16))
