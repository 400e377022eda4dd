"""Compiled loops run whatever the disk does that keeps them."""

import os
import subprocess
import sys
from pathlib import Path

from support import ROOT

_PROGRAM = """
import resource, sys
import numpy as np
from resunet_ray.compiled import compiled
from loops import add
if "full" in sys.argv:
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
print(add(np.arange(4)), sum(add.stats.cache_hits.values()))
"""
_LOOPS = """
from resunet_ray.compiled import compiled

@compiled
def _one(value):
    return value + 1

@compiled
def add(values):
    total = 0
    for value in values:
        total += _one(value)
    return total
"""


def run(folder: Path, *arguments: str, **environment: str) -> list[str]:
    """The sum of 0 to 3, with 1 added to each, and how much of it was found compiled."""
    (folder / "loops.py").write_text(_LOOPS)
    os.utime(folder / "loops.py", (0, 0))  # a change of the file would make its cache useless
    done = subprocess.run(
        [sys.executable, "-B", "-c", _PROGRAM, *arguments],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{folder}", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split()


def test_it_is_compiled_once(tmp_path: Path) -> None:
    assert run(tmp_path) == ["10", "0"]
    assert run(tmp_path) == ["10", "1"]


def test_a_full_disk_keeps_nothing_and_stops_nothing(tmp_path: Path) -> None:
    assert run(tmp_path, "full") == ["10", "0"]
    assert run(tmp_path) == ["10", "0"]


def test_damaged_files_are_compiled_again(tmp_path: Path) -> None:
    run(tmp_path)
    kept = [*(tmp_path / "__pycache__").glob("*.nb*")]
    assert kept
    for file in kept:
        file.write_bytes(file.read_bytes()[:-20])
    assert run(tmp_path) == ["10", "0"]
    assert run(tmp_path) == ["10", "1"]


def test_without_a_folder_to_write_it_is_compiled_in_each_process(tmp_path: Path) -> None:
    (tmp_path / "__pycache__").write_text("not a folder")
    nowhere = "/dev/null"
    for _ in range(2):
        assert run(tmp_path, HOME=nowhere, XDG_CACHE_HOME=f"{nowhere}/x") == ["10", "0"]
