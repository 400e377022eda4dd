"""A run ends with a bundle that does what it says; killed, it goes on; its scores do not depend on the number of workers."""

import logging
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import ray
from support import RAYS_OWN, ROOT, SMALL, run_job

from resunet_ray.bundle import load_bundle
from resunet_ray.config import ModelConfig, TrainConfig
from resunet_ray.errors import ConfigError, InputError, ResourceError
from resunet_ray.train import trainer
from resunet_ray.train.relay import show_training
from resunet_ray.train.trainer import TrainingResult, train

EPOCHS = 8
"""Long enough to be killed in the middle: Ray Train looks for new checkpoints twice a second."""


def config(data: str, output: Path, **fields: Any) -> TrainConfig:
    small: dict[str, Any] = {
        "model": ModelConfig(widths=(16, 32)),
        "crop": 64,
        "batch_size": 4,
        "precision": "fp32",
        "epochs": EPOCHS,
        "validation_interval": 2,
        "warmup_epochs": 0.0,
        "learning_rate": 1e-2,
        "ema_decay": 0.9,
    }
    return TrainConfig(data=data, output=str(output), **{**small, **fields})


@pytest.fixture(scope="module")
def run(
    dataset_uri: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TrainConfig, TrainingResult]:
    """One finished run of one worker, with MLflow."""
    output = tmp_path_factory.mktemp("run")
    chosen = config(dataset_uri, output, mlflow=f"sqlite:///{output}/mlflow.db")
    return chosen, train(chosen)


def history(output: str) -> pd.DataFrame:
    return pd.read_csv(Path(output) / "train" / "history.csv")


def test_the_bundle_says_where_it_comes_from_and_how_good_it_is(
    run: tuple[TrainConfig, TrainingResult],
) -> None:
    chosen, trained = run
    info = load_bundle(trained.bundle).info
    rows = history(chosen.output)
    assert rows["epoch"].tolist() == list(range(1, EPOCHS + 1))
    assert rows["val_f1"].notna().tolist() == [False, True] * (EPOCHS // 2)
    assert info.scores["f1"] == pytest.approx(rows["val_f1"].max())
    best = rows.dropna().sort_values("val_f1").iloc[-1]
    assert info.instances.threshold == best["val_threshold"]
    assert info.mpp == 0.5
    assert info.provenance["epoch"] == best["epoch"]
    assert info.provenance["config"]["learning_rate"] == 1e-2
    assert 0 < info.scores["pq"] <= 1
    assert rows["train_loss"].iloc[-1] < rows["train_loss"].iloc[0]
    assert trained.images_per_second > 0


def test_tensorboard_and_mlflow_hold_the_curves(run: tuple[TrainConfig, TrainingResult]) -> None:
    from mlflow import MlflowClient
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    chosen, _ = run
    events = EventAccumulator(str(Path(chosen.output) / "train" / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train_loss")] == list(range(1, EPOCHS + 1))
    assert [event.step for event in events.Scalars("validation/f1")] == list(
        range(2, EPOCHS + 1, 2)
    )
    client = MlflowClient(tracking_uri=chosen.mlflow)
    (record,) = client.search_runs(
        [
            experiment.experiment_id
            for experiment in client.search_experiments()
            if experiment.name == "resunet_ray"
        ]
    )
    assert record.data.params["learning_rate"] == "0.01"
    assert [
        metric.step for metric in client.get_metric_history(record.info.run_id, "val_f1")
    ] == list(range(2, EPOCHS + 1, 2))
    assert record.info.status == "FINISHED"


def test_the_same_command_again_does_nothing_and_other_settings_are_refused(
    run: tuple[TrainConfig, TrainingResult],
) -> None:
    chosen, trained = run
    begun = time.perf_counter()
    assert train(chosen) == trained
    assert time.perf_counter() - begun < 5
    with pytest.raises(
        ConfigError,
        match=r"holds a run with other settings \(learning_rate was 0.01 and is now 0.02\)",
    ):
        train(replace(chosen, learning_rate=0.02))


def test_two_workers_score_as_one_does(
    run: tuple[TrainConfig, TrainingResult], dataset_uri: str, tmp_path: Path
) -> None:
    """Two workers that start from one worker's bundle and learn next to nothing give its validation scores to the sixth digit."""
    _, trained = run
    still: dict[str, Any] = {
        "init": trained.bundle,
        "learning_rate": 1e-12,
        "epochs": 1,
        "weight_decay": 0.0,
        "ema_decay": None,
    }
    still["model"] = ModelConfig(widths=(16, 32), norm_momentum=1e-9)
    done = train(config(dataset_uri, tmp_path, workers=2, **still))
    names = ("loss", "accuracy", "f1", "jaccard", "recall", "precision", "pq")
    assert [done.best[name] for name in names] == pytest.approx(
        [trained.best[name] for name in names], abs=1e-6
    )


@dataclass
class Resumed:
    """A training whose driver was killed, and that the same command finished in a new Ray, standard error in a file."""

    output: Path
    line: dict[str, Any]
    errors: str


@pytest.fixture(scope="module")
def resumed(dataset_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Resumed:
    """SIGKILL after the first checkpoint that Ray Train knows of."""
    output = tmp_path_factory.mktemp("resumed")
    flags = [
        *SMALL,
        "--epochs",
        str(EPOCHS),
        "--validation-interval",
        "2",
        "--warmup-epochs",
        "0",
        "--learning-rate",
        "1e-2",
    ]
    flags += ["--ema-decay", "0.9", "--data", dataset_uri, "--output", str(output)]
    snapshot = output / "train" / "checkpoint_manager_snapshot.json"
    with subprocess.Popen(
        [sys.executable, str(ROOT / "jobs" / "train.py"), *flags], stdout=subprocess.DEVNULL
    ) as driver:
        while driver.poll() is None and not (
            snapshot.exists() and "checkpoint_" in snapshot.read_text()
        ):
            time.sleep(0.05)
        assert driver.poll() is None, "it ended before it could be killed"
        driver.kill()
    assert not (output / "train" / "bundle").exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FORCE_COLOR", "1")
        code, line, errors = run_job("train", *flags)
    assert code == 0, errors
    return Resumed(output, line, errors)


def test_killed_and_started_again_it_ends_where_the_uninterrupted_run_ends(
    run: tuple[TrainConfig, TrainingResult], resumed: Resumed
) -> None:
    assert re.search(r"resumed after epoch \d+", resumed.errors), resumed.errors
    chosen, trained = run
    columns = ["epoch", "train_loss", "val_loss", "val_f1"]
    pd.testing.assert_frame_equal(
        history(chosen.output)[columns], history(str(resumed.output))[columns], atol=1e-6
    )
    assert resumed.line["best"]["f1"] == pytest.approx(trained.best["f1"], abs=1e-6)


def test_its_log_says_what_each_epoch_came_to_and_nothing_of_rays(resumed: Resumed) -> None:
    assert not RAYS_OWN.search(resumed.errors), resumed.errors
    assert "\x1b" not in resumed.errors
    (first,) = {int(epoch) for epoch in re.findall(r"resumed after epoch (\d+)", resumed.errors)}
    said = [
        rf"epoch {epoch} of 8: loss {loss:.4f}, \d+\.\d images/s"
        for epoch, loss in history(str(resumed.output))[["epoch", "train_loss"]]
        .iloc[first:]
        .itertuples(index=False)
    ]
    said += [
        r"epoch 8 of 8: validation loss \d\.\d+, .* f1 \d\.\d+, .*",
        r"96 of 96 images trained on in \d+ s, epoch 8 of 8, loss \d\.\d+, f1 \d\.\d+",
        r"4 of 4 validation images matched in \d+ s",
    ]
    for line in said:
        assert re.search(f"^{line}$", resumed.errors, re.MULTILINE), resumed.errors


@pytest.mark.campaign
def test_a_training_whose_log_is_lost_goes_on_to_the_same_end(
    run: tuple[TrainConfig, TrainingResult],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The actor that carries it dies before anybody has told it anything."""

    @contextmanager
    def lose_it(*arguments: Any, **named: Any) -> Iterator[Any]:
        with show_training(*arguments, **named) as board:
            ray.kill(board)
            yield board

    monkeypatch.setattr(trainer, "show_training", lose_it)
    chosen, trained = run
    with caplog.at_level(logging.INFO):
        done = train(replace(chosen, output=str(tmp_path), mlflow=None))
    assert "how far it is cannot be shown any more" in caplog.text
    assert "epoch 1 of 8" not in caplog.text
    assert done.best == trained.best
    columns = ["epoch", "learning_rate", "train_loss", "val_loss", "val_f1"]
    pd.testing.assert_frame_equal(history(str(tmp_path))[columns], history(chosen.output)[columns])


def test_a_damaged_list_of_checkpoints_is_named(
    dataset_uri: str, tmp_path: Path, cluster: str
) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "checkpoint_manager_snapshot.json").write_text('{"checkpoint_resul')
    with pytest.raises(
        InputError,
        match=r"checkpoint_manager_snapshot.json, .* is damaged .*: delete it to begin this run anew",
    ):
        train(config(dataset_uri, tmp_path))


def test_what_cannot_work_is_refused_before_it_starts(
    dataset_uri: str, tmp_path: Path, cluster: str
) -> None:
    with pytest.raises(
        ResourceError,
        match=r"too small for 500 training workers .* 501 CPUs needed, [0-9.]+ available",
    ):
        train(config(dataset_uri, tmp_path / "a", workers=500, batch_size=1000))
    with pytest.raises(ResourceError, match=r"GPUs needed, 0 available"):
        train(config(dataset_uri, tmp_path / "b", gpu="on"))
    with pytest.raises(InputError, match="holds no dataset.json"):
        train(config(str(tmp_path), tmp_path / "c"))
    with pytest.raises(InputError, match="holds no bundle.json"):
        train(config(dataset_uri, tmp_path / "d", init=str(tmp_path)))
    with pytest.raises(
        ConfigError,
        match=r"at the intensity scale 'percentiles', .*: give --preprocess.intensity percentiles",
    ):
        train(config(dataset_uri, tmp_path / "e", init="nuclei", model=ModelConfig()))
