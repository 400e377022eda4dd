"""What a job says on standard error: its own lines and how far it is; of Ray only with --verbose."""

import json
import logging
import os
import pty
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
from _job import read_config
from support import RAYS_OWN, ROOT, SMALL, read_screen

from resunet_ray.config import TrainConfig, load_config
from resunet_ray.train import trainer
from resunet_ray.train.relay import Reporter, show_training

FLAGS = [*SMALL, "--epochs", "3", "--validation-interval", "2", "--warmup-epochs", "0"]


@dataclass
class Logged:
    """A training whose standard error was a file, with a Ray of its own."""

    output: Path
    stdout: str
    stderr: str

    @property
    def history(self) -> pd.DataFrame:
        return read_history(self.output)


def read_history(output: Path) -> pd.DataFrame:
    return pd.read_csv(output / "train" / "history.csv")[["epoch", "learning_rate", "train_loss", "val_loss", "val_f1"]]


@pytest.fixture(scope="module")
def logged(dataset_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Logged:
    output = tmp_path_factory.mktemp("logged")
    command = [sys.executable, str(ROOT / "jobs" / "train.py"), *FLAGS, "--data", dataset_uri, "--output", str(output)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {"FORCE_COLOR": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return Logged(output, done.stdout, done.stderr)


@pytest.mark.campaign
def test_a_file_has_no_colours_and_none_of_rays_lines(logged: Logged) -> None:
    assert "\x1b" not in logged.stdout + logged.stderr
    assert not RAYS_OWN.search(logged.stderr), logged.stderr
    (line,) = logged.stdout.splitlines()
    assert json.loads(line)["status"] == "done"


@pytest.mark.campaign
def test_a_training_says_how_fast_it_is_how_long_it_takes_and_what_each_epoch_came_to(logged: Logged) -> None:
    for epoch, loss in logged.history[["epoch", "train_loss"]].itertuples(index=False):
        assert re.search(rf"^epoch {epoch} of 3: loss {loss:.4f}, \d+\.\d images/s$", logged.stderr, re.MULTILINE), logged.stderr
    assert re.search(r"^epoch 3 of 3: validation loss \d\.\d+, .* f1 \d\.\d+, ", logged.stderr, re.MULTILINE), logged.stderr
    assert re.search(r"^\d+ of 36 images trained on, [\d.]+/(s|min), \d+ s left, epoch \d of 3", logged.stderr, re.MULTILINE)
    assert re.search(
        r"^36 of 36 images trained on in \d+ s, epoch 3 of 3, loss \d\.\d+, f1 \d\.\d+$", logged.stderr, re.MULTILINE
    )
    assert re.search(r"^4 of 4 validation images matched in \d+ s$", logged.stderr, re.MULTILINE)


def test_verbose_is_no_setting() -> None:
    plain = read_config(TrainConfig, description="", arguments=["--data", "a", "--output", "b"])
    assert read_config(TrainConfig, description="", arguments=["--data", "a", "--verbose", "--output", "b"]) == plain


@pytest.mark.campaign
def test_a_training_whose_log_is_lost_goes_on_to_the_same_end(
    logged: Logged, tmp_path: Path, cluster: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The actor that carries it dies before anybody has told it anything."""

    @contextmanager
    def lose_it(*arguments: Any, **named: Any) -> Iterator[Any]:
        with show_training(*arguments, **named) as board:
            ray.kill(board)
            yield board

    monkeypatch.setattr(trainer, "show_training", lose_it)
    saved = logged.output / "train" / "train.json"
    config = load_config(saved.read_text(), kind=TrainConfig, source=str(saved))
    with caplog.at_level(logging.INFO):
        trainer.train(replace(config, output=str(tmp_path)))
    assert "how far it is cannot be shown any more" in caplog.text
    assert "epoch 1 of 3" not in caplog.text
    pd.testing.assert_frame_equal(read_history(tmp_path), logged.history)


def test_a_terminal_has_one_line_that_is_drawn_anew(bundle_uri: str, dataset_uri: str, tmp_path: Path, cluster: str) -> None:
    command = [sys.executable, str(ROOT / "jobs" / "evaluate.py"), "--bundle", bundle_uri, "--data", dataset_uri]
    environment = {**os.environ, "RAY_ADDRESS": cluster, "TERM": "xterm"}
    master, slave = pty.openpty()
    with subprocess.Popen(
        [*command, "--output", str(tmp_path)], stdout=subprocess.PIPE, stderr=slave, env=environment, text=True
    ) as job:
        os.close(slave)
        written, screen = read_screen(master)
        assert job.stdout is not None
        assert json.loads(job.stdout.read())["images"] == 4
    assert written.count("images scored \x1b") > 1
    assert re.search(r"\d of 4", written)
    assert len(screen) == 1
    assert re.fullmatch(r"4 of 4 images scored in \d+ s", screen[0])


def test_a_worker_waits_for_nobody_and_what_it_said_meanwhile_comes_together(cluster: str) -> None:
    class SlowBoard:
        """Takes a second for what another takes a millisecond for."""

        def __init__(self) -> None:
            self.calls: list[list[str]] = []

        def tell(self, lines: list[tuple[int, str]], _values: dict[str, float]) -> None:
            time.sleep(1)
            self.calls.append([text for _, text in lines])

        def told(self) -> list[list[str]]:
            return self.calls

    board = ray.remote(SlowBoard).options(num_cpus=0).remote()
    ray.get(board.told.remote())
    with Reporter(board, rank=0) as reporter:
        begun = time.monotonic()
        for number in range(50):
            reporter.emit(logging.makeLogRecord({"levelno": logging.INFO, "msg": f"line {number}"}))
            reporter.note(step=number)
        assert time.monotonic() - begun < 0.5
    told = ray.get(board.told.remote())
    assert [text for call in told for text in call] == [f"line {number}" for number in range(50)]
    assert len(told) == 2
