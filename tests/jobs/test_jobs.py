"""A job as its caller sees it: help, exit codes, one sentence per error, one JSON line."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from support import RAYS_OWN, ROOT, call_job, run_job

from resunet_ray import storage
from resunet_ray.command_line import read_config
from resunet_ray.config import (
    ModelConfig,
    PrepareConfig,
    SegmentConfig,
    TrainConfig,
    baseline_recipe,
)
from resunet_ray.config.flags import list_flags
from resunet_ray.data.images import decode_image


@pytest.mark.parametrize(
    "name",
    ["prepare", "train", "tune", "dashboard", "evaluate", "segment", "demo", "benchmark", "doctor"],
)
def test_help_says_what_the_job_does(name: str) -> None:
    code, _, shown = call_job(name, "--help")
    assert code == 0, shown
    assert ("--config FILE" in shown) == (
        name in ("prepare", "train", "tune", "evaluate", "segment")
    )
    assert ("--recipe {baseline,default,long}" in shown) == (name in ("train", "tune"))


def test_help_shows_everyday_flags_by_group_and_help_all_every_flag() -> None:
    _, _, shown = call_job("segment", "--help")
    assert "segment.py --input STR ... --output STR [flags]\n" in shown
    titles = re.findall(r"^(\S.*):$", shown, re.MULTILINE)
    assert (titles[0], titles[-1]) == ("Input and output", "General")
    assert "--flips" in shown
    assert "--lease" not in shown
    hidden = [flag.names[0] for flag in list_flags(SegmentConfig) if flag.tuning]
    assert shown.rstrip().endswith(f"--help-all shows {len(hidden)} more flags.")
    _, _, everything = call_job("segment", "--help-all")
    assert all(name in everything for name in [*hidden, "--flips"])
    arguments = ["--input", "a", "--output", "b", "--lease-seconds", "9"]
    config = read_config(SegmentConfig, description="", arguments=arguments)
    assert config.lease_seconds == 9


@pytest.mark.parametrize(
    ("name", "flags", "place"),
    [
        ("prepare", ["--input", "MISSING"], ""),
        ("train", ["--data", "MISSING"], "train"),
        ("tune", ["--data", "MISSING"], ""),
        ("evaluate", ["--data", "MISSING"], ""),
        ("segment", ["--input", "MISSING"], ""),
    ],
)
def test_a_second_job_over_the_same_output_names_the_first_and_writes_nothing(
    name: str, flags: list[str], place: str, tmp_path: Path
) -> None:
    held = str(tmp_path / place)
    flags += ["--output", str(tmp_path)]
    with storage.hold_lease(held, seconds=30) as lease:
        code, line, shown = call_job(name, *flags)
    assert (code, line["status"]) == (0, "leased"), shown
    assert lease.holder in line["message"]
    assert [file for file, _ in storage.list_files(held)] == ["leases/000001"]


def test_help_shows_the_defaults_of_the_recipe() -> None:
    assert "(default: 36)" in call_job("train", "--help")[2]
    _, _, shown = call_job("train", "--recipe", "baseline", "--help-all")
    assert re.search(r"--epochs INT +Passes over the training split. \(default: 10\)", shown)


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        (
            "train",
            ["--data", "a", "--output", "b", "--batch-size", "7", "--workers", "2"],
            "--batch-size 7 is per step over all workers",
        ),
        ("train", ["--data", "s3://me:secret@lab/a", "--output", "OUT"], "contains credentials"),
        (
            "train",
            ["--data", "MISSING", "--output", "OUT"],
            "holds no dataset.json: expected the output of a finished jobs/prepare.py",
        ),
        (
            "prepare",
            ["--input", "MISSING", "--output", "OUT"],
            "does not exist: expected a folder, a zip or a tar",
        ),
        (
            "evaluate",
            ["--bundle", "MISSING", "--data", "MISSING", "--output", "OUT"],
            "holds no dataset.json",
        ),
        ("train", ["--config", "MISSING"], "MISSING does not exist"),
        (
            "tune",
            ["--data", "MISSING", "--output", "OUT", "--space", "learning_rat=uniform:1,2"],
            "did you mean learning_rate?",
        ),
        (
            "tune",
            [
                "--data",
                "MISSING",
                "--output",
                "OUT",
                "--workers",
                "2",
                "--space",
                "batch_size=choice:4,5",
            ],
            "batch_size 5",
        ),
        (
            "tune",
            ["--data", "MISSING", "--output", "OUT", "--concurrent", "16"],
            "16 training workers of 1 CPUs (16 trials at once)",
        ),
    ],
)
def test_what_is_wrong_is_one_sentence_and_exit_code_2(
    name: str, flags: list[str], message: str, tmp_path: Path, cluster: str
) -> None:
    places = {"MISSING": str(tmp_path / "MISSING"), "OUT": str(tmp_path / "out")}
    code, line, errors = call_job(name, *[places.get(flag, flag) for flag in flags])
    assert (code, line["job"], line["status"]) == (2, name, "failed"), errors
    assert message in line["message"]
    assert "Traceback" not in errors
    assert "secret" not in errors + json.dumps(line)


def test_a_misspelt_flag_is_bad_usage() -> None:
    code, line, errors = run_job("train", "--data", "a", "--output", "b", "--learning-rat", "1")
    assert code == 2
    assert "--learning-rat" in errors
    assert (line["job"], line["status"], line["error"]) == ("train", "failed", "ConfigError")


def test_a_job_stopped_by_a_signal_does_not_blame_its_flags() -> None:
    code = "import sys; from resunet_ray.command_line import run_job;"
    code += "run_job('train', lambda: sys.exit(15))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    message = json.loads(done.stdout)["message"]
    assert message == "stopped by a signal (exit code 15): run the same command to resume"


def test_a_saved_configuration_is_where_the_next_run_starts(tmp_path: Path) -> None:
    """The file that a run saved, with one flag over it."""
    first = TrainConfig(data="a", output="b", epochs=3, model=ModelConfig(widths=(16, 32)))
    (tmp_path / "train.json").write_text(json.dumps({"config": asdict(first), "data_digest": "c"}))
    arguments = [
        "--config",
        str(tmp_path / "train.json"),
        "--output",
        "d",
        "--model.widths",
        "16",
        "48",
    ]
    found = read_config(TrainConfig, description="", saved="train.json", arguments=arguments)
    assert found == replace(first, output="d", model=ModelConfig(widths=(16, 48)))


def test_the_words_of_version_0_1_0_still_work(caplog: pytest.LogCaptureFixture) -> None:
    recipes: dict[str, Callable[..., TrainConfig]] = {
        "default": TrainConfig,
        "baseline": baseline_recipe,
    }
    arguments = ["--data", "a", "--output", "b"]
    for flags in (["--recipe", "report"], ["--recipe=report"]):
        found = read_config(
            TrainConfig,
            description="",
            recipes=recipes,
            required=("data", "output"),
            arguments=[*flags, *arguments],
        )
        assert found == baseline_recipe(data="a", output="b")
    arguments = ["--input", "report", "--output", "report", "--split", "report"]
    found_split = read_config(PrepareConfig, description="", arguments=arguments)
    assert found_split == PrepareConfig(input=("report",), output="report", split="baseline")
    assert "--split report is now called baseline" in caplog.text


@pytest.mark.ray
def test_the_demo_runs_to_its_report(tmp_path: Path) -> None:
    code, line, errors = run_job(
        "demo", "--output", str(tmp_path), "--images", "12", "--epochs", "1"
    )
    assert code == 0, errors
    assert Path(line["report"]).exists()
    assert f"Open {line['report']}" in errors
    assert re.search(
        rf"\d\d nuclei found by the bundle nuclei .*\nOpen {line['overlay']}\n", errors
    )
    overlay = decode_image(Path(line["overlay"]).read_bytes(), name="overlay")
    assert (overlay == (0, 255, 0)).all(axis=2).mean() > 0.02, "outlines"
    assert not RAYS_OWN.search(errors), errors
    for done in (
        "12 of 12 images checked",
        "images trained on",
        "3 of 3 images scored",
        "12 of 12 images segmented",
    ):
        assert re.search(rf"^.*{done} in (\d+ min )?\d+ s", errors, re.MULTILINE), errors
    assert 0 <= line["f1"] <= 1


@pytest.mark.ray
def test_a_benchmark_takes_no_earlier_run_for_its_own(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    code, line, errors = run_job("benchmark", "train", "--output", str(tmp_path))
    assert (code, line["error"]) == (2, "InputError"), errors
    assert "holds an earlier run, which would distort this one" in line["message"]


def test_peak_memory_counts_every_process_below_this_one() -> None:
    code = """
import subprocess, sys, time
from benchmarks.usage import PeakMemory
with PeakMemory() as before:
    time.sleep(1.2)
child = (
    "import time; held = bytearray(2**28); held[::4096] = bytes([1]) * len(held[::4096]);"
    "time.sleep(3)"
)
with PeakMemory() as peak:
    subprocess.run([sys.executable, "-c", child], check=True)
print(peak.gib - before.gib)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "jobs", capture_output=True, text=True, check=True
    )
    assert 0.2 < float(done.stdout) < 0.4


def test_core_seconds_count_every_process_below_this_one_even_ended() -> None:
    code = """
import subprocess, sys
from benchmarks.usage import core_seconds
busy = "import time; any(time.process_time() > 1.5 for _ in iter(int, 1))"
child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {busy!r}], check=True)"
before = core_seconds()
subprocess.run([sys.executable, "-c", child], check=True)
print(core_seconds() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "jobs", capture_output=True, text=True, check=True
    )
    assert 1.4 < float(done.stdout) < 3
