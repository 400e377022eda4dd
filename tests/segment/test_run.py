"""Every image is segmented once, whatever its kind and whenever the run is killed."""

import io
import re
import tarfile
import zipfile
from pathlib import Path

import duckdb
import geopandas
import numpy as np
import pandas as pd
import pytest
import shapely
from support import read_output

from resunet_ray import storage
from resunet_ray.bundle import load_bundle
from resunet_ray.config import SegmentConfig
from resunet_ray.data.images import decode_image, decode_stored
from resunet_ray.errors import InputError
from resunet_ray.model.instances import find_instances
from resunet_ray.report.segmentation import write_segmentation_report
from resunet_ray.segment.export.files import export_runs
from resunet_ray.segment.run import SegmentationResult, segment


@pytest.fixture(scope="module")
def archive(s3: str, generated: Path) -> str:
    """In object storage: ten images under a prefix, five in a zip, three in a tar; odd names."""
    prefix = f"{s3}/archive"
    files = sorted((generated / "images").iterdir())
    for number, path in enumerate(files[:10]):
        storage.write_bytes(f"{prefix}/{'deep/ü b/' * (number % 2)}{path.name}", path.read_bytes())
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        for path in files[10:15]:
            file.write(path, f"../{path.name}")
    storage.write_bytes(f"{prefix}/more.zip", packed.getvalue())
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for path in files[15:18]:
            tar.add(path, f"/absolute/{path.name}")
    storage.write_bytes(f"{prefix}/and.tar", packed.getvalue())
    return prefix


@pytest.fixture(scope="module")
def first(
    archive: str, bundle_uri: str, s3: str, generated: Path, cluster: str
) -> tuple[SegmentConfig, SegmentationResult]:
    config = SegmentConfig(
        bundle=bundle_uri,
        input=(archive,),
        output=f"{s3}/segmented",
        labels=True,
        mpp=0.5,
        precision="fp32",
    )
    (result,) = segment(config)
    return config, result


def test_each_image_is_there_once_with_the_mask_that_the_bundle_gives(
    first: tuple[SegmentConfig, SegmentationResult], archive: str
) -> None:
    config, result = first
    assert result.images == {"ok": 18}, read_output(config.output, "images")[
        "error_message"
    ].tolist()
    assert 0 < result.model_busy_fraction <= 1
    assert result.cost["core_seconds"] == pytest.approx(
        18 * result.cost["core_seconds_per_image"], rel=1e-4
    )
    images, regions = read_output(config.output, "images"), read_output(config.output, "regions")
    assert len(images) == len(regions) == 18
    assert images["image_id"].is_unique
    assert sorted(images["image_id"]) == sorted(regions["image_id"])
    bundle = load_bundle(config.bundle)
    for row in regions.itertuples():
        content = storage.read_bytes(row.image_uri)
        if row.image_uri.endswith(".zip"):
            content = zipfile.ZipFile(io.BytesIO(content)).read(row.member)
        elif row.image_uri.endswith(".tar"):
            with tarfile.open(fileobj=io.BytesIO(content)) as tar:
                member = tar.extractfile(row.member)
                assert member is not None
                content = member.read()
        image = decode_image(content, name=row.image_uri)
        (found,) = bundle.predict([image], batch_size=1, precision="fp32")
        labels = find_instances(found, config=bundle.info.instances)
        np.testing.assert_array_equal(decode_stored(row.mask) > 0, labels > 0)
        np.testing.assert_array_equal(decode_stored(row.labels), labels)
        assert row.num_instances == labels.max()
    assert (
        images.set_index("image_id")["num_nuclei"].to_dict()
        == regions.set_index("image_id")["num_instances"].to_dict()
    )


def test_other_programs_read_the_tables(
    first: tuple[SegmentConfig, SegmentationResult], tmp_path: Path
) -> None:
    config, _ = first
    for folder in ("images", "instances"):
        for number, file in enumerate(storage.walk_files(f"{config.output}/{folder}")):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / f"{number}.parquet").write_bytes(
                storage.read_bytes(f"{config.output}/{folder}/{file.path}")
            )
    found = duckdb.read_parquet(f"{tmp_path}/images/*").aggregate(
        "sum(num_nuclei), sum(foreground_fraction * height * width)"
    )
    nuclei, area = found.fetchall()[0]
    shapes = pd.concat(
        [geopandas.read_parquet(path) for path in (tmp_path / "instances").iterdir()]
    )
    assert len(shapes) == nuclei > 0
    assert shapes["instance_id"].is_unique
    assert shapes.geometry.area.sum() == pytest.approx(area)
    assert shapes["area_um2"].sum() == pytest.approx(area * 0.25)
    assert shapely.is_valid(shapes.geometry.to_numpy()).all()
    left = (
        duckdb.read_parquet(f"{tmp_path}/instances/*").aggregate("sum(bbox.xmin)").fetchall()[0][0]
    )
    assert shapes.geometry.bounds["minx"].sum() == pytest.approx(left)


def test_masks_become_files_that_any_viewer_opens(
    first: tuple[SegmentConfig, SegmentationResult],
) -> None:
    config, result = first
    assert export_runs(config.output, kinds=["png"]) == 36
    regions = read_output(config.output, "regions").set_index("image_id")
    for image_id, row in regions.iterrows():
        (name,) = (
            name
            for name, _ in files(config.output, str(result.run_id))
            if f".{image_id[:8]}.mask" in name
        )
        assert (
            storage.read_bytes(f"{config.output}/exports/png/{result.run_id}/{name}") == row["mask"]
        )
    with pytest.raises(InputError, match="has no finished run other: found"):
        export_runs(config.output, kinds=["png"], run_ids=["other"])


def test_the_report_shows_images_wherever_they_lie(
    first: tuple[SegmentConfig, SegmentationResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, result = first
    monkeypatch.setattr("resunet_ray.report.segmentation._SHOWN", 18)
    page = storage.read_bytes(
        write_segmentation_report(config.output, run_id=str(result.run_id))
    ).decode()
    assert page.count("<img") == 18
    assert page.count("<svg") == 1
    assert not re.search(r"(src|href)=\"(?!data:|#)", page), "nothing is fetched from elsewhere"


def test_a_bad_row_of_a_manifest_is_one_failed_image(
    bundle_uri: str, generated: Path, tmp_path: Path, cluster: str
) -> None:
    good, other, *_ = sorted((generated / "images").iterdir())
    rows = {good: "0.5", other: "0", tmp_path / "gone.png": "", "ftp://lab/a.png": "1"}
    (tmp_path / "list.csv").write_text(
        "uri,mpp\n" + "".join(f"{uri},{mpp}\n" for uri, mpp in rows.items())
    )
    config = SegmentConfig(
        bundle=bundle_uri, input=(str(tmp_path / "list.csv"),), output=str(tmp_path / "out")
    )
    (result,) = segment(config)
    assert result.images == {"ok": 1, "failed": 3}
    found = read_output(config.output, "images").set_index("image_uri")
    assert "its mpp is 0: must be more than 0" in found.loc[str(other), "error_message"]
    assert found.loc[str(good), "nuclei_per_mm2"] > 0
    page = storage.read_bytes(
        write_segmentation_report(config.output, run_id=str(result.run_id))
    ).decode()
    assert "gone.png" in page


def files(output: str, run_id: str) -> list[tuple[str, int]]:
    return list(storage.list_files(f"{output}/exports/png/{run_id}"))


def test_the_same_again_does_nothing_and_a_change_is_work(
    first: tuple[SegmentConfig, SegmentationResult],
    archive: str,
    generated: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, _ = first
    with monkeypatch.context() as patch:
        patch.setattr("resunet_ray.segment.work.actors.Segmenter", None)  # no model is loaded
        (again,) = segment(config)
    assert (again.run_id, again.done_before, again.regions) == (None, 18, 0)
    (other,) = segment(SegmentConfig(**{**vars(config), "dry_run": True, "threshold": 0.6}))
    assert (other.done_before, other.regions) == (0, 18)
    content = sorted((generated / "images").iterdir())[-1].read_bytes()
    storage.write_bytes(f"{archive}/new.png", content)
    (result,) = segment(config)
    assert (result.images, result.done_before) == ({"ok": 1}, 18)
    assert len(read_output(config.output, "images")) == 19
