"""The report of a sweep can be read, however many trials there are and whatever was searched."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from resunet_ray import storage
from resunet_ray.config import SweepConfig, TrainConfig
from resunet_ray.model.metrics import SCORE_NAMES
from resunet_ray.report.sweep import write_sweep_report
from resunet_ray.sweep.trials import end_trial, start_trial, tabulate, trial_folder
from resunet_ray.sweep.winner import SUMMARY_FILE, TABLE_FILE


def write_sweep(output: str, points: list[dict[str, Any]]) -> None:
    """Write the tables of a sweep; all trials but the first are completed."""
    training = TrainConfig(data="data", output=output, epochs=5)
    trials = []
    for number, point in enumerate(points):
        trial = start_trial(output, number=number, parameters=point)
        scores = dict.fromkeys((f"val_{name}" for name in SCORE_NAMES), 0.7 + 0.05 * number)
        row = {"epoch": 5, "val_loss": 0.1, "seconds": 2.0, "images_per_second": 8.0, **scores}
        content = pd.DataFrame([row]).to_csv(index=False).encode()
        storage.write_bytes(f"{trial_folder(output, number)}/history.csv", content)
        trials.append(end_trial(output, trial, status="completed") if number else trial)
    storage.write_table(f"{output}/{TABLE_FILE}", tabulate(output, trials, training=training))
    summary: dict[str, Any] = {
        "trials": {},
        "monitor": "f1",
        "importance": {},
        "best": None,
        "bundle": None,
        "config": asdict(SweepConfig(training=training)),
    }
    storage.write_bytes(f"{output}/{SUMMARY_FILE}", json.dumps(summary).encode())


def test_the_labels_of_a_logarithmic_axis_are_numbers(tmp_path: Path) -> None:
    """Matplotlib's own are formulas, of which the page would show the source."""
    write_sweep(str(tmp_path), [{"learning_rate": 10.0**-power} for power in (2, 3, 4)])
    page = storage.read_bytes(write_sweep_report(str(tmp_path))).decode()
    assert ">0.0001<" in page
    assert "mathdefault" not in page


@pytest.mark.parametrize("count", [1, 2])
def test_a_sweep_of_few_trials_or_none_ended_has_a_report(count: int, tmp_path: Path) -> None:
    points: list[dict[str, Any]] = [
        {"clip_norm": None, "loss": "a $b$ c"},
        {"clip_norm": 1.0, "loss": "bce"},
    ]
    write_sweep(str(tmp_path), points[:count])
    page = storage.read_bytes(write_sweep_report(str(tmp_path))).decode()
    assert "a $b$ c" in page
    assert ("<h2>Best so far</h2>" in page) == (count > 1)
