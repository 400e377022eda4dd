"""A group of checks in a process of its own: whatever hangs in it ends when its time is up, and takes nothing along.

A thread that is stuck in a socket or inside Ray cannot be stopped, and can keep its process from ending. A process can be killed;
and should whoever started it be gone, the kernel's alarm ends it.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import asdict
from importlib import import_module
from typing import Self

from pydantic import TypeAdapter

from resunet_ray.config import DoctorConfig, load_config, save_config
from resunet_ray.doctor.finding import Finding

_PACKAGE = "resunet_ray.doctor"
_FAREWELL_SECONDS = 4.0  # for the removal of probes, and for Ray's shutdown, which may hang
_KILLED_SECONDS = 1.0
_ALARM_SECONDS = 60


class ProcessWithDeadline:
    """The `examine` of a module of this package, in a process of its own; a context, after which there is no such process."""

    def __init__(self, module: str, config: DoctorConfig) -> None:
        """Starts it.

        Args:
            module: its name.
            config: what is asked.
        """
        self._inbox: queue.Queue[Finding | None] = queue.Queue()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as this)
        command = [sys.executable, "-m", f"{_PACKAGE}.deadline", module, save_config(config)]
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self._log, text=True
        )  # noqa: S603 (our own)
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()
        self._log.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._inbox.put(TypeAdapter(Finding).validate_json(line))
        self._inbox.put(None)

    def read(self, *, until: float) -> Finding | None:
        """Its next finding; None: there are no more.

        Args:
            until: how long it is waited for, by `time.monotonic`.

        Raises:
            TimeoutError: it did not come.
        """
        try:
            return self._inbox.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            raise TimeoutError from None

    def kill(self) -> None:
        """Ends it now."""
        self._process.kill()
        with suppress(
            subprocess.TimeoutExpired
        ):  # the kernel itself may hang, over a network file system that is away
            self._process.wait(timeout=_KILLED_SECONDS)

    def wait(self) -> int:
        """Its exit code, once it had a moment to end by itself; negative: the signal that ended it."""
        try:
            return self._process.wait(timeout=_FAREWELL_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            return -signal.SIGKILL

    def read_log(self) -> str:
        """What it said beside its findings, so far."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace").strip()


def _main(module: str, config: str) -> None:
    signal.alarm(_ALARM_SECONDS)
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as findings:
        os.dup2(
            sys.stderr.fileno(), sys.stdout.fileno()
        )  # whatever else is printed goes to the log
        examine = import_module(f"{_PACKAGE}.{module}").examine
        for finding in examine(
            load_config(config, kind=DoctorConfig, source="the doctor's own call")
        ):
            print(json.dumps(asdict(finding)), file=findings, flush=True)
    os._exit(0)  # what libraries still do at their end takes long, or hangs


if __name__ == "__main__":
    _main(*sys.argv[1:])
