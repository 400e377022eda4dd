"""TensorBoard and optuna-dashboard for a sweep stored anywhere, while it runs and afterwards.

Both read local files, so the sweep's files are copied into a temporary folder, and again whenever
they change. The study's database is replaced through SQLite, so that processes that have it open
see the change.
"""

import logging
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from importlib import util
from pathlib import Path

from resunet_ray import storage
from resunet_ray.config import DashboardConfig
from resunet_ray.errors import ConfigError, InputError, ResourceError, ResUNetRayError, RunError
from resunet_ray.sweep.study import STUDY_FILE
from resunet_ray.sweep.trials import TRIALS_FOLDER
from resunet_ray.train.tracking import EVENTS_FOLDER

logger = logging.getLogger(__name__)

_STOP_SECONDS = 10.0


@contextmanager
def serve(config: DashboardConfig) -> Iterator[dict[str, str]]:
    """Serve until the context ends; yields the address of each server by its name.

    Raises:
        ConfigError: the servers are not installed.
        InputError: the output holds neither event files nor a study.
        ResourceError: a port is taken.
    """
    for package in ("tensorboard", "optuna_dashboard"):
        if util.find_spec(package) is None:
            raise ConfigError(
                f"the dashboard needs the package {package}: pip install 'resunet_ray[dashboard]'"
            )
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        mirror = _Mirror(storage.absolute(config.output), Path(folder))
        if not mirror.refresh():
            raise InputError(
                f"{config.output} holds neither {STUDY_FILE} nor {EVENTS_FOLDER}/: "
                "expected the output of jobs/tune.py"
            )
        servers = list(_list_servers(config, mirror))
        for _, port, _ in servers:
            _require_free(config.host, port)
        for name, _, command in servers:
            stack.enter_context(_run(command, name=name))
        stop = threading.Event()
        thread = threading.Thread(
            target=_keep_fresh, args=(mirror, stop, config.refresh_seconds), daemon=True
        )
        thread.start()
        stack.callback(thread.join)
        stack.callback(stop.set)
        yield {name: f"http://{config.host}:{port}" for name, port, _ in servers}


def _list_servers(
    config: DashboardConfig, mirror: "_Mirror"
) -> Iterator[tuple[str, int, list[str]]]:
    """Yield name, port and command of each server; a single training run has no study."""
    command = [sys.executable, "-m", "tensorboard.main", f"--logdir={mirror.events}"]
    command += [f"--host={config.host}", f"--port={config.tensorboard_port}"]
    command += ["--load_fast=false", f"--reload_interval={config.refresh_seconds:g}"]
    yield "TensorBoard", config.tensorboard_port, command
    if mirror.study.exists():
        database, port = f"sqlite:///{mirror.study}", config.optuna_port
        call = f"run_server({database!r}, host={config.host!r}, port={port})"
        code = f"from optuna_dashboard import run_server; {call}"
        yield "optuna-dashboard", port, [sys.executable, "-c", code]


class _Mirror:
    """A local copy of a sweep's event files and study."""

    def __init__(self, output: str, folder: Path) -> None:
        self.events, self.study = folder / "events", folder / STUDY_FILE
        self.events.mkdir()
        self._output = output
        self._seen: dict[str, str] = {}

    def refresh(self) -> int:
        """Copy the files that have changed; returns how many files the output holds in all."""
        found = 0
        for file in storage.walk_files(self._output):
            parts = file.path.split("/")
            if file.path != STUDY_FILE and EVENTS_FOLDER not in parts[:-1]:
                continue
            found += 1
            if self._seen.get(file.path) != file.fingerprint:
                content = storage.read_bytes(storage.join(self._output, file.path))
                if file.path == STUDY_FILE:
                    self._replace_study(content)
                else:
                    copy = self.events.joinpath(
                        *(part for part in parts if part not in (EVENTS_FOLDER, TRIALS_FOLDER))
                    )
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    copy.write_bytes(content)
                self._seen[file.path] = file.fingerprint
        return found

    def _replace_study(self, content: bytes) -> None:
        with (
            closing(sqlite3.connect(":memory:")) as stored,
            closing(sqlite3.connect(self.study)) as served,
        ):
            stored.deserialize(content)
            stored.backup(served)


def _keep_fresh(mirror: _Mirror, stop: threading.Event, seconds: float) -> None:
    while not stop.wait(seconds):
        try:
            mirror.refresh()
        except (OSError, ResUNetRayError, sqlite3.Error) as error:
            logger.warning(
                "cannot read the sweep's files, will try again: %s",
                storage.mask_credentials(str(error)),
            )


def _require_free(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ResourceError(
                f"cannot listen on {host}:{port} ({error.strerror}): give another port or --host"
            ) from None


@contextmanager
def _run(command: list[str], *, name: str) -> Iterator[None]:
    """Run a server until the context ends."""
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(  # noqa: S603 (ours)
            command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )
        try:
            yield
            if server.poll() is not None:
                log.seek(0)
                said = log.read().decode(errors="replace").strip()[-500:]
                raise RunError(f"{name} ended unexpectedly: {said}")
        finally:
            server.terminate()
            try:
                server.wait(timeout=_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
