"""From images to a report that a person can open: on generated data in object storage, and on real images."""

import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from support import SMALL, open_in_browser, read_picture, run_job

from resunet_ray import storage
from resunet_ray.config import EvaluateConfig
from resunet_ray.data.images import decode_stored
from resunet_ray.data.splits import split_as_report
from resunet_ray.evaluate import evaluate
from resunet_ray.schema import SCORES


@pytest.fixture(scope="module")
def evaluated(s3: str, generated: Path, cluster: str) -> tuple[str, dict[str, object]]:
    """Prepared, trained and scored with every location in object storage; gives where, and the last line."""
    prepared, output = f"{s3}/prepared", f"{s3}/run"
    for path in sorted(generated.rglob("*")):
        if path.is_file():
            storage.write_bytes(f"{s3}/raw/{path.relative_to(generated)}", path.read_bytes())
    flags = ["--metadata", f"{s3}/raw/metadata.csv", "--rows-per-group", "2"]
    code, line, errors = run_job("prepare", "--input", f"{s3}/raw", "--output", prepared, *flags, address=cluster)
    assert (code, line["images"], line["splits"]) == (0, 20, {"test": 4, "train": 12, "val": 4}), errors
    flags = [
        "--learning-rate",
        "1e-2",
        "--ema-decay",
        "0.9",
        "--epochs",
        "12",
        "--warmup-epochs",
        "0",
        "--validation-interval",
        "6",
    ]
    code, trained, errors = run_job("train", "--data", prepared, "--output", output, *SMALL, *flags, address=cluster)
    assert (code, trained["epochs"]) == (0, 12), errors
    scores = f"{s3}/scores"
    code, line, errors = run_job(
        "evaluate", "--bundle", str(trained["bundle"]), "--data", prepared, "--output", scores, address=cluster
    )
    assert code == 0, errors
    assert "only-on-loopback" not in errors + json.dumps(line)
    return scores, line


def test_it_learns_and_every_table_agrees(evaluated: tuple[str, dict[str, object]]) -> None:
    uri, line = evaluated
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
    assert sum(part["images"] for part in line["by_modality"].values()) == 4  # type: ignore[attr-defined]


def test_pictures_show_image_mask_and_prediction(evaluated: tuple[str, dict[str, object]], generated: Path) -> None:
    uri, _ = evaluated
    names = [name for name, _ in storage.list_files(f"{uri}/pictures")]
    assert len(names) == 4
    for name in names:
        picture = decode_stored(storage.read_bytes(f"{uri}/pictures/{name}"))[..., ::-1]
        assert picture.shape == (96, 3 * 112 + 8, 3)
        np.testing.assert_array_equal(picture[:, :112], read_picture(generated / "images" / name))
        np.testing.assert_array_equal(picture[:, 116:228, 0], read_picture(generated / "masks" / name))
        assert set(np.unique(picture[:, 232:])) <= {0, 255}


def test_the_report_opens_in_a_browser_and_shows_what_was_measured(
    evaluated: tuple[str, dict[str, object]], tmp_path: Path
) -> None:
    uri, line = evaluated
    page = storage.read_bytes(f"{uri}/report.html")
    assert not re.search(rb"(src|href)=\"(?!data:|#)", page), "nothing is fetched from elsewhere"
    shown = open_in_browser(page, folder=tmp_path)
    assert f"<b>{line['f1']:.4f}</b>" in shown
    assert shown.count("<img") == 4
    assert shown.count("<svg") == 2


def test_scores_do_not_depend_on_the_number_of_actors(evaluated: tuple[str, dict[str, object]], s3: str, cluster: str) -> None:
    _, line = evaluated
    other = evaluate(EvaluateConfig(bundle=f"{s3}/run/train/bundle", data=f"{s3}/prepared", output=f"{s3}/scores-2", actors=2))
    assert (other.scores["f1"], other.pooled, other.instance) == (line["f1"], line["pooled"], line["instance"])


def test_the_report_s_protocol_scores_at_its_size(evaluated: tuple[str, dict[str, object]], s3: str, cluster: str) -> None:
    output = f"{s3}/scores-report"
    done = evaluate(EvaluateConfig(bundle=f"{s3}/run/train/bundle", data=f"{s3}/prepared", output=output, protocol="report"))
    assert done.instance is None
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
