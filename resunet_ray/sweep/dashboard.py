"""TensorBoard and optuna-dashboard over a sweep that is stored anywhere, while it runs and after.

Both read files of this machine, so what is stored is copied into a folder here, and what is new while they run. The study's
database is replaced through SQLite, which those who have it open notice.
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
    """Serves as long as the context lasts; gives the addresses by server.

    Raises:
        ConfigError: the servers are not installed.
        InputError: nothing is stored there to look at.
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
                f"{config.output} holds neither {STUDY_FILE} nor {EVENTS_FOLDER}/: expected what jobs/tune.py writes to"
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
    """Name, port and command of each; a training run by itself has no study."""
    port = config.tensorboard_port
    command = [
        sys.executable,
        "-m",
        "tensorboard.main",
        "--logdir",
        str(mirror.events),
        "--host",
        config.host,
        "--port",
        str(port),
    ]
    yield (
        "TensorBoard",
        port,
        [*command, "--load_fast=false", f"--reload_interval={config.refresh_seconds:g}"],
    )
    if mirror.study.exists():
        call = f"run_server({f'sqlite:///{mirror.study}'!r}, host={config.host!r}, port={config.optuna_port})"
        yield (
            "optuna-dashboard",
            config.optuna_port,
            [sys.executable, "-c", f"from optuna_dashboard import run_server; {call}"],
        )


class _Mirror:
    """A copy of the event files and the study of a location."""

    def __init__(self, output: str, folder: Path) -> None:
        self.events, self.study = folder / "events", folder / STUDY_FILE
        self.events.mkdir()
        self._output = output
        self._seen: dict[str, str] = {}

    def refresh(self) -> int:
        """Copies what has changed; returns how many files there are."""
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
                "cannot look at what is stored, trying again: %s",
                storage.mask_credentials(str(error)),
            )


def _require_free(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ResourceError(
                f"{host}:{port} cannot be listened on ({error.strerror}): give another port or --host"
            ) from None


@contextmanager
def _run(command: list[str], *, name: str) -> Iterator[None]:
    """A server as long as the context lasts."""
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )  # noqa: S603 (ours)
        try:
            yield
            if server.poll() is not None:
                log.seek(0)
                raise RunError(
                    f"{name} has ended by itself: {log.read().decode(errors='replace').strip()[-500:]}"
                )
        finally:
            server.terminate()
            try:
                server.wait(timeout=_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
