"""Files of many planes: each is an image of its own, segmented once."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile
import zarr
from lif_files import draw_lif
from support import read_output
from zarr_files import draw_ome_zarr

from resunet_ray.bundle import load_bundle, save_bundle
from resunet_ray.config import SegmentConfig
from resunet_ray.data.images import encode_png
from resunet_ray.segment.run import SegmentationResult, segment

BLOBS = ((20, 20), (20, 60), (50, 40), (75, 75), (75, 20))


def field() -> np.ndarray:
    """Bright discs on black."""
    rows, columns = np.mgrid[:96, :96]
    near = [np.hypot(rows - y, columns - x) < 9 for y, x in BLOBS]
    return np.where(np.any(near, axis=0), 200, 10).astype(np.uint8)


def configure(folder: Path, bundle: str) -> SegmentConfig:
    output = str(folder.parent / "out")
    return SegmentConfig(
        bundle=bundle, input=(str(folder),), output=output, actors=0, max_error_fraction=1
    )


def run(config: SegmentConfig) -> SegmentationResult:
    return segment(config)[-1]


def rows(config: SegmentConfig) -> pd.DataFrame:
    found = read_output(config.output, "images").sort_values(["image_uri", "member"])
    assert found["image_id"].is_unique
    return found


def test_each_plane_is_segmented_once(bundle_uri: str, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    empty = np.full_like(field(), 10)
    (folder / "empty.png").write_bytes(encode_png(empty))
    (folder / "single.png").write_bytes(encode_png(field()))
    frames = np.stack([np.stack([empty, field()]), np.stack([field(), field()]), [empty] * 2])
    options: dict[str, Any] = {
        "imagej": True,
        "resolution": (4, 4),
        "metadata": {"axes": "TZYX", "unit": "um"},
    }
    tifffile.imwrite(folder / "stack.tif", frames, **options)
    config = configure(folder, bundle_uri)
    assert run(config).images == {"ok": 8}
    found = rows(config)
    single, stack = found[found["member"].isna()], found[found["member"].notna()]
    assert stack["member"].tolist() == ["t0-z0", "t0-z1", "t1-z0", "t1-z1", "t2-z0", "t2-z1"]
    assert stack[["scene", "t", "z"]].to_numpy().tolist() == [
        [0, t, z] for t in range(3) for z in range(2)
    ]
    assert stack["file_id"].nunique() == 1
    assert set(stack["mpp"]) == {0.25}
    assert set(stack["mpp_source"]) == {"metadata"}
    dark, bright = single["foreground_fraction"]
    assert dark != bright
    assert stack["foreground_fraction"].tolist() == [dark, bright, bright, bright, dark, dark]
    second = run(config)
    assert (second.images, second.done_before) == ({}, 3), "three files are listed"
    projected = replace(config, z="max", output=str(tmp_path / "projected"))
    assert run(projected).images == {"ok": 5}
    kept = rows(projected)[lambda table: table["member"].notna()]
    assert kept["foreground_fraction"].tolist() == [bright, bright, dark]


def test_planes_may_share_one_intensity_scale(bundle_uri: str, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    frames = np.stack([field(), field() // 4]).astype(np.uint16) * 100
    tifffile.imwrite(folder / "stack.tif", frames, imagej=True, metadata={"axes": "TYX"})
    bundle, stretching = load_bundle(bundle_uri), str(tmp_path / "stretching")
    seen = replace(bundle.info.preprocess, intensity="percentiles")
    info = replace(bundle.info, preprocess=seen, sha256={})
    weights, sample = bundle.network.state_dict(), np.zeros((48, 40, 3), np.uint8)
    save_bundle(stretching, weights=weights, info=info, sample=sample)
    config = configure(folder, stretching)
    for scale in ("plane", "file"):
        one = replace(config, scale=scale, output=str(tmp_path / scale))
        assert run(one).images == {"ok": 2}
        bright, dark = read_output(one.output, "regions").sort_values("member")["grey_sum"]
        assert (dark == pytest.approx(bright, rel=0.05)) == (scale == "plane")
        assert scale == "plane" or dark < bright / 2


def test_a_plane_that_failed_is_tried_again_alone(bundle_uri: str, tmp_path: Path) -> None:
    """The last of three planes has lost its second half."""
    folder = tmp_path / "in"
    folder.mkdir()
    frames = np.random.default_rng(0).integers(0, 255, (3, 96, 96), dtype=np.uint8)
    path = folder / "cut.tif"
    tifffile.imwrite(
        path, frames, metadata={"axes": "TYX"}, compression="zlib", photometric="minisblack"
    )
    with tifffile.TiffFile(path) as file:
        places = [(page.dataoffsets[0], page.databytecounts[0]) for page in file.pages]
    content = bytearray(path.read_bytes())
    start, size = places[2]
    content[start + size // 2 : start + size] = bytes(size - size // 2)
    path.write_bytes(content)
    config = configure(folder, bundle_uri)
    assert run(config).images == {"failed": 1, "ok": 2}
    (failed,) = rows(config).query("status == 'failed'").itertuples()
    assert (failed.member, failed.attempt, failed.error_kind) == ("t2", 1, "image")
    assert f"{path} cannot be read" in failed.error_message
    assert run(config).images == {}, "a verdict stays"
    assert run(replace(config, retry_failed=True)).images == {"failed": 1}
    assert rows(config)["attempt"].tolist() == [1, 1, 2]


def test_the_channel_of_the_nuclei_is_asked_for(bundle_uri: str, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "single.png").write_bytes(encode_png(field()))
    (folder / "png.tif").write_bytes(encode_png(field()))  # its content counts, not its name
    other = np.full_like(field(), 10)
    names = {"Channel": {"Name": ["Actin", "Hoechst"]}}
    tifffile.imwrite(folder / "last.tif", np.dstack([other, field()]), photometric="minisblack")
    array = np.stack([other, field()])
    tifffile.imwrite(folder / "named.ome.tif", array, metadata={"axes": "CYX", **names})
    config = configure(folder, bundle_uri)
    assert run(config).images == {"failed": 1, "ok": 3}
    found = rows(config)
    (failed,) = found.query("status == 'failed'").itertuples()
    assert failed.image_uri.endswith("last.tif")
    assert failed.error_stage == "open"
    assert "it has 2 channels, 0 (no name), 1 (no name), and it is not clear" in (
        failed.error_message
    )
    named = found[found["image_uri"].str.endswith("named.ome.tif")]
    assert named["channel"].tolist() == ["Hoechst"]
    said = replace(config, channel="1", output=str(tmp_path / "said"))
    assert run(said).images == {"ok": 4}
    assert rows(said)["foreground_fraction"].nunique() == 1


def test_a_stack_is_not_scored_against_one_mask(bundle_uri: str, tmp_path: Path) -> None:
    for name, content in (("in", np.stack([field()] * 3)), ("masks", field() // 200)):
        (tmp_path / name).mkdir()
        tifffile.imwrite(tmp_path / name / "a.tif", content, photometric="minisblack")
    config = replace(configure(tmp_path / "in", bundle_uri), masks=str(tmp_path / "masks"))
    assert run(config).images == {"failed": 1}
    assert f"it has 3 planes, but {tmp_path}/masks/a.tif is one true mask" in (
        rows(config)["error_message"].item()
    )
    projected = replace(config, z="max", output=str(tmp_path / "projected"))
    assert run(projected).images == {"ok": 1}
    assert rows(projected)["f1"].notna().all()


def test_a_zarr_folder_is_one_image(bundle_uri: str, tmp_path: Path) -> None:
    """Whatever it holds is not listed, beside plain images or as the input itself."""
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "single.png").write_bytes(encode_png(field()))
    versions: dict[str, Any] = {"a.ome.zarr": 2, "b.zarr": 3}
    for name, version in versions.items():
        root = zarr.open_group(folder / name, mode="w", zarr_format=version)
        root.create_array("0", data=field(), chunks=(32, 32))
        axes = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "yx"]
        scale = [{"type": "scale", "scale": [0.25, 0.25]}]
        datasets = [{"path": "0", "coordinateTransformations": scale}]
        multiscales: Any = [{"axes": axes, "datasets": datasets, "version": "0.4"}]
        if version == 2:
            root.attrs["multiscales"] = multiscales
        else:
            root.attrs["ome"] = {"version": "0.5", "multiscales": multiscales}
    config = configure(folder, bundle_uri)
    assert run(config).images == {"ok": 3}
    found = rows(config)
    assert found["foreground_fraction"].nunique() == 1
    assert sorted(found["mpp"].dropna()) == [0.25, 0.25]
    assert run(config).done_before == 3
    alone = replace(config, input=(str(folder / "b.zarr"),), output=str(tmp_path / "alone"))
    assert run(alone).images == {"ok": 1}


def test_a_lif_file_is_read_plane_by_plane(bundle_uri: str, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "single.png").write_bytes(encode_png(field()))
    stack = np.stack([field(), field()])
    draw_lif(folder / "stack.lif", {"a": (stack, "zyx")}, microns=(0.25, 0.25))
    config = configure(folder, bundle_uri)
    assert run(config).images == {"ok": 3}
    found = rows(config)
    assert found["member"].dropna().tolist() == ["z0", "z1"]
    assert found["foreground_fraction"].nunique() == 1


def test_fields_of_a_plate_are_images_where_they_are_named(bundle_uri: str, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    plate = folder / "plate.zarr"
    for place, image in (("A/1/0", field()), ("A/1/1", field()[::-1]), ("B/1/0", field() // 20)):
        draw_ome_zarr(plate / place, image, "yx", unit=None, levels=2, side=32)
    for place, about in (
        (".", {"plate": {"wells": [{"path": "A/1"}, {"path": "B/1"}]}}),
        ("A/1", {"well": {"images": [{"path": "0"}]}}),
    ):
        group = zarr.open_group(str(plate / place), mode="a", zarr_format=3)
        group.attrs["ome"] = about
    (folder / "list.csv").write_text("uri\nplate.zarr/A/1/1\n")
    plate_refused = {"plate.zarr": "it is a plate of 2 wells"}
    fields: dict[str, None] = dict.fromkeys(f"plate.zarr/{place}" for place in ("A/1/0", "A/1/1"))
    cases: list[tuple[str, Mapping[str, str | None]]] = [
        ("", plate_refused),
        ("/plate.zarr", plate_refused),
        ("/**", plate_refused),
        ("/plate.zarr/A/1", {"plate.zarr/A/1": "it is a well of a plate"}),
        ("/plate.zarr/A/1/0", {"plate.zarr/A/1/0": None}),
        ("/list.csv", {"plate.zarr/A/1/1": None}),
        ("/*.zarr/A/*/*", fields),
        ("/plate.zarr/*/*/*", fields | {"plate.zarr/B/1/0": None}),
    ]
    for number, (wanted, expected) in enumerate(cases):
        config = configure(folder, bundle_uri)
        one = replace(config, input=(f"{folder}{wanted}",), output=str(tmp_path / f"{number}"))
        run(one)
        table = rows(one)
        names = table["image_uri"].str.removeprefix(f"{folder}/")
        found = dict(zip(names, table["error_message"].fillna(""), strict=True))
        assert found.keys() == expected.keys(), wanted
        for name, message in expected.items():
            assert bool(message) == bool(found[name]), found
            assert (message or "") in found[name]
        assert run(one).images == {}
