"""A tracker that is away stops no training: what it lacks is sent later, or named."""

import logging
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from resunet_ray.config import TrainConfig
from resunet_ray.train.tracking import Tracker, read_history

ROWS = [
    {"epoch": epoch, "train_loss": 1 / epoch, "images_per_second": 9.0, "val_f1": 0.5}
    for epoch in (1, 2)
]


def test_mlflow_gets_later_what_it_could_not_take(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its database lies in a folder in whose place there is a file at first."""
    monkeypatch.setattr("mlflow.store.db.utils.MAX_RETRY_COUNT", 0)
    monkeypatch.chdir(tmp_path)  # where MLflow makes a folder
    (tmp_path / "away").write_text("no folder")
    server = f"sqlite:///{tmp_path}/away/mlflow.db"
    config = TrainConfig(data="d", output=str(tmp_path / "out"), mlflow=server)
    with Tracker(config, epoch=0) as tracker:
        tracker.write(ROWS[:1], new=1)
        wait_for("MLflow takes no metrics now, so that 1 epochs wait", caplog)
        (tmp_path / "away").unlink()
        (tmp_path / "away").mkdir()
        tracker.write(ROWS, new=1)
    client = MlflowClient(tracking_uri=server)
    experiment = client.get_experiment_by_name("resunet_ray")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(found.info.run_id, "train_loss")
    assert {(entry.step, entry.value) for entry in history} == {(1, 1.0), (2, 0.5)}
    assert found.info.status == "FINISHED"
    assert read_history(f"{tmp_path}/out/train/history.csv")["epoch"].tolist() == [1, 2]


def wait_for(text: str, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(600):
        if text in caplog.text:
            return
        time.sleep(0.1)
    pytest.fail(f"not logged within a minute: {text}")


def test_what_a_tracker_never_took_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing listens at the address of MLflow, and TensorBoard's folder is a file."""
    config = TrainConfig(data="d", output=str(tmp_path / "out"), mlflow="http://127.0.0.1:1")
    (tmp_path / "out" / "train").mkdir(parents=True)
    (tmp_path / "out" / "train" / "tensorboard").write_text("no folder")
    with caplog.at_level(logging.WARNING), Tracker(config, epoch=0) as tracker:
        tracker.write(ROWS, new=2)
    assert "MLflow lacks the epochs 1, 2, which history.csv has" in caplog.text
    assert "TensorBoard lacks epochs 1 to 2, which history.csv has" in caplog.text
    assert read_history(f"{tmp_path}/out/train/history.csv")["epoch"].tolist() == [1, 2]
