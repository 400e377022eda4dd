"""A run ends with a bundle whose scores are true; it can be resumed, and run with any workers."""

import logging
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import ray
from support import RAYS_OWN, ROOT, SMALL, run_job

from resunet_ray.bundle import load_bundle
from resunet_ray.config import ModelConfig, PreprocessConfig, TrainConfig
from resunet_ray.errors import ConfigError, InputError, ResourceError, RunError
from resunet_ray.storage.lease import LEASES, create_exclusively
from resunet_ray.train import trainer
from resunet_ray.train.relay import show_training
from resunet_ray.train.trainer import TrainingResult, train

HEADS = TrainConfig(data="a", output="b").model.heads
"""Those of the default recipe."""

EPOCHS = 8
"""Enough to kill a run in the middle: Ray Train looks for new checkpoints twice a second."""


def config(data: str, output: Path, **fields: Any) -> TrainConfig:
    small: dict[str, Any] = {
        "model": ModelConfig(widths=(16, 32), heads=HEADS),
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
    """A finished run of one worker, with MLflow."""
    output = tmp_path_factory.mktemp("run")
    chosen = config(dataset_uri, output, mlflow=f"sqlite:///{output}/mlflow.db")
    return chosen, train(chosen)


def history(output: str) -> pd.DataFrame:
    return pd.read_csv(Path(output) / "train" / "history.csv")


def test_the_bundle_records_its_provenance_and_its_scores(
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
    assert info.model.heads == HEADS
    assert info.provenance["epoch"] == best["epoch"]
    assert info.provenance["config"]["learning_rate"] == 1e-2
    assert 0 < info.scores["pq"] <= 1
    assert rows["train_loss"].iloc[-1] < rows["train_loss"].iloc[0]
    assert trained.images_per_second > 0


def test_tensorboard_and_mlflow_show_the_curves(run: tuple[TrainConfig, TrainingResult]) -> None:
    from mlflow import MlflowClient
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    chosen, _ = run
    events = EventAccumulator(str(Path(chosen.output) / "train" / "tensorboard"))
    events.Reload()
    validated = list(range(2, EPOCHS + 1, 2))
    assert [event.step for event in events.Scalars("train_loss")] == list(range(1, EPOCHS + 1))
    assert [event.step for event in events.Scalars("validation/f1")] == validated
    client = MlflowClient(tracking_uri=chosen.mlflow)
    experiment = client.get_experiment_by_name("resunet_ray")
    assert experiment is not None
    (record,) = client.search_runs([experiment.experiment_id])
    assert record.data.params["learning_rate"] == "0.01"
    curve = client.get_metric_history(record.info.run_id, "val_f1")
    assert [metric.step for metric in curve] == validated
    assert record.info.status == "FINISHED"


def test_a_repeated_command_does_nothing_and_other_settings_are_refused(
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
    """Scores agree to the sixth digit.

    The two workers start from the bundle of one worker and learn almost nothing.
    """
    _, trained = run
    still: dict[str, Any] = {
        "init": trained.bundle,
        "learning_rate": 1e-12,
        "epochs": 1,
        "weight_decay": 0.0,
        "ema_decay": None,
    }
    still["model"] = ModelConfig(widths=(16, 32), heads=HEADS, norm_momentum=1e-9)
    done = train(config(dataset_uri, tmp_path, workers=2, **still))
    names = ("loss", "accuracy", "f1", "jaccard", "recall", "precision", "pq")
    assert [done.best[name] for name in names] == pytest.approx(
        [trained.best[name] for name in names], abs=1e-6
    )


@dataclass
class Resumed:
    """A run whose driver was killed, finished by the same command in a new Ray.

    `errors` is the second command's standard error, which was no terminal.
    """

    output: Path
    line: dict[str, Any]
    errors: str


@pytest.fixture(scope="module")
def resumed(dataset_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Resumed:
    """Kill the driver (SIGKILL) once Ray Train has registered a checkpoint, then run it again."""
    output = tmp_path_factory.mktemp("resumed")
    flags = [*SMALL, "--epochs", str(EPOCHS), "--validation-interval", "2", "--warmup-epochs", "0"]
    flags += ["--learning-rate", "1e-2", "--ema-decay", "0.9"]
    flags += ["--data", dataset_uri, "--output", str(output)]
    snapshot = output / "train" / "checkpoint_manager_snapshot.json"

    def has_checkpoint() -> bool:
        return snapshot.exists() and "checkpoint_" in snapshot.read_text()

    command = [sys.executable, str(ROOT / "jobs" / "train.py"), *flags]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as driver:
        while driver.poll() is None and not has_checkpoint():
            time.sleep(0.05)
        assert driver.poll() is None, "training ended before it could be killed"
        driver.kill()
    assert not (output / "train" / "bundle").exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FORCE_COLOR", "1")
        code, line, errors = run_job("train", *flags)
    assert code == 0, errors
    return Resumed(output, line, errors)


@pytest.mark.campaign
def test_a_killed_and_resumed_run_ends_like_an_uninterrupted_one(
    run: tuple[TrainConfig, TrainingResult], resumed: Resumed
) -> None:
    assert re.search(r"resumed after epoch \d+", resumed.errors), resumed.errors
    chosen, trained = run
    columns = ["epoch", "train_loss", "val_loss", "val_f1"]
    pd.testing.assert_frame_equal(
        history(chosen.output)[columns], history(str(resumed.output))[columns], atol=1e-6
    )
    assert resumed.line["best"]["f1"] == pytest.approx(trained.best["f1"], abs=1e-6)


@pytest.mark.campaign
def test_the_log_has_a_line_for_each_epoch_and_none_of_rays(resumed: Resumed) -> None:
    assert not RAYS_OWN.search(resumed.errors), resumed.errors
    assert "\x1b" not in resumed.errors
    (first,) = {int(epoch) for epoch in re.findall(r"resumed after epoch (\d+)", resumed.errors)}
    rows = history(str(resumed.output)).iloc[first:]
    expected = [
        rf"epoch {epoch} of 8: loss {loss:.4f}, \d+\.\d images/s"
        for epoch, loss in zip(rows["epoch"], rows["train_loss"], strict=True)
    ]
    expected += [
        r"epoch 8 of 8: validation loss \d\.\d+, .* f1 \d\.\d+, .*",
        r"96 of 96 images trained on in \d+ s, epoch 8 of 8, loss \d\.\d+, f1 \d\.\d+",
        r"4 of 4 validation images matched in \d+ s",
    ]
    for line in expected:
        assert re.search(f"^{line}$", resumed.errors, re.MULTILINE), resumed.errors


@pytest.mark.campaign
def test_training_ends_the_same_when_its_log_is_lost(
    run: tuple[TrainConfig, TrainingResult],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The actor that carries the log is killed before anything is sent to it."""

    @contextmanager
    def lose_board(*arguments: Any, **named: Any) -> Iterator[Any]:
        with show_training(*arguments, **named) as board:
            ray.kill(board)
            yield board

    monkeypatch.setattr(trainer, "show_training", lose_board)
    chosen, trained = run
    with caplog.at_level(logging.INFO):
        done = train(replace(chosen, output=str(tmp_path), mlflow=None))
    assert "its progress is no longer shown" in caplog.text
    assert "epoch 1 of 8" not in caplog.text
    assert done.best == trained.best
    columns = ["epoch", "learning_rate", "train_loss", "val_loss", "val_f1"]
    pd.testing.assert_frame_equal(history(str(tmp_path))[columns], history(chosen.output)[columns])


@pytest.mark.campaign
def test_workers_whose_lease_was_taken_over_stop_writing(dataset_uri: str, tmp_path: Path) -> None:
    """It is taken over after the first validation, when a second attempt is still allowed."""
    chosen = config(dataset_uri, tmp_path, max_failures=1)
    folder = tmp_path / "train"

    def take_over() -> None:
        while not (folder / "history.csv").exists():
            time.sleep(0.05)
        content = b'{"holder": "thief", "released": false, "seconds": 60}'
        assert create_exclusively(str(folder / LEASES / "000002"), content)

    with ThreadPoolExecutor() as pool:
        taken = pool.submit(take_over)
        with pytest.raises(RunError, match="was taken over by thief"):
            train(chosen)
    taken.result()
    assert history(chosen.output)["epoch"].max() < EPOCHS
    assert not (folder / "bundle").exists()


@pytest.mark.campaign
def test_of_two_trainings_started_together_one_trains_as_if_alone(
    run: tuple[TrainConfig, TrainingResult], s3: str
) -> None:
    chosen, trained = run
    flags = ["--config", f"{chosen.output}/train/train.json", "--mlflow", "None"]
    flags += ["--output", f"{s3}/together"]
    with ThreadPoolExecutor() as pool:
        ends = [pool.submit(run_job, "train", *flags) for _ in range(2)]
        (code, line, shown), (other_code, other, other_shown) = sorted(
            (end.result() for end in ends), key=lambda end: str(end[1]["status"])
        )
    assert (code, line["status"]) == (0, "done"), shown
    assert (other_code, other["status"]) == (0, "leased"), other_shown
    assert "is writing to" in other["message"] or "at the same moment" in other["message"]
    assert line["epochs"] == EPOCHS
    bundles = [load_bundle(uri).info for uri in (trained.bundle, line["bundle"])]
    assert bundles[0].sha256 == bundles[1].sha256
    assert bundles[0].scores == bundles[1].scores


def test_a_damaged_list_of_checkpoints_is_reported(
    dataset_uri: str, tmp_path: Path, cluster: str
) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "checkpoint_manager_snapshot.json").write_text('{"checkpoint_resul')
    with pytest.raises(
        InputError,
        match=r"checkpoint_manager_snapshot.json, .* is damaged .*: delete it to start this run",
    ):
        train(config(dataset_uri, tmp_path))


def test_impossible_settings_are_refused_before_training_starts(
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
    other = {"model": ModelConfig(), "preprocess": PreprocessConfig(intensity="stored")}
    with pytest.raises(
        ConfigError,
        match=r"at the intensity scale 'percentiles', .*: give --preprocess.intensity percentiles",
    ):
        train(config(dataset_uri, tmp_path / "e", init="nuclei", **other))
