"""Each export is opened by a reader that is not ours, and says what the tables say."""

import gzip
import json
import uuid
import zipfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import shapely
import tifffile
import zarr
from support import read_output, write_pyramid

from resunet_ray import storage
from resunet_ray.config import SegmentConfig
from resunet_ray.config.segment import ExportKind
from resunet_ray.data.images import decode_stored
from resunet_ray.segment.export.files import export_runs
from resunet_ray.segment.export.geojson import build_features, write_features
from resunet_ray.segment.run import segment

KINDS: tuple[ExportKind, ...] = ("geojson", "ome-zarr", "ome-tiff")


@pytest.fixture(scope="module")
def exported(
    picture: np.ndarray, dark_bundle: str, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """All exports of a slide of several regions, at twice the bundle's resolution."""
    folder = tmp_path_factory.mktemp("exported")
    write_pyramid(folder / "slide.tiff", picture, mpp=0.25)
    segment(
        SegmentConfig(
            bundle=dark_bundle,
            input=(str(folder / "slide.tiff"),),
            output=str(folder / "out"),
            region=256,
            actors=0,
        )
    )
    assert export_runs(str(folder / "out"), kinds=KINDS) == 3
    return folder / "out"


def only(folder: Path, pattern: str) -> Path:
    (path,) = folder.glob(f"exports/*/*/{pattern}")
    return path


def test_geojson_is_what_qupath_imports(exported: Path) -> None:
    path = only(exported, "*.geojson.gz")
    content = json.loads(gzip.decompress(path.read_bytes()))
    assert content["type"] == "FeatureCollection"
    nuclei = read_output(str(exported), "instances").set_index("instance_id")
    assert len(content["features"]) == len(nuclei) > 50
    for feature in content["features"]:
        row = nuclei.loc[str(uuid.UUID(feature["id"]))]
        assert feature["type"] == "Feature"
        assert feature["properties"]["objectType"] == "detection"
        assert feature["properties"]["classification"]["name"]
        assert all(
            isinstance(value, float) for value in feature["properties"]["measurements"].values()
        )
        assert feature["geometry"]["type"] == "Polygon"
        assert all(ring[0] == ring[-1] for ring in feature["geometry"]["coordinates"])
        shape = shapely.geometry.shape(feature["geometry"])
        assert shape.is_valid
        assert shape.area == pytest.approx(row["area_px"])
    read = geopandas.GeoDataFrame.from_features(content["features"])
    assert read.geometry.area.sum() == pytest.approx(nuclei["area_px"].sum())
    before = path.read_bytes()
    export_runs(str(exported), kinds=["geojson"])
    assert path.read_bytes() == before, "the same nuclei give the same file"


def test_very_many_nuclei_go_to_several_files(exported: Path, tmp_path: Path) -> None:
    rows = read_output(str(exported), "instances").head(25).to_dict("records")
    paths = write_features(build_features(rows), folder=tmp_path, stem="slide", most=10)
    assert [path.name for path in paths] == [
        "slide.geojson.gz",
        "slide.part-2.geojson.gz",
        "slide.part-3.geojson.gz",
    ]
    found = [
        feature["id"]
        for path in paths
        for feature in json.loads(gzip.decompress(path.read_bytes()))["features"]
    ]
    assert found == [row["instance_id"] for row in rows]
    (empty,) = write_features([], folder=tmp_path, stem="none", most=10)
    assert json.loads(gzip.decompress(empty.read_bytes()))["features"] == []


def whole_mask(output: Path, *, height: int, width: int) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    for row in read_output(str(output), "regions").itertuples():
        top, left = round(row.y / row.scale_to_level0), round(row.x / row.scale_to_level0)
        piece = decode_stored(row.mask)
        mask[top : top + piece.shape[0], left : left + piece.shape[1]] = piece
    return mask


def test_ome_zarr_holds_every_nucleus_under_its_own_number(exported: Path) -> None:
    root: Any = zarr.open_group(only(exported, "*.ome.zarr"), mode="r")
    assert root["labels"].attrs["ome"] == {"version": "0.5", "labels": ["nuclei"]}
    group = root["labels/nuclei"]
    ome = group.attrs["ome"]
    (multiscale,) = ome["multiscales"]
    assert (ome["version"], [axis["name"] for axis in multiscale["axes"]]) == ("0.5", ["y", "x"])
    assert multiscale["datasets"][0]["coordinateTransformations"] == [
        {"type": "scale", "scale": [0.5, 0.5]}
    ]
    levels = [np.asarray(group[dataset["path"]]) for dataset in multiscale["datasets"]]
    assert levels[0].shape == (350, 450)
    nuclei = read_output(str(exported), "instances")
    counts = np.bincount(levels[0].ravel())
    assert (counts[1:] > 0).sum() == len(nuclei)
    assert sorted(counts[1:]) == pytest.approx(sorted(nuclei["area_px"] / 4))
    np.testing.assert_array_equal(levels[0] > 0, whole_mask(exported, height=350, width=450) > 0)
    for before, after in pairwise(levels):
        np.testing.assert_array_equal(before[::2, ::2], after)


def test_ome_tiff_is_a_pyramid_of_the_mask(exported: Path) -> None:
    with tifffile.TiffFile(only(exported, "*.ome.tiff")) as file:
        assert file.is_ome
        assert file.pages.first.is_tiled
        levels = [level.asarray() for level in file.series[0].levels]
        size = tifffile.xml2dict(str(file.ome_metadata))["OME"]["Image"]["Pixels"]["PhysicalSizeX"]
    assert size == pytest.approx(0.5)
    np.testing.assert_array_equal(levels[0], whole_mask(exported, height=350, width=450))


def test_exports_of_plain_images_go_to_object_storage(
    dark_bundle: str, generated: Path, s3: str
) -> None:
    config = SegmentConfig(
        bundle=dark_bundle, input=(str(generated / "images"),), output=f"{s3}/exported", actors=0
    )
    (result,) = segment(config)
    assert result.images == {"ok": 20}, read_output(config.output, "images")[
        "error_message"
    ].tolist()
    assert (
        export_runs(config.output, kinds=["geojson", "ome-zarr"]) == 2 * result.images["ok"] == 40
    )
    names = [
        name for name, _ in storage.list_files(f"{config.output}/exports/geojson/{result.run_id}")
    ]
    assert len(names) == 20
    total = sum(
        len(
            json.loads(
                gzip.decompress(
                    storage.read_bytes(f"{config.output}/exports/geojson/{result.run_id}/{name}")
                )
            )["features"]
        )
        for name in names
    )
    assert total == len(read_output(config.output, "instances")) > 20


def test_names_that_an_archive_chose_are_only_names(
    dark_bundle: str, generated: Path, tmp_path: Path
) -> None:
    content = next((generated / "images").iterdir()).read_bytes()
    names = ["x" * 300, "../../../../up", "/etc/root", "a\nb", "con", "ü" * 100]
    with zipfile.ZipFile(tmp_path / "names.zip", "w") as packed:
        for number, name in enumerate(names):
            packed.writestr(f"{name}.png", content[:-12] + bytes([number]) + content[-12:])
    output = tmp_path / "a" / "b" / "out"
    segment(
        SegmentConfig(
            bundle=dark_bundle, input=(str(tmp_path / "names.zip"),), output=str(output), actors=0
        )
    )
    assert export_runs(str(output), kinds=("png", "geojson")) == 2 * len(names)
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "names.zip"]
    assert all(path.is_relative_to(output) for path in written)
    assert len([path for path in written if path.suffix == ".png"]) == len(names)
