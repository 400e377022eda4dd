"""Rates and times left are honest; a file gets plain lines, a terminal one redrawn line."""

import logging
import os
import pty
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from support import ROOT, read_screen

from resunet_ray.progress import Pace, show_progress


def test_start_up_time_no_longer_counts_once_enough_is_known() -> None:
    """Ten seconds until the first result, then one per second."""
    pace = Pace(begun=100.0)
    assert pace.rate(109.0) == 0.0
    for number in range(1, 31):
        pace.arrive(number, now=109.0 + number)
    assert pace.rate(139.0) == pytest.approx(1.0)


def test_results_that_arrive_together_do_not_promise_too_much() -> None:
    """Two actors finish their first chunks a tenth of a second apart: that is not 80 per second."""
    pace = Pace(begun=0.0)
    pace.arrive(8, now=20.0)
    pace.arrive(16, now=20.1)
    assert pace.rate(20.1) == pytest.approx(16 / 20.1)


def test_batches_do_not_disturb_the_rate_and_a_standstill_lowers_it() -> None:
    pace = Pace(begun=0.0)
    for number in range(1, 11):
        pace.arrive(10 * number, now=10.0 * number)
    assert pace.rate(100.0) == pace.rate(105.0) == pytest.approx(1.0)
    assert pace.rate(1000.0) < 0.11


def test_work_of_an_earlier_run_counts_for_the_total_but_not_for_the_rate() -> None:
    pace = Pace(begun=0.0, done=900)
    pace.arrive(910, now=10.0)
    assert pace.rate(10.0) == pytest.approx(1.0)


def test_work_repeated_after_a_failure_counts_from_where_it_resumes(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("resunet_ray.progress.time", SimpleNamespace(monotonic=lambda: now[0]))
    with caplog.at_level(logging.INFO), show_progress("images trained on", total=1000) as line:
        line.move_to(500)
        for done in (600, 700, 650, 660):  # the third: back to a checkpoint
            now[0] += 10
            line.move_to(done, note="epoch 7 of 10")
    assert caplog.messages == [
        "600 of 1000 images trained on, 10.0/s, 40 s left, epoch 7 of 10",
        "700 of 1000 images trained on, 10.0/s, 30 s left, epoch 7 of 10",
        "660 of 1000 images trained on, 1.0/s, 5 min 40 s left, epoch 7 of 10",
        "660 of 1000 images trained on in 40 s, epoch 7 of 10",
    ]


@pytest.mark.parametrize(
    ("total", "seconds", "shown"),
    [
        (0, 2.0, "5 things, 2.5/s"),
        (3605, 300.0, "5 of 3605 things, 1.0/min, 60 h 00 min left"),
        (10, 9000.0, "5 of 10 things"),
    ],
)
def test_units_suit_the_rate(
    total: int, seconds: float, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("resunet_ray.progress.time", SimpleNamespace(monotonic=lambda: now[0]))
    with show_progress("things", total=total) as line:
        now[0] = seconds
        line.advance(5)
        assert str(line).startswith(shown)


WORK = """
import logging, sys, time
from resunet_ray.progress import LogHandler, show_progress
logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[LogHandler()])
with show_progress("images scored", total=20) as line:
    for number in range(4):
        time.sleep(0.3)
        line.advance(5, note=f"{number} failed")
        path = "a/very/long/path/" * 9
        logging.getLogger("resunet_ray.some").info("[red]line %d[/red] of %s", number, path)
        print("a library's warning", file=sys.stderr)
"""


LAST = r"20 of 20 images scored in \d+ s, 3 failed"


def test_a_file_gets_plain_lines_whatever_the_environment_says() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WORK],
        cwd=ROOT,
        env={**os.environ, "FORCE_COLOR": "1", "TTY_COMPATIBLE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stderr.splitlines()
    assert "\x1b" not in done.stderr
    assert lines[0].startswith("5 of 20 images scored, ")
    assert lines[0].endswith(" s left, 0 failed")
    assert re.fullmatch(LAST, lines[-1])
    assert len(lines) == 2 + 2 * 4, "further lines would come too soon after the first"


def test_a_terminal_gets_one_line_below_all_others() -> None:
    master, slave = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", WORK],
        cwd=ROOT,
        env={**os.environ, "TERM": "xterm"},
        stdout=subprocess.DEVNULL,
        stderr=slave,
    ):
        os.close(slave)
        written, screen = read_screen(master)
    assert written.count("images scored \x1b") > 3, "the line is redrawn"
    assert "5 of 20, " in written
    assert " left, 0 failed" in written
    path = "a/very/long/path/" * 9
    expected = [
        line
        for number in range(4)
        for line in (f"[red]line {number}[/red] of {path}", "a library's warning")
    ]
    assert screen[:-1] == expected
    assert re.fullmatch(LAST, screen[-1])
