"""Output of version 0.1.0 (tests/former) is read, and a run that it began is finished."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import ROOT, read_output

from resunet_ray.bundle import load_bundle
from resunet_ray.config import SegmentConfig
from resunet_ray.report.segmentation import write_segmentation_report
from resunet_ray.segment.export.files import export_runs
from resunet_ray.segment.run import segment

FORMER = ROOT / "tests" / "former"
WRITTEN = "/tmp/former"  # noqa: S108 (where it was when it was written)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FORMER / "segmented", tmp_path / "segmented"))


def run_id(output: Path) -> str:
    (run,) = (output / "runs").iterdir()
    return run.name


def test_its_bundle_gives_what_it_gave() -> None:
    bundle = load_bundle(str(FORMER / "bundle"))
    bundle.self_test()
    assert set(read_output(str(FORMER / "segmented"), "images")["bundle_digest"]) == {bundle.digest}


def test_its_tables_are_exported_and_reported(output: Path) -> None:
    images = read_output(str(output), "images")
    assert set(images["code_version"]) == {"0.1.0"}
    assert len(read_output(str(output), "instances")) == images["num_nuclei"].sum()
    assert export_runs(str(output), kinds=["png", "geojson", "ome-zarr", "ome-tiff"]) == 12
    assert Path(write_segmentation_report(str(output), run_id=run_id(output))).exists()


def test_a_run_that_it_began_is_finished(output: Path, tmp_path: Path) -> None:
    """Its plan speaks of lots, lacks tissue, and has a null GPU. Only the paths are replaced."""
    before = {name: read_output(str(output), name) for name in ("images", "regions")}
    for name in before:
        shutil.rmtree(output / name)
    shutil.rmtree(output / "instances")
    shutil.copytree(FORMER / "bundle", tmp_path / "bundle")
    shutil.copytree(FORMER / "images", tmp_path / "images")
    run = output / "runs" / run_id(output)
    record = json.loads((run / "run.json").read_text().replace(WRITTEN, str(tmp_path)))
    assert record["plan"]["lots"] == 1
    assert record["config"]["gpu"] is None
    (run / "run.json").write_text(json.dumps({**record, "status": "planned"}))
    plan = pq.read_table(run / "plan" / "00000.parquet")
    places = [uri.replace(WRITTEN, str(tmp_path)) for uri in plan["image_uri"].to_pylist()]
    plan = plan.set_column(plan.schema.get_field_index("image_uri"), "image_uri", pa.array(places))
    pq.write_table(plan, run / "plan" / "00000.parquet")
    finished, new = segment(
        SegmentConfig(
            bundle=str(tmp_path / "bundle"),
            input=(str(tmp_path / "images"),),
            output=str(output),
            actors=0,
            precision="fp32",
        )
    )
    assert (finished.run_id, finished.images, new.images) == (run.name, {"ok": 3}, {"ok": 3}), (
        "the places are new ones"
    )
    columns = ["image_id", "num_nuclei", "foreground_fraction"]
    for name, wanted in (("images", columns), ("regions", ["image_id", "mask"])):
        after = read_output(str(output), name)
        after = after[after["run_id"] == run.name].reset_index(drop=True)
        pd.testing.assert_frame_equal(after[wanted], before[name][wanted])
