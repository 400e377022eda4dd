"""What a job prints on standard error: its own lines and progress; Ray's only with --verbose."""

import json
import logging
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import ray
from support import ROOT, read_screen

from resunet_ray.command_line import read_config
from resunet_ray.config import TrainConfig
from resunet_ray.train.relay import Reporter


def test_verbose_is_not_a_setting() -> None:
    plain = read_config(TrainConfig, description="", arguments=["--data", "a", "--output", "b"])
    assert (
        read_config(
            TrainConfig, description="", arguments=["--data", "a", "--verbose", "--output", "b"]
        )
        == plain
    )


def test_a_terminal_has_one_line_that_is_redrawn(
    bundle_uri: str, dataset_uri: str, tmp_path: Path, cluster: str
) -> None:
    command = [
        sys.executable,
        str(ROOT / "jobs" / "evaluate.py"),
        "--bundle",
        bundle_uri,
        "--data",
        dataset_uri,
    ]
    environment = {**os.environ, "RAY_ADDRESS": cluster, "TERM": "xterm"}
    master, slave = pty.openpty()
    with subprocess.Popen(
        [*command, "--output", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=slave,
        env=environment,
        text=True,
    ) as job:
        os.close(slave)
        written, screen = read_screen(master)
        assert job.stdout is not None
        assert json.loads(job.stdout.read())["images"] == 4
    assert written.count("images scored \x1b") > 1
    assert re.search(r"\d of 4", written)
    assert len(screen) == 1
    assert re.fullmatch(r"4 of 4 images scored in \d+ s", screen[0])


def test_a_worker_does_not_wait_for_the_driver_and_its_lines_arrive_together(cluster: str) -> None:
    class SlowBoard:
        """A board that takes a second where a real one takes a millisecond."""

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
