"""From images to a report that a person can open: submitted to a cluster, in object storage; and real images on this machine."""

import io
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from nodes import TRAVELLED, Nodes
from support import SMALL, open_in_browser, read_output, read_picture, run_job

from resunet_ray import storage
from resunet_ray.bundle import read_bundle_info
from resunet_ray.data.images import decode_stored
from resunet_ray.data.splits import split_as_report
from resunet_ray.schema import SCORES


@dataclass
class Pipeline:
    """What went through a cluster, each job submitted from a clean clone, every location in object storage."""

    data: str
    bundle: str
    scores: str
    evaluated: dict[str, Any]
    """The last line of the evaluation."""


@pytest.fixture(scope="module")
def pipeline(s3: str, generated: Path, nodes: Nodes) -> Pipeline:
    for path in sorted(generated.rglob("*")):
        if path.is_file():
            storage.write_bytes(f"{s3}/pipeline/raw/{path.relative_to(generated)}", path.read_bytes())
    data, scores = f"{s3}/pipeline/data", f"{s3}/pipeline/scores"
    flags = ["--metadata", f"{s3}/pipeline/raw/metadata.csv", "--rows-per-group", "2"]
    code, line, shown = nodes.submit("prepare", "--input", f"{s3}/pipeline/raw", "--output", data, *flags)
    assert (code, line["images"], line["splits"]) == (0, 20, {"test": 4, "train": 12, "val": 4}), shown
    flags = ["--learning-rate", "1e-2", "--ema-decay", "0.9", "--epochs", "12", "--warmup-epochs", "0"]
    flags += ["--validation-interval", "6", "--workers", "2"]
    code, trained, shown = nodes.submit("train", "--data", data, "--output", f"{s3}/pipeline/run", *SMALL, *flags)
    assert (code, trained["epochs"]) == (0, 12), shown
    bundle = str(trained["bundle"])
    code, line, shown = nodes.submit("evaluate", "--bundle", bundle, "--data", data, "--output", scores)
    assert code == 0, shown
    assert "only-on-loopback" not in shown
    return Pipeline(data, bundle, scores, line)


def test_what_runs_on_the_nodes_is_what_was_submitted(pipeline: Pipeline, nodes: Nodes, s3: str) -> None:
    """The driver's version is in the bundle, the actors' in each row: both are the clone's."""
    assert read_bundle_info(pipeline.bundle)[0].provenance["versions"]["resunet_ray"] == TRAVELLED
    output = f"{s3}/pipeline/segmented"
    command = ["--bundle", pipeline.bundle, "--input", f"{s3}/pipeline/raw/images", "--output", output]
    code, line, shown = nodes.submit("segment", *command)
    assert (code, line["status"], line["images"]) == (0, "done", {"ok": 20}), shown
    rows = read_output(output, "images")
    assert rows["image_id"].nunique() == len(rows) == 20
    assert set(rows["code_version"]) == {TRAVELLED}


def test_a_sweep_is_submitted_as_any_job(pipeline: Pipeline, nodes: Nodes, s3: str) -> None:
    flags = [*SMALL, "--epochs", "2", "--trials", "2", "--concurrent", "2", "--scheduler", "none"]
    flags += ["--space", "learning_rate=choice:1e-2,1e-3"]
    code, line, shown = nodes.submit("tune", "--data", pipeline.data, "--output", f"{s3}/pipeline/sweep", *flags)
    assert code == 0, shown
    trials = pd.read_parquet(io.BytesIO(storage.read_bytes(f"{s3}/pipeline/sweep/trials.parquet")))
    assert trials["status"].tolist() == ["completed", "completed"], shown
    assert storage.exists(f"{line['bundle']}/bundle.json")


def test_who_submits_sees_the_last_line_and_the_exit_code(nodes: Nodes, s3: str) -> None:
    code, line, shown = nodes.submit("train", "--data", f"{s3}/nowhere", "--output", f"{s3}/pipeline/none")
    assert (code, line["status"], line["error"]) == (1, "failed", "InputError")
    assert "exit code 2" in shown


def test_it_learns_and_every_table_agrees(pipeline: Pipeline) -> None:
    uri, line = pipeline.scores, pipeline.evaluated
    assert line["images"] == 4
    assert float(str(line["f1"])) > 0.6
    table = pq.read_table(io.BytesIO(storage.read_bytes(f"{uri}/scores.parquet")))
    assert table.schema.equals(SCORES)
    rows = pd.read_parquet(io.BytesIO(storage.read_bytes(f"{uri}/scores.parquet")))
    assert rows["image_id"].is_unique
    assert rows["f1"].mean() == pytest.approx(line["f1"])
    assert (rows["tp"] + rows["fp"] + rows["fn"] + rows["tn"] == rows["height"] * rows["width"]).all()
    score = pd.read_csv(io.BytesIO(storage.read_bytes(f"{uri}/score.csv")))
    assert list(score.columns) == ["Image", "Accuracy", "F1", "Jaccard", "Recall", "Precision"]
    np.testing.assert_allclose(score["F1"], rows["f1"])
    assert sum(part["images"] for part in line["by_modality"].values()) == 4


def test_pictures_show_image_mask_and_prediction(pipeline: Pipeline, generated: Path) -> None:
    uri = pipeline.scores
    names = [name for name, _ in storage.list_files(f"{uri}/pictures")]
    assert len(names) == 4
    for name in names:
        picture = decode_stored(storage.read_bytes(f"{uri}/pictures/{name}"))[..., ::-1]
        assert picture.shape == (96, 3 * 112 + 8, 3)
        np.testing.assert_array_equal(picture[:, :112], read_picture(generated / "images" / name))
        np.testing.assert_array_equal(picture[:, 116:228, 0], read_picture(generated / "masks" / name))
        assert set(np.unique(picture[:, 232:])) <= {0, 255}


def test_the_report_opens_in_a_browser_and_shows_what_was_measured(pipeline: Pipeline, tmp_path: Path) -> None:
    uri, line = pipeline.scores, pipeline.evaluated
    page = storage.read_bytes(f"{uri}/report.html")
    assert not re.search(rb"(src|href)=\"(?!data:|#)", page), "nothing is fetched from elsewhere"
    shown = open_in_browser(page, folder=tmp_path)
    assert f"<b>{line['f1']:.4f}</b>" in shown
    assert shown.count("<img") == 4
    assert shown.count("<svg") == 2


def test_scores_do_not_depend_on_the_number_of_actors(pipeline: Pipeline, nodes: Nodes, s3: str) -> None:
    command = ["--bundle", pipeline.bundle, "--data", pipeline.data, "--output", f"{s3}/pipeline/scores-2"]
    code, line, shown = nodes.submit("evaluate", *command, "--actors", "2")
    assert code == 0, shown
    assert [line[name] for name in ("f1", "pooled", "instance")] == [
        pipeline.evaluated[name] for name in ("f1", "pooled", "instance")
    ]


def test_the_report_s_protocol_scores_at_its_size(pipeline: Pipeline, nodes: Nodes, s3: str) -> None:
    output = f"{s3}/pipeline/scores-report"
    command = ["--bundle", pipeline.bundle, "--data", pipeline.data, "--output", output]
    code, line, shown = nodes.submit("evaluate", *command, "--protocol", "report")
    assert (code, line["instance"]) == (0, None), shown
    rows = pd.read_parquet(io.BytesIO(storage.read_bytes(f"{output}/scores.parquet")))
    assert (rows["tp"] + rows["fp"] + rows["fn"] + rows["tn"] == 256 * 256).all()


def test_real_images_go_through_with_the_report_s_recipe(real_data: Path, tmp_path: Path) -> None:
    """24 real images of every modality and size, a folder of pairs given to training directly, one epoch."""
    names = sorted(path.name for path in (real_data / "images").iterdir())[::28][:24]
    for folder in ("images", "masks", "instances"):
        (tmp_path / "raw" / folder).mkdir(parents=True)
        for name in names:
            shutil.copy(real_data / folder / name, tmp_path / "raw" / folder / name)
    flags = ["--recipe", "report", "--epochs", "1", "--model.widths", "16", "32"]
    code, line, errors = run_job("train", "--data", str(tmp_path / "raw"), "--output", str(tmp_path / "run"), *flags)
    assert code == 0, errors
    data = tmp_path / "run" / "train" / "data"
    rows = pd.concat([pd.read_parquet(path) for path in sorted(data.glob("*-*.parquet"))])
    assert dict(zip(rows["image_id"], rows["split"], strict=True)) == split_as_report([Path(name).stem for name in names])
    code, line, errors = run_job(
        "evaluate", "--bundle", str(line["bundle"]), "--data", str(data), "--output", str(tmp_path / "scores")
    )
    assert (code, line["images"]) == (0, 5), errors
