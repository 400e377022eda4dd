"""Where things are, and how a test runs a job."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from resunet_ray import storage

ROOT = Path(__file__).resolve().parents[1]
REAL_DATA = ROOT.parent / "shared" / "data" / "dsb2018"

SMALL = ["--model.widths", "16", "32", "--crop", "64", "--batch-size", "4", "--precision", "fp32"]
"""Flags of a training run that takes seconds."""


def read_picture(path: Path) -> np.ndarray:
    """What OpenCV reads, unchanged: BGR, or one channel of 8 or 16 bit."""
    array = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert array is not None, f"{path} cannot be read"
    return np.asarray(array)


def read_output(output: str, folder: str, *, columns: list[str] | None = None) -> pd.DataFrame:
    """All rows of one of the tables that segmenting writes."""
    parts = [
        storage.read_table(f"{output}/{folder}/{file.path}", columns=columns).to_pandas()
        for file in storage.walk_files(f"{output}/{folder}")
    ]
    return pd.concat(parts, ignore_index=True)


def run_job(name: str, *arguments: str, timeout: float = 240) -> tuple[int, dict[str, Any], str]:
    """Runs a job as a user would; gives its exit code, its last line on standard output, and its standard error."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / f"{name}.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    lines = done.stdout.strip().splitlines()
    return done.returncode, json.loads(lines[-1]) if lines else {}, done.stderr
