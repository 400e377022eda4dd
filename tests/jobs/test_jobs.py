"""A job's outside: help, exit codes, one sentence for what is wrong, one JSON line last."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT, SMALL, run_job


@pytest.mark.parametrize("name", ["prepare", "train", "evaluate", "demo", "benchmark"])
def test_help_says_what_the_job_does(name: str) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / f"{name}.py"), "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--config FILE" in done.stdout
    assert ("--recipe default|report" in done.stdout) == (name == "train")


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        (
            "train",
            ["--data", "a", "--output", "b", "--batch-size", "7", "--workers", "2"],
            "--batch-size 7 is per step over all workers",
        ),
        ("train", ["--data", "s3://me:secret@lab/a", "--output", "OUT"], "carries credentials"),
        (
            "train",
            ["--data", "MISSING", "--output", "OUT"],
            "holds no dataset.json: expected the output of a finished jobs/prepare.py",
        ),
        ("prepare", ["--input", "MISSING", "--output", "OUT"], "is not there: expected a folder, a zip or a tar"),
        ("evaluate", ["--bundle", "MISSING", "--data", "MISSING", "--output", "OUT"], "holds no dataset.json"),
        ("train", ["--config", "MISSING"], "MISSING is not there"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_exit_code_2(name: str, flags: list[str], message: str, tmp_path: Path) -> None:
    places = {"MISSING": str(tmp_path / "MISSING"), "OUT": str(tmp_path / "out")}
    code, line, errors = run_job(name, *[places.get(flag, flag) for flag in flags])
    assert (code, line["job"], line["status"]) == (2, name, "failed"), errors
    assert message in line["message"]
    assert "Traceback" not in errors
    assert "secret" not in errors + json.dumps(line)


def test_a_misspelt_flag_is_bad_usage() -> None:
    code, line, errors = run_job("train", "--data", "a", "--output", "b", "--learning-rat", "1")
    assert code == 2
    assert "--learning-rat" in errors
    assert line == {}


def test_a_saved_configuration_is_where_the_next_run_starts(dataset_uri: str, tmp_path: Path) -> None:
    """The file that a run saved, with one flag over it."""
    first = ["--data", dataset_uri, "--output", str(tmp_path / "a"), *SMALL, "--epochs", "1", "--seed", "5"]
    code, _, errors = run_job("train", *first)
    assert code == 0, errors
    code, line, errors = run_job("train", "--config", str(tmp_path / "a/train/train.json"), "--output", str(tmp_path / "b"))
    assert code == 0, errors
    one, other = (json.loads((tmp_path / name / "train" / "train.json").read_text())["config"] for name in "ab")
    assert {name for name in one if one[name] != other[name]} == {"output"}
    assert line["epochs"] == 1
