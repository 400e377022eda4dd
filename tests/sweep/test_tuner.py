"""A sweep whose driver was killed resumes and ends as if nothing had happened."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from support import RAYS_OWN, ROOT, SMALL, free_port, open_in_browser, run_job

from resunet_ray import storage
from resunet_ray.bundle import load_bundle
from resunet_ray.sweep.trials import list_trials

EPOCHS = 8

pytestmark = pytest.mark.campaign


@dataclass
class KilledSweep:
    """A sweep in object storage whose driver was killed once and started again."""

    output: str
    flags: list[str]
    line: dict[str, Any]
    before: dict[str, pd.DataFrame]
    """The history of each trial up to its last checkpoint, when the driver was killed."""
    verbose: str
    """Standard error of the killed driver, which ran with `--verbose`."""
    errors: str
    """Standard error of the second driver."""


def read_history(output: str, name: str) -> pd.DataFrame:
    return pd.read_csv(io.BytesIO(storage.read_bytes(f"{output}/trials/{name}/history.csv")))


def saved_epochs(output: str) -> dict[str, pd.DataFrame]:
    """Return the history of each trial up to the last checkpoint that Ray Train can resume from."""
    known = {}
    for trial in list_trials(output):
        uri = f"{output}/trials/{trial.name}/checkpoint_manager_snapshot.json"
        if storage.exists(uri) and "checkpoint_" in (text := storage.read_bytes(uri).decode()):
            epochs = max(
                result["metrics"]["epoch"] for result in json.loads(text)["checkpoint_results"]
            )
            history = read_history(output, trial.name)
            known[trial.name] = history[history["epoch"] <= epochs]
    return known


@pytest.fixture(scope="module")
def swept(dataset_uri: str, s3: str, tmp_path_factory: pytest.TempPathFactory) -> KilledSweep:
    output = f"{s3}/sweep"
    chosen = f"""
        --data {dataset_uri} --output {output} --precision auto --epochs {EPOCHS}
        --warmup-epochs 0 --ema-decay 0.9 --validation-interval 2 --grace-epochs 2
        --search grid --space learning_rate=choice:1e-2,1e-3,1e30 --trials 3 --concurrent 2
    """
    flags = [*SMALL, *chosen.split()]
    environment = {**os.environ, "RAY_ADDRESS": "local"}
    log = tmp_path_factory.mktemp("swept") / "log"
    command = [sys.executable, str(ROOT / "jobs" / "tune.py"), "--verbose", *flags]
    with (
        log.open("wb") as file,
        subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=file, env=environment
        ) as driver,
    ):
        deadline = time.monotonic() + 3000
        while driver.poll() is None and not saved_epochs(output) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert driver.poll() is None, f"it ended before it could be killed: {log.read_text()}"
        driver.send_signal(signal.SIGKILL)
    time.sleep(3)  # until its Ray has ended too
    before = saved_epochs(output)
    code, line, error = run_job("tune", *flags)
    assert code == 0, error
    return KilledSweep(output, flags, line, before, log.read_text(), error)


def test_every_trial_ends_once_and_a_failure_does_not_stop_the_others(swept: KilledSweep) -> None:
    trials = list_trials(swept.output)
    assert [trial.number for trial in trials] == [0, 1, 2]
    assert sorted(trial.parameters["learning_rate"] for trial in trials) == [1e-3, 1e-2, 1e30]
    (failed,) = [trial for trial in trials if trial.status == "failed"]
    assert failed.parameters["learning_rate"] == 1e30
    assert re.search(
        r"the training loss of epoch \d is (nan|inf): lower --learning-rate", str(failed.reason)
    ), failed.reason
    assert {trial.status for trial in trials} <= {"completed", "stopped", "failed"}
    assert sum(swept.line["trials"].values()) == 3


def test_only_verbose_shows_rays_own_output_and_it_is_not_a_setting_of_the_sweep(
    swept: KilledSweep,
) -> None:
    assert not RAYS_OWN.search(swept.errors), swept.errors
    assert re.search(
        r"^\(RayTrainWorker pid=\d+.*\) Reporting training result 1", swept.verbose, re.MULTILINE
    ), swept.verbose
    assert "\x1b" not in swept.errors


def test_a_trial_resumes_from_its_checkpoint(swept: KilledSweep) -> None:
    assert swept.before
    for name, earlier in swept.before.items():
        history = read_history(swept.output, name)
        assert history["epoch"].tolist() == list(range(1, len(history) + 1))
        assert len(history) > len(earlier)
        columns = ["epoch", "train_loss", "seconds"]
        pd.testing.assert_frame_equal(history[columns].head(len(earlier)), earlier[columns])


def test_the_table_matches_the_histories(swept: KilledSweep) -> None:
    table = storage.read_table(f"{swept.output}/trials.parquet").to_pandas()
    text = pd.read_csv(io.BytesIO(storage.read_bytes(f"{swept.output}/trials.csv")))
    np.testing.assert_allclose(text["score"], table["score"])
    for row in table[table["status"] != "failed"].itertuples():
        history = read_history(swept.output, row.name)
        assert row.score == history["val_f1"].max()
        assert row.epochs == history["epoch"].max()
    completed = table[table["status"] == "completed"]
    assert swept.line["best"]["score"] == completed["score"].max()


def test_tensorboard_has_every_validation_and_the_hyperparameters_of_each_trial(
    swept: KilledSweep, tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for trial in list_trials(swept.output):
        folder = tmp_path / trial.name
        folder.mkdir()
        for name, _ in storage.list_files(f"{swept.output}/trials/{trial.name}/tensorboard"):
            (folder / name).write_bytes(
                storage.read_bytes(f"{swept.output}/trials/{trial.name}/tensorboard/{name}")
            )
        events = EventAccumulator(str(folder))
        events.Reload()
        assert "_hparams_/session_start_info" in events.summary_metadata
        if trial.status != "failed":
            history = read_history(swept.output, trial.name).dropna()
            assert [event.step for event in events.Scalars("validation/f1")] == history[
                "epoch"
            ].tolist()
            assert events.Scalars("validation/f1")[-1].value == pytest.approx(
                history["val_f1"].iloc[-1]
            )


def test_the_bundle_scores_as_in_the_table_and_names_the_sweep(
    swept: KilledSweep, dataset_uri: str, tmp_path: Path, cluster: str
) -> None:
    info = load_bundle(swept.line["bundle"]).info
    assert info.provenance["sweep"]["output"] == swept.output
    assert info.provenance["sweep"]["trial"] == swept.line["best"]["trial"]
    assert (
        info.provenance["config"]["learning_rate"]
        == swept.line["best"]["parameters"]["learning_rate"]
    )
    arguments = [
        "--bundle",
        swept.line["bundle"],
        "--data",
        dataset_uri,
        "--split",
        "val",
        "--output",
        str(tmp_path),
    ]
    code, line, error = run_job("evaluate", *arguments, address=cluster)
    assert code == 0, error
    assert line["f1"] == pytest.approx(swept.line["best"]["score"], abs=1e-6)


def test_the_same_command_has_nothing_left_to_do_and_another_space_is_refused(
    swept: KilledSweep,
) -> None:
    begun = time.perf_counter()
    code, line, error = run_job("tune", *swept.flags)
    assert (code, line) == (0, swept.line), error
    assert time.perf_counter() - begun < 30  # less than one trial takes
    code, line, _ = run_job("tune", *[flag.replace("1e-3", "2e-3") for flag in swept.flags])
    assert code == 2
    assert "space was" in line["message"]


def test_the_report_opens_in_a_browser_and_shows_the_sweep(
    swept: KilledSweep, tmp_path: Path
) -> None:
    page = open_in_browser(storage.read_bytes(swept.line["report"]), folder=tmp_path)
    for heading in (
        "Best so far",
        "Validations of every trial",
        "Score against each parameter",
        "Trials",
    ):
        assert f"<h2>{heading}</h2>" in page
    assert page.count("<svg") >= 3
    assert "lower --learning-rate" in page
    assert not re.search(r"""(src|href)=["']http""", page), "the page would fetch something"


def fetch(url: str) -> Any:
    return json.loads(urllib.request.urlopen(url, timeout=5).read())


def test_the_dashboards_are_served_from_object_storage(swept: KilledSweep) -> None:
    ports = (free_port(), free_port())
    command = [sys.executable, str(ROOT / "jobs" / "dashboard.py"), "--output", swept.output]
    command += ["--tensorboard-port", str(ports[0]), "--optuna-port", str(ports[1])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        try:
            runs: list[str] = []
            studies: dict[str, Any] = {}
            deadline = time.monotonic() + 300
            while (len(runs) < 3 or not studies) and time.monotonic() < deadline:
                try:
                    runs = fetch(f"http://127.0.0.1:{ports[0]}/data/runs")
                    studies = fetch(f"http://127.0.0.1:{ports[1]}/api/studies")
                except OSError:
                    time.sleep(0.5)
        finally:
            server.terminate()
        assert server.stdout is not None
        line = json.loads(server.stdout.read().decode().splitlines()[-1])
    assert sorted(runs) == ["trial-0000", "trial-0001", "trial-0002"]
    assert [study["study_name"] for study in studies["study_summaries"]] == ["sweep: f1"]
    assert (server.returncode, line["status"]) == (0, "done")


def test_a_dashboard_without_a_sweep_is_refused(tmp_path: Path) -> None:
    code, line, _ = run_job("dashboard", "--output", str(tmp_path))
    assert code == 2
    assert "holds neither study.db nor tensorboard/" in line["message"]
