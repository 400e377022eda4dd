"""The files of an evaluation agree with each other, with the images, and with the report."""

import io
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import call_job, open_in_browser, read_picture

from resunet_ray import storage
from resunet_ray.config import EvaluateConfig
from resunet_ray.data.images import decode_stored
from resunet_ray.data.splits import split_as_baseline
from resunet_ray.evaluate import EvaluationResult, evaluate
from resunet_ray.model.matching import OUTCOMES
from resunet_ray.model.metrics import SCORE_NAMES
from resunet_ray.pictures import OUTCOME_COLOURS
from resunet_ray.report.evaluation import write_evaluation_report
from resunet_ray.schema import SCORES


@pytest.fixture(scope="module")
def scored(
    bundle_uri: str, dataset_uri: str, s3: str, cluster: str
) -> tuple[str, EvaluationResult]:
    """Where the evaluation was written, in object storage, and its result."""
    config = EvaluateConfig(bundle=bundle_uri, data=dataset_uri, output=f"{s3}/scores")
    return config.output, evaluate(config)


def read_scores(uri: str, name: str = "scores") -> pd.DataFrame:
    return pd.read_parquet(io.BytesIO(storage.read_bytes(f"{uri}/{name}.parquet")))


def test_all_tables_agree(scored: tuple[str, EvaluationResult]) -> None:
    uri, found = scored
    assert found.images == 4
    assert pq.read_schema(io.BytesIO(storage.read_bytes(f"{uri}/scores.parquet"))).equals(SCORES)
    rows = read_scores(uri)
    assert rows["image_id"].is_unique
    assert rows["f1"].mean() == pytest.approx(found.scores["f1"])
    counts = rows[["tp", "fp", "fn", "tn"]].sum(axis="columns")
    assert (counts == rows["height"] * rows["width"]).all()
    score = pd.read_csv(io.BytesIO(storage.read_bytes(f"{uri}/score.csv")))
    assert list(score.columns) == ["Image", "Accuracy", "F1", "Jaccard", "Recall", "Precision"]
    np.testing.assert_allclose(score["F1"], rows["f1"])
    assert sum(part["images"] for part in found.by_modality.values()) == 4


def test_each_true_nucleus_counts_once_and_is_drawn_in_the_colour_of_its_kind(
    scored: tuple[str, EvaluationResult],
) -> None:
    uri, _ = scored
    rows, outcomes = read_scores(uri), read_scores(uri, "outcomes")
    assert list(outcomes["image_id"]) == list(rows["image_id"])
    assert (outcomes[list(OUTCOMES)].sum(axis=1) - outcomes["invented"]).equals(rows["num_true"])
    for row in outcomes.to_dict("records"):
        picture = decode_stored(storage.read_bytes(f"{uri}/pictures/{row['image_id']}.png"))
        colours = set((picture.reshape(-1, 3) @ np.array([2**16, 2**8, 1])).tolist())
        for kind, colour in OUTCOME_COLOURS.items():
            assert row[kind] == 0 or int(colour[1:], 16) in colours, kind


def test_without_instances_pictures_show_image_mask_and_prediction(
    bundle_uri: str, dataset_uri: str, generated: Path, tmp_path: Path, cluster: str
) -> None:
    """There is no table of outcomes either, and the report does not mention nuclei."""
    shutil.copytree(dataset_uri, tmp_path / "data")
    (path,) = (tmp_path / "data").glob("test-*.parquet")
    table = pq.read_table(path)
    column = table.schema.get_field_index("labels")
    table = table.set_column(column, "labels", pa.nulls(len(table), pa.binary()))
    pq.write_table(table, path, row_group_size=3)
    output = tmp_path / "out"
    config = EvaluateConfig(
        bundle=bundle_uri, data=str(tmp_path / "data"), output=str(output), actors=1
    )
    assert evaluate(config).instance is None
    rows = read_scores(str(output)).set_index("image_id")
    assert not (output / "outcomes.parquet").exists()
    pictures = list((output / "pictures").iterdir())
    assert len(pictures) == 4
    for file in pictures:
        picture = read_picture(file)
        assert picture.shape == (96, 3 * 112 + 8, 3)
        image = read_picture(generated / "images" / file.name)
        np.testing.assert_array_equal(picture[:, :112], image)
        np.testing.assert_array_equal(
            picture[:, 116:228, 0], read_picture(generated / "masks" / file.name)
        )
        assert set(np.unique(picture[:, 232:])) <= {0, 255}
        assert (picture[:, 232:, 0] > 0).sum() == rows.loc[file.stem, ["tp", "fp"]].sum()
    report = Path(write_evaluation_report(str(output), history=None)).read_text()
    assert "Lowest F1" in report
    assert "<h2>Nuclei" not in report


def test_the_report_opens_in_a_browser_and_shows_the_scores(
    scored: tuple[str, EvaluationResult], tmp_path: Path
) -> None:
    uri, found = scored
    history = tmp_path / "history.csv"
    curves = {"epoch": [1, 2], "learning_rate": [1e-3, 1e-4], "train_loss": [0.7, 0.5]}
    curves |= {"val_loss": [0.6, 0.4]}
    curves |= {f"val_{name}": [0.5, 0.6] for name in SCORE_NAMES}
    pd.DataFrame(curves).to_csv(history, index=False)
    page = storage.read_bytes(write_evaluation_report(uri, history=str(history)))
    assert not re.search(rb"(src|href)=\"(?!data:|#)", page), "the page refers to another file"
    shown = open_in_browser(page, folder=tmp_path)
    assert f"<b>{found.scores['f1']:.4f}</b>" in shown
    assert shown.count("<img") == 4
    assert shown.count("<svg") == 3
    outcomes = read_scores(uri, "outcomes")
    (row,) = re.findall(r"<td[^>]*>all images</td>(.*?)</tr>", shown)
    totals = [int(number) for number in re.findall(r"<td>(\d+)</td>", row)]
    assert totals[2:] == [outcomes[kind].sum() for kind in OUTCOMES]
    for kind in OUTCOMES:
        assert f"</span>{kind}</th>" in shown


def test_scores_do_not_depend_on_the_number_of_actors(
    scored: tuple[str, EvaluationResult], bundle_uri: str, dataset_uri: str, tmp_path: Path
) -> None:
    config = EvaluateConfig(bundle=bundle_uri, data=dataset_uri, output=str(tmp_path), actors=2)
    one, two = scored[1], evaluate(config)
    assert (two.scores, two.pooled, two.instance) == (one.scores, one.pooled, one.instance)


def test_the_protocol_baseline_scores_at_the_size_of_the_baseline(
    bundle_uri: str, dataset_uri: str, tmp_path: Path, cluster: str
) -> None:
    config = EvaluateConfig(
        bundle=bundle_uri, data=dataset_uri, output=str(tmp_path), protocol="baseline"
    )
    assert evaluate(config).instance is None
    rows = read_scores(config.output)
    assert (rows[["tp", "fp", "fn", "tn"]].sum(axis="columns") == 256 * 256).all()


def test_malicious_names_in_a_data_set_do_no_harm(
    bundle_uri: str, dataset_uri: str, tmp_path: Path, cluster: str
) -> None:
    shutil.copytree(dataset_uri, tmp_path / "data")
    (path,) = (tmp_path / "data").glob("test-*.parquet")
    table = pq.read_table(path)
    names = ["../../../escaped", "=HYPERLINK(1)", "x" * 300, "$\\foo$"]
    modalities = [r"$\foo$", "_b", "<i>c</i>", ""]
    for column, values in (("image_id", names), ("modality", modalities)):
        table = table.set_column(table.schema.get_field_index(column), column, [values])
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
def test_real_images_can_be_trained_on_and_scored_with_the_recipe_baseline(
    real_data: Path, tmp_path: Path, cluster: str
) -> None:
    """24 real images of every modality and size, for one epoch.

    Training gets a folder of pairs instead of a prepared data set.
    """
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
    splits = split_as_baseline([Path(name).stem for name in names])
    assert dict(zip(rows["image_id"], rows["split"], strict=True)) == splits
    scoring = ["--bundle", str(line["bundle"]), "--data", str(data)]
    scoring += ["--output", str(tmp_path / "scores")]
    code, line, errors = call_job("evaluate", *scoring)
    assert (code, line["images"]) == (0, 5), errors
