"""What an evaluation writes agrees with itself, with the images, and with what a person sees."""

import io
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from support import call_job, open_in_browser, read_picture

from resunet_ray import storage
from resunet_ray.config import EvaluateConfig
from resunet_ray.data.images import decode_stored
from resunet_ray.data.splits import split_as_baseline
from resunet_ray.evaluate import EvaluationResult, evaluate
from resunet_ray.report.evaluation import write_evaluation_report
from resunet_ray.schema import SCORES


@pytest.fixture(scope="module")
def scored(
    bundle_uri: str, dataset_uri: str, s3: str, cluster: str
) -> tuple[str, EvaluationResult]:
    """Where it was written, in object storage, and what came of it."""
    config = EvaluateConfig(bundle=bundle_uri, data=dataset_uri, output=f"{s3}/scores")
    return config.output, evaluate(config)


def read_scores(uri: str) -> pd.DataFrame:
    return pd.read_parquet(io.BytesIO(storage.read_bytes(f"{uri}/scores.parquet")))


def test_every_table_agrees(scored: tuple[str, EvaluationResult]) -> None:
    uri, found = scored
    assert found.images == 4
    assert pq.read_schema(io.BytesIO(storage.read_bytes(f"{uri}/scores.parquet"))).equals(SCORES)
    rows = read_scores(uri)
    assert rows["image_id"].is_unique
    assert rows["f1"].mean() == pytest.approx(found.scores["f1"])
    assert (
        rows["tp"] + rows["fp"] + rows["fn"] + rows["tn"] == rows["height"] * rows["width"]
    ).all()
    score = pd.read_csv(io.BytesIO(storage.read_bytes(f"{uri}/score.csv")))
    assert list(score.columns) == ["Image", "Accuracy", "F1", "Jaccard", "Recall", "Precision"]
    np.testing.assert_allclose(score["F1"], rows["f1"])
    assert sum(part["images"] for part in found.by_modality.values()) == 4


def test_pictures_show_image_mask_and_prediction(
    scored: tuple[str, EvaluationResult], generated: Path
) -> None:
    uri, _ = scored
    rows = read_scores(uri).set_index("image_id")
    names = [name for name, _ in storage.list_files(f"{uri}/pictures")]
    assert len(names) == 4
    for name in names:
        picture = decode_stored(storage.read_bytes(f"{uri}/pictures/{name}"))[..., ::-1]
        assert picture.shape == (96, 3 * 112 + 8, 3)
        np.testing.assert_array_equal(picture[:, :112], read_picture(generated / "images" / name))
        np.testing.assert_array_equal(
            picture[:, 116:228, 0], read_picture(generated / "masks" / name)
        )
        assert set(np.unique(picture[:, 232:])) <= {0, 255}
        assert (picture[:, 232:, 0] > 0).sum() == rows.loc[Path(name).stem, ["tp", "fp"]].sum()


def test_the_report_opens_in_a_browser_and_shows_what_was_measured(
    scored: tuple[str, EvaluationResult], tmp_path: Path
) -> None:
    uri, found = scored
    history = tmp_path / "history.csv"
    scores = {
        f"val_{name}": [0.5, 0.6] for name in ("accuracy", "f1", "jaccard", "recall", "precision")
    }
    curves = pd.DataFrame(
        {
            "epoch": [1, 2],
            "learning_rate": [1e-3, 1e-4],
            "train_loss": [0.7, 0.5],
            "val_loss": [0.6, 0.4],
            **scores,
        }
    )
    curves.to_csv(history, index=False)
    page = storage.read_bytes(write_evaluation_report(uri, history=str(history)))
    assert not re.search(rb"(src|href)=\"(?!data:|#)", page), "nothing is fetched from elsewhere"
    shown = open_in_browser(page, folder=tmp_path)
    assert f"<b>{found.scores['f1']:.4f}</b>" in shown
    assert shown.count("<img") == 4
    assert shown.count("<svg") == 2


def test_scores_do_not_depend_on_the_number_of_actors(
    scored: tuple[str, EvaluationResult], bundle_uri: str, dataset_uri: str, tmp_path: Path
) -> None:
    other = evaluate(
        EvaluateConfig(bundle=bundle_uri, data=dataset_uri, output=str(tmp_path), actors=2)
    )
    assert (other.scores, other.pooled, other.instance) == (
        scored[1].scores,
        scored[1].pooled,
        scored[1].instance,
    )


def test_the_baseline_s_protocol_scores_at_its_size(
    bundle_uri: str, dataset_uri: str, tmp_path: Path, cluster: str
) -> None:
    config = EvaluateConfig(
        bundle=bundle_uri, data=dataset_uri, output=str(tmp_path), protocol="baseline"
    )
    assert evaluate(config).instance is None
    rows = read_scores(config.output)
    assert (rows["tp"] + rows["fp"] + rows["fn"] + rows["tn"] == 256 * 256).all()


def test_names_of_a_foreign_data_set_are_only_names(
    bundle_uri: str, dataset_uri: str, tmp_path: Path, cluster: str
) -> None:
    shutil.copytree(dataset_uri, tmp_path / "data")
    (path,) = (tmp_path / "data").glob("test-*.parquet")
    table = pq.read_table(path)
    names = ["../../../escaped", "=HYPERLINK(1)", "x" * 300, "$\\foo$"]
    table = table.set_column(table.schema.get_field_index("image_id"), "image_id", [names])
    table = table.set_column(
        table.schema.get_field_index("modality"), "modality", [[r"$\foo$", "_b", "<i>c</i>", ""]]
    )
    pq.write_table(table, path, row_group_size=3)
    output = str(tmp_path / "a" / "b" / "c" / "out")
    before = {file for file in tmp_path.rglob("*") if file.is_file()}
    evaluate(EvaluateConfig(bundle=bundle_uri, data=str(tmp_path / "data"), output=output))
    report = Path(write_evaluation_report(output, history=None)).read_text()
    written = {file for file in tmp_path.rglob("*") if file.is_file()} - before
    assert all(file.is_relative_to(output) for file in written), written
    assert len([file for file in written if file.parent.name == "pictures"]) == 4
    assert r"$\foo$" in report
    assert "<i>c</i>" not in report
    images = pd.read_csv(f"{output}/score.csv")["Image"].tolist()
    assert sorted(images) == sorted(["../../../escaped", "'=HYPERLINK(1)", "x" * 300, "$\\foo$"])


@pytest.mark.campaign
def test_real_images_go_through_with_the_baseline_s_recipe(
    real_data: Path, tmp_path: Path, cluster: str
) -> None:
    """24 real images of every modality and size, a folder of pairs given to training directly, one epoch."""
    names = sorted(path.name for path in (real_data / "images").iterdir())[::28][:24]
    for folder in ("images", "masks", "instances"):
        (tmp_path / "raw" / folder).mkdir(parents=True)
        for name in names:
            shutil.copy(real_data / folder / name, tmp_path / "raw" / folder / name)
    flags = ["--recipe", "baseline", "--epochs", "1", "--model.widths", "16", "32"]
    training = ["--data", str(tmp_path / "raw"), "--output", str(tmp_path / "run"), *flags]
    code, line, errors = call_job("train", *training)
    assert code == 0, errors
    data = tmp_path / "run" / "train" / "data"
    rows = pd.concat([pd.read_parquet(path) for path in sorted(data.glob("*-*.parquet"))])
    assert dict(zip(rows["image_id"], rows["split"], strict=True)) == split_as_baseline(
        [Path(name).stem for name in names]
    )
    scoring = [
        "--bundle",
        str(line["bundle"]),
        "--data",
        str(data),
        "--output",
        str(tmp_path / "scores"),
    ]
    code, line, errors = call_job("evaluate", *scoring)
    assert (code, line["images"]) == (0, 5), errors
