"""However a slide is cut, the same nuclei come out; and what is wrong with it is said."""

import base64
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import shapely
import tifffile
from support import REAL_SLIDES, read_output, tiff_header, write_pyramid, write_svs
from zarr_files import draw_ome_zarr

from resunet_ray import storage
from resunet_ray.bundle import load_bundle, save_bundle
from resunet_ray.config import SegmentConfig
from resunet_ray.data.images import decode_stored
from resunet_ray.errors import ConfigError
from resunet_ray.intensity import measure_range
from resunet_ray.report.segmentation import write_segmentation_report
from resunet_ray.segment.export.files import export_runs
from resunet_ray.segment.run import SegmentationResult, segment


def nuclei(output: Path | str) -> pd.DataFrame:
    return read_output(str(output), "instances").sort_values(
        ["centroid_y", "centroid_x"], ignore_index=True
    )


def run(slide: Path | str, output: Path | str, bundle: str, **settings: Any) -> SegmentationResult:
    """In this process: an actor would do the same and takes seconds to start."""
    fixed: dict[str, Any] = {"precision": "fp32", "actors": 0}
    return segment(
        SegmentConfig(
            bundle=bundle, input=(str(slide),), output=str(output), **{**fixed, **settings}
        )
    )[-1]


@pytest.mark.parametrize("tile", [None, 128, 400])
def test_the_same_nuclei_come_out_however_the_slide_is_cut(
    picture: np.ndarray, dark_bundle: str, tmp_path: Path, tile: int | None
) -> None:
    write_pyramid(tmp_path / "slide.tiff", picture)
    cv2.imwrite(str(tmp_path / "slide.png"), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    assert run(tmp_path / "slide.png", tmp_path / "plain", dark_bundle).images == {"ok": 1}
    expected = nuclei(tmp_path / "plain")
    assert len(expected) > 100
    for region in (256, 512, 2048):
        result = run(
            tmp_path / "slide.tiff", tmp_path / str(region), dark_bundle, region=region, tile=tile
        )
        assert result.images == {"ok": 1}
        found = nuclei(tmp_path / str(region))
        columns = ["geometry", "area_px", "touches_edge"]
        pd.testing.assert_frame_equal(found[columns], expected[columns])
        np.testing.assert_allclose(found["centroid_y"], expected["centroid_y"])
        np.testing.assert_allclose(found["score"], expected["score"], atol=1e-5)
        (image,) = read_output(str(tmp_path / str(region)), "images").itertuples()
        assert (image.height, image.width, image.num_nuclei) == (*picture.shape[:2], len(expected))
        assert image.seam_disagreement == 0
        assert image.num_regions == -(-700 // region) * -(-900 // region)
        assert image.foreground_fraction == pytest.approx(
            read_output(str(tmp_path / "plain"), "images")["foreground_fraction"][0]
        )


def test_tiles_that_the_bundle_cannot_have_are_refused(dark_bundle: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--tile 8: must be a multiple of 2, .* above 32"):
        run(tmp_path, tmp_path / "out", dark_bundle, tile=8)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("scale", [0.2401, 1.5, 2.03])
def test_the_same_nuclei_come_out_at_any_scale(
    picture: np.ndarray, dark_bundle: str, tmp_path: Path, scale: float
) -> None:
    """Only the upper half is tissue, crossed by an ink line. The exported mask is exact."""
    height, width = (230, 270) if scale < 0.5 else (700, 900)
    slide = picture[:height, :width].copy()
    slide[height // 2 :] = np.median(slide, axis=(0, 1))
    slide[100:106] = 20
    write_pyramid(tmp_path / "slide.tiff", slide, mpp=0.5 / scale)
    found: dict[int, pd.DataFrame] = {}
    for region in (256, 1000, 4096) if scale < 1 else (256, 300, 512, 1000, 4096):
        output = tmp_path / str(region)
        run(tmp_path / "slide.tiff", output, dark_bundle, region=region)
        found[region] = nuclei(output)
        pd.testing.assert_frame_equal(
            found[region][["geometry", "area_px"]], found[256][["geometry", "area_px"]]
        )
        (exact,) = read_output(str(output), "regions")["scale_to_level0"].unique()
        assert exact == pytest.approx(scale, rel=0.01)
        export_runs(str(output), kinds=["ome-tiff"])
        (path,) = output.rglob("*.ome.tiff")
        mask = tifffile.imread(path)
        shapes = shapely.transform(
            shapely.from_wkb(found[region]["geometry"]),
            lambda points, exact=exact: np.rint(points / exact),
        )
        whole = shapely.union_all(shapes)
        shapely.prepare(whole)
        rows, columns = np.indices(mask.shape)
        np.testing.assert_array_equal(
            mask > 0, shapely.contains_xy(whole, columns + 0.5, rows + 0.5)
        )
    assert len(found[256]) > (5 if scale < 0.5 else 20)


@pytest.mark.parametrize("tissue", ["auto", "off"])
def test_a_faded_slide_is_seen_at_the_intensities_of_the_whole(
    picture: np.ndarray, dark_bundle: str, tmp_path: Path, tissue: str
) -> None:
    """Each region alone would be stretched otherwise, the empty ones most of all."""
    bundle = load_bundle(dark_bundle)
    info = replace(
        bundle.info, preprocess=replace(bundle.info.preprocess, intensity="percentiles"), sha256={}
    )
    stretching, sample = str(tmp_path / "stretching"), np.zeros((48, 40, 3), np.uint8)
    save_bundle(stretching, weights=bundle.network.state_dict(), info=info, sample=sample)
    faded = (150 + picture.astype(np.float32) / 4).astype(np.uint8)
    write_pyramid(tmp_path / "slide.tiff", faded)
    cv2.imwrite(str(tmp_path / "slide.png"), cv2.cvtColor(faded, cv2.COLOR_RGB2BGR))
    run(tmp_path / "slide.png", tmp_path / "dim", dark_bundle)
    assert len(nuclei(tmp_path / "dim")) == 0, "nothing of it is dark"
    run(tmp_path / "slide.png", tmp_path / "plain", stretching)
    expected = nuclei(tmp_path / "plain")
    assert len(expected) > 100
    levels = {
        tuple(row)
        for row in read_output(str(tmp_path / "plain"), "regions")[
            ["level_low", "level_high"]
        ].to_numpy()
    }
    assert levels == {measure_range(faded)}
    for region in (256, 512):
        run(
            tmp_path / "slide.tiff",
            tmp_path / str(region),
            stretching,
            region=region,
            tissue=tissue,
        )
        pd.testing.assert_frame_equal(
            nuclei(tmp_path / str(region))[["geometry", "area_px"]],
            expected[["geometry", "area_px"]],
        )
        rows = read_output(str(tmp_path / str(region)), "regions")
        assert {tuple(row) for row in rows[["level_low", "level_high"]].to_numpy()} == levels


def test_a_slide_is_read_at_the_scale_of_the_bundle(
    picture: np.ndarray, dark_bundle: str, tmp_path: Path
) -> None:
    """A slide of twice the resolution has the same nuclei in µm, and four times their pixels."""
    write_pyramid(tmp_path / "half.tiff", picture, mpp=0.5)
    large = cv2.resize(picture, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
    write_pyramid(tmp_path / "quarter.tiff", large, mpp=0.25)
    areas = {}
    for name in ("half", "quarter"):
        run(tmp_path / f"{name}.tiff", tmp_path / name, dark_bundle, region=256)
        (image,) = read_output(str(tmp_path / name), "images").itertuples()
        assert (image.mpp_source, image.mpp) == (
            "metadata",
            pytest.approx(0.5 if name == "half" else 0.25, rel=1e-3),
        )
        areas[name] = nuclei(tmp_path / name)
        assert image.median_nucleus_area_um2 == pytest.approx(areas[name]["area_um2"].median())
    assert abs(len(areas["half"]) - len(areas["quarter"])) < 0.03 * len(areas["half"])
    assert areas["quarter"]["area_um2"].sum() == pytest.approx(
        areas["half"]["area_um2"].sum(), rel=0.03
    )
    assert areas["quarter"]["area_px"].sum() == pytest.approx(
        4 * areas["half"]["area_px"].sum(), rel=0.03
    )


def test_large_nuclei_of_a_slide_are_seen_smaller(
    picture: np.ndarray, dark_bundle: str, tmp_path: Path
) -> None:
    """The bundle does not know its pixel size. That of the nuclei is 120 pixels, or 30 µm."""
    bundle = load_bundle(dark_bundle)
    timeless, sample = str(tmp_path / "bundle"), np.zeros((48, 40, 3), np.uint8)
    info = replace(bundle.info, mpp=None, sha256={})
    save_bundle(timeless, weights=bundle.network.state_dict(), info=info, sample=sample)
    large = cv2.resize(picture[:100, :120], None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
    write_pyramid(tmp_path / "known.tiff", large, mpp=0.25)
    write_pyramid(tmp_path / "unknown.tiff", large)
    for number, (slide, diameter, used, scale) in enumerate([
        ("known", "auto", timeless, 1), ("known", 50.0, timeless, 1),
        ("unknown", 120.0, timeless, 4), ("known", "30um", timeless, 4),
        ("unknown", "30um", timeless, 1),  # without a pixel size, microns say nothing
        ("known", 120.0, dark_bundle, 2),  # the pixel sizes of slide and bundle go first
    ]):  # fmt: skip
        output = tmp_path / str(number)
        run(tmp_path / f"{slide}.tiff", output, used, diameter=diameter)
        (found,) = read_output(str(output), "regions")["scale_to_level0"].unique()
        assert found == pytest.approx(scale, rel=1e-3), (slide, diameter)


def test_where_the_pixel_size_comes_from(
    picture: np.ndarray, dark_bundle: str, tmp_path: Path
) -> None:
    write_pyramid(tmp_path / "screen.tiff", picture[:300, :300], mpp=264.58)
    (tmp_path / "sizes.csv").write_text("name,mpp\nscreen.tiff,0.4\n")
    settings: dict[str, dict[str, Any]] = {
        "native": {},
        "argument": {"mpp": 0.6, "mpp_csv": str(tmp_path / "sizes.csv")},
        "sidecar": {"mpp_csv": str(tmp_path / "sizes.csv")},
        "skip": {"missing_mpp": "skip"},
        "error": {"missing_mpp": "error"},
    }
    rows = {}
    for name, setting in settings.items():
        run(tmp_path / "screen.tiff", tmp_path / name, dark_bundle, **setting)
        (rows[name],) = read_output(str(tmp_path / name), "images").itertuples()
    found = {
        name: (row.status, None if pd.isna(row.mpp_source) else row.mpp_source)
        for name, row in rows.items()
    }
    assert found == {
        "native": ("ok", None),
        "argument": ("ok", "argument"),
        "sidecar": ("ok", "sidecar"),
        "skip": ("empty", None),
        "error": ("failed", None),
    }
    assert rows["native"].qc_reasons.tolist() == ["mpp_not_believed"]
    assert np.isnan(rows["native"].median_nucleus_area_um2)
    assert nuclei(tmp_path / "native")["area_um2"].isna().all()
    assert rows["skip"].qc_reasons.tolist() == ["mpp_missing"]
    assert "does not say how large its pixels are (it states 264.58" in rows["error"].error_message


def test_a_damaged_tile_costs_its_regions_and_no_others(
    picture: np.ndarray, dark_bundle: str, tmp_path: Path
) -> None:
    write_pyramid(tmp_path / "slide.tiff", picture, levels=2)
    with tifffile.TiffFile(tmp_path / "slide.tiff") as file:
        offset, size = file.pages[0].dataoffsets[37], file.pages[0].databytecounts[37]
    content = bytearray((tmp_path / "slide.tiff").read_bytes())
    content[offset : offset + size] = bytes(size)
    (tmp_path / "slide.tiff").write_bytes(content)
    result = run(
        tmp_path / "slide.tiff", tmp_path / "out", dark_bundle, region=256, max_error_fraction=1
    )
    assert result.images == {"partial": 1}
    (image,) = read_output(str(tmp_path / "out"), "images").itertuples()
    assert (image.num_regions, image.error_stage) == (12, "read")
    assert 1 <= image.num_regions_failed <= 6, "those that see the damage"
    assert "slide.tiff cannot be read as a slide" in image.error_message
    assert image.num_nuclei == len(nuclei(tmp_path / "out")) > 0
    write_pyramid(tmp_path / "slide.tiff", picture, levels=2)  # as good as new


def test_slides_in_object_storage_are_staged_once_and_leave(
    picture: np.ndarray, dark_bundle: str, tmp_path: Path, s3: str, cluster: str
) -> None:
    write_pyramid(tmp_path / "slide.tiff", picture, levels=2)
    content = (tmp_path / "slide.tiff").read_bytes()
    for name in ("a", "b", "c"):
        storage.write_bytes(f"{s3}/slides/{name}.tiff", content)
    cache: dict[str, Any] = {
        "cache": str(tmp_path / "cache"),
        "cache_gib": 2.5 * len(content) / 2**30,
    }
    result = run(f"{s3}/slides", f"{s3}/slides-out", dark_bundle, region=256, actors=1, **cache)
    assert result.images == {"ok": 3}
    images = read_output(f"{s3}/slides-out", "images")
    assert images["num_nuclei"].nunique() == 1
    staged = list((tmp_path / "cache").rglob("*.tiff"))
    assert 1 <= len(staged) <= 2, "what does not fit has left"
    assert staged[0].read_bytes() == content
    page = storage.read_bytes(
        write_segmentation_report(f"{s3}/slides-out", run_id=str(result.run_id))
    ).decode()
    shown = [decode_stored(base64.b64decode(text)) for text in re.findall(r"base64,([^\"]+)", page)]
    assert len(shown) == 3
    for other in shown[1:]:
        np.testing.assert_array_equal(other, shown[0])
    marked = (np.abs(shown[0].astype(int) - (225, 20, 60)) < (70, 90, 80)).all(axis=2)
    assert 0.5 < marked.mean() / images["foreground_fraction"][0] < 1.5, (
        "each slide shows its own nuclei"
    )


def test_bad_slides_are_rows(dark_bundle: str, tmp_path: Path, picture: np.ndarray) -> None:
    (tmp_path / "in").mkdir()
    write_pyramid(tmp_path / "in" / "cut.tiff", picture)
    content = (tmp_path / "in" / "cut.tiff").read_bytes()
    (tmp_path / "in" / "cut.tiff").write_bytes(content[: len(content) // 3])
    write_svs(tmp_path / "in" / "whole.svs", picture)
    content = (tmp_path / "in" / "whole.svs").read_bytes()
    for name, kept in (
        ("header.svs", 100),
        ("middle.svs", len(content) // 2),
        ("end.svs", len(content) - 100),
    ):
        (tmp_path / "in" / name).write_bytes(content[:kept])
    (tmp_path / "in" / "huge.tiff").write_bytes(tiff_header(height=2**31, width=2**31))
    (tmp_path / "in" / "narrow.tiff").write_bytes(tiff_header(height=500, width=0))
    (tmp_path / "in" / "alone.mrxs").write_bytes(b"\xff\xd8\xff its pixels lie in a folder")
    (tmp_path / "in" / "scattered.vms").write_text(
        "[Virtual Microscope Specimen]\nImageFile=other.jpg\n"
    )
    (tmp_path / "in" / "folder").mkdir()
    (tmp_path / "in" / "folder" / "level.dcm").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "in" / "text.svs").write_bytes(b"this is no slide")
    (tmp_path / "in" / "zero.ndpi").write_bytes(b"")
    tifffile.imwrite(
        tmp_path / "in" / "stack.ome.tiff",
        np.zeros((5, 40, 50), np.uint8),
        metadata={"axes": "ZYX"},
    )
    tifffile.imwrite(tmp_path / "in" / "plain.tif", picture[:90, :120])
    glass = np.full((600, 800, 3), 240, np.uint8)
    write_pyramid(tmp_path / "in" / "glass.tiff", glass)
    assert run(tmp_path / "in", tmp_path / "out", dark_bundle).images == {
        "failed": 11,
        "ok": 7,  # five of them planes of the stack
        "empty": 1,
    }
    rows = read_output(str(tmp_path / "out"), "images")
    rows.index = [Path(uri).name for uri in rows["image_uri"]]
    assert rows.loc["glass.tiff", "status"] == "empty"
    assert rows.loc["glass.tiff", "qc_reasons"].tolist() == ["no_tissue"]
    assert (rows.loc[["plain.tif", "whole.svs"], "status"] == "ok").all()
    assert (rows.loc["whole.svs", "mpp"], rows.loc["whole.svs", "format"]) == (0.499, "aperio")
    reasons = {
        **dict.fromkeys(("middle.svs", "cut.tiff"), "cut short"),
        "header.svs": "corrupted IFD structure",
        "end.svs": "Short read|Can't read from",  # OpenSlide 4.0.1, 4.0.0
        "huge.tiff": "lists 1: its header is damaged",
        "narrow.tiff": "claims 500 x 0 pixels",
        "alone.mrxs": "put it next to the file",
        "scattered.vms": "Convert the slide to one tiled TIFF",
        "folder": "level.dcm is damaged: it has no element",
        **dict.fromkeys(("text.svs", "zero.ndpi"), "not a TIFF file"),
    }
    for name, reason in reasons.items():
        row = rows.loc[name]
        assert (row["status"], row["error_stage"]) == ("failed", "open"), name
        assert name in row["error_message"], row["error_message"]
        assert re.search(reason, row["error_message"]), row["error_message"]


def test_large_ome_zarr_is_read_in_parts_where_it_is(
    s3: str, picture: np.ndarray, dark_bundle: str, tmp_path: Path
) -> None:
    """The same nuclei are found as in a TIFF, on each of two focal planes of two channels."""
    grey = picture[:200, :260].mean(axis=2).astype(np.uint8)
    write_pyramid(tmp_path / "a.tiff", np.dstack([grey] * 3), mpp=None)
    run(tmp_path / "a.tiff", tmp_path / "plain", dark_bundle, tissue="off")
    expected = nuclei(tmp_path / "plain")
    assert len(expected) > 10
    dark = np.zeros_like(grey)
    drawn = draw_ome_zarr(
        tmp_path / "a.zarr",
        np.array([[dark, grey], [dark, grey[::-1]]]),
        "zcyx",
        levels=2,
        side=128,
        unit=None,
        omero={"channels": [{"label": "lamin"}, {"label": "DAPI"}]},
    )
    place = f"{s3}/parts/a.zarr"
    for file in drawn.rglob("*"):
        if file.is_file():
            storage.write_bytes(f"{place}/{file.relative_to(drawn)}", file.read_bytes())
    for uri, output in ((drawn, tmp_path / "local"), (place, tmp_path / "bucket")):
        result = run(uri, output, dark_bundle, max_pixels=2**15, region=256, tissue="off")
        rows = read_output(str(output), "images").sort_values("member")
        assert result.images == {"ok": 2}, rows["error_message"].tolist()
        assert rows["member"].tolist() == ["z0", "z1"]
        assert set(rows["channel"]) == {"DAPI"}
        assert set(rows["num_regions"]) == {2}
        assert set(rows["num_nuclei"]) == {len(expected)}
        found = nuclei(output)
        found = found[found["image_id"] == rows["image_id"].iloc[0]].reset_index(drop=True)
        columns = ["geometry", "area_px"]
        pd.testing.assert_frame_equal(found[columns], expected[columns])


@pytest.fixture(scope="module")
def real_slides() -> Path:
    if not REAL_SLIDES.exists():
        pytest.skip(f"no real slides at {REAL_SLIDES}: what they would show is not shown")
    return REAL_SLIDES


@pytest.mark.campaign
def test_real_slides_and_broken_ones(real_slides: Path, dark_bundle: str, tmp_path: Path) -> None:
    """At half of their resolution, where that is known."""
    bundle = load_bundle(dark_bundle)
    info = replace(bundle.info, mpp=1.0, sha256={})
    save_bundle(
        str(tmp_path / "coarse"),
        weights=bundle.network.state_dict(),
        info=info,
        sample=np.zeros((48, 40, 3), np.uint8),
    )
    result = run(real_slides, tmp_path / "out", str(tmp_path / "coarse"), max_error_fraction=1)
    rows = read_output(str(tmp_path / "out"), "images")
    rows.index = [Path(uri).name for uri in rows["image_uri"]]
    assert result.images == {"ok": 4, "empty": 1, "failed": 3}, rows[["status", "error_message"]]
    assert (
        rows.loc[["unopenable.tiff", "unreadable.svs", "not-a-tiff.svs"], "status"] == "failed"
    ).all()
    luna = rows.loc["luna-1065626.svs"]
    assert luna["num_regions"] < 0.15 * 12 * 11, "little of it is tissue"
    assert (luna["height"], luna["width"], luna["mpp_source"]) == (10249, 11952, "metadata")
    assert rows.loc["CropBreastSlide.tiff", "qc_reasons"].tolist() == ["mpp_not_believed"]
    assert rows.loc["CMU-1-Small-Region.svs", "seam_disagreement"] == 0
