"""A thousand damaged files of every format: each is read as it was, or refused by name."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT

_COUNT = 1000
_MOST_BYTES = 2**30  # of the process that reads them all


@pytest.mark.campaign
def test_damaged_files_are_refused_by_name_and_end_no_process(tmp_path: Path) -> None:
    tool = ROOT / "tests" / "mutated_files.py"
    command: list[str | Path] = [sys.executable, tool, tmp_path, str(_COUNT)]
    paths = f"{ROOT}:{ROOT / 'tests'}"
    done = subprocess.run(
        command, capture_output=True, text=True, env={"PYTHONPATH": paths}, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    *lines, last = map(json.loads, done.stdout.splitlines())
    assert len(lines) == _COUNT
    assert last["peak_bytes"] < _MOST_BYTES
    for line in lines:
        if line["result"] not in ("same", "differs"):
            assert line["name"] in line["result"], "an error names the file"
        # Every row of a PNG has a checksum.
        if line["kind"] == "cut" or line["name"].endswith(".png"):
            assert line["result"] != "differs", line
