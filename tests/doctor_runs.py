"""Runs of the doctor, what they say, and clusters for them to look at."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE
from tempfile import TemporaryDirectory

from support import ROOT, free_port

BIN = Path(sys.executable).parent
AUTH = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "the-token-of-these-tests"}
ROOMY = (
    "--cache-gib",
    "0.05",
    "--disk-gib",
    "0.1",
    "--disk-fraction",
    "1",
    "--memory-gib",
    "0.1",
    "--open-files",
    "2100",
)
PATIENT = (
    *("--start-seconds", "30", "--storage-seconds", "30", "--storage-mib-per-second", "0"),
    *("--connect-seconds", "40", "--node-seconds", "30", "--check-seconds", "80"),
)
"""Flags that let a small and busy machine pass."""


def clean_environment(**variables: str) -> dict[str, str]:
    """Return this environment without Ray's variables; `python` is the one of these tests."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**own, "PATH": f"{BIN}:{os.environ['PATH']}", **variables}


@dataclass
class Said:
    """The output of one run of the doctor."""

    code: int
    checks: dict[str, dict[str, str]]
    page: str
    seconds: float

    def list_wrong(self) -> set[str]:
        return {
            name for name, check in self.checks.items() if check["status"] in ("warning", "failed")
        }

    def expect(self, check: str, status: str, *, found: str, fix: str) -> None:
        said = self.checks[check]
        assert said["status"] == status, said
        assert found in said["found"], said
        assert fix in said["fix"], said
        assert said["fix"] in self.page, "the page shows it too"


class Doctor:
    """A run of the job, which others may run beside."""

    def __init__(self, *flags: str, **variables: str) -> None:
        self._begun = time.monotonic()
        command = [sys.executable, str(ROOT / "jobs" / "doctor.py"), *flags]
        self._process = subprocess.Popen(
            command,
            stdout=PIPE,
            stderr=PIPE,
            text=True,
            env=clean_environment(**{**AUTH, **variables}),
        )
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        output, page = self._process.communicate()
        self._said = Said(
            self._process.returncode, read_checks(output), page, time.monotonic() - self._begun
        )

    def read(self) -> Said:
        self._thread.join(timeout=200)
        return self._said


def read_checks(output: str) -> dict[str, dict[str, str]]:
    (line,) = [
        json.loads(line) for line in output.splitlines() if line.startswith('{"job": "doctor"')
    ]
    assert (line["status"] == "failed") == any(
        check["status"] == "failed" for check in line["checks"]
    )
    return {check["check"]: check for check in line["checks"]}


@contextmanager
def ray_started(
    *flags: str, before: tuple[str, ...] = (), **variables: str
) -> Iterator[subprocess.Popen[str]]:
    """Start a node of a cluster as users do."""
    command = [
        *before,
        str(BIN / "ray"),
        "start",
        "--block",
        "--object-store-memory=100000000",
        "--disable-usage-stats",
    ]
    command += ["--dashboard-agent-listen-port=0", "--metrics-export-port=0", *flags]
    environment = clean_environment(**AUTH, RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S="0", **variables)
    with subprocess.Popen(
        command, stdout=PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as node:
        assert node.stdout is not None
        said = []
        for line in node.stdout:
            said.append(line)
            if "Ray runtime started" in line:
                break
        try:
            assert "Ray runtime started" in "".join(said[-1:]), "".join(said)
            yield node
        finally:
            node.terminate()
            node.communicate(timeout=30)


@dataclass
class Head:
    """The head of a cluster."""

    address: str
    dashboard: str
    pid: int


@contextmanager
def head_started() -> Iterator[Head]:
    """Start a cluster of one node with three CPUs."""
    port, dashboard = free_port(), free_port()
    flags = [
        f"--port={port}",
        f"--dashboard-port={dashboard}",
        f"--ray-client-server-port={free_port()}",
        "--num-cpus=3",
    ]
    with (
        TemporaryDirectory(
            prefix="ray-", ignore_cleanup_errors=True
        ) as folder,  # short: sockets lie below it
        ray_started("--head", *flags, f"--temp-dir={folder}") as node,
    ):
        yield Head(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", node.pid)
