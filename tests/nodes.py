"""A real Ray cluster of several nodes on this machine, with token authentication.

Each node has its own processes, ports and resources.
"""

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from support import ROOT, free_port

BIN = Path(sys.executable).parent
TRAVELLED = "0.0.0+travelled"
"""The version of the clone. Only code that travelled with a job can report it."""

_WORKERS, _WORKER_CPUS = 2, 3
_START_SECONDS = 180
_END_SECONDS = 5
_JOB_SECONDS = 900


@dataclass
class Nodes:
    """A cluster, a clean clone of this repository, and the command line that submits from it."""

    folder: Path
    """Everything that the cluster writes. Its path is short, because it contains sockets."""
    environment: dict[str, str] = field(default_factory=dict)
    """What a submitter needs: the address of the cluster, and the token."""
    processes: list[psutil.Popen] = field(default_factory=list)
    """One `ray start --block` per node, the head first. It owns the node's other processes."""
    address: str = ""
    _usual: list[psutil.Popen] = field(default_factory=list)

    @property
    def clone(self) -> Path:
        """The folder that jobs are submitted from."""
        return self.folder / "clone"

    def start(self) -> None:
        """Start a head that takes no work, then the workers, each after the previous one joined."""
        _copy_tracked(self.clone)
        (self.folder / "token").write_text(secrets.token_hex(32))
        self.address = f"127.0.0.1:{free_port()}"
        self.environment = {
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith(("RAY_", "PYTHONPATH"))
            },
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_JOB_STOP_WAIT_TIME_S": "30",  # as in the image
            "RAY_AUTH_TOKEN_PATH": str(self.folder / "token"),
            "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{(dashboard := free_port())}",
        }
        head = [
            "--head",
            f"--port={self.address.rpartition(':')[2]}",
            f"--dashboard-port={dashboard}",
            "--num-cpus=0",
        ]
        self._add(
            *head, f"--ray-client-server-port={free_port()}", f"--temp-dir={self.folder / 'ray'}"
        )
        self.restore()

    @property
    def workers(self) -> list[psutil.Popen]:
        """The workers that are alive, in the order in which they joined."""
        return [node for node in self.processes[1:] if node.poll() is None]

    def restore(self) -> None:
        """Bring the cluster back to its two usual workers."""
        for node in self.workers:
            if node not in self._usual:
                _kill(node)
        while len(self.workers) < _WORKERS:
            self._usual.append(self.add(cpus=_WORKER_CPUS))

    def add(self, *, cpus: int) -> psutil.Popen:
        """Add a worker."""
        # The nodes share one log folder, which the head's monitor already reads.
        return self._add(
            f"--address={self.address}", f"--num-cpus={cpus}", "--include-log-monitor=false"
        )

    def _add(self, *flags: str) -> psutil.Popen:
        ports = [
            f"--{name}={free_port()}"
            for name in ("dashboard-agent-listen-port", "metrics-export-port")
        ]
        common = ["--block", "--disable-usage-stats", f"--object-store-memory={200 * 2**20}"]
        before = self.list_alive()
        log = self.folder / f"node-{len(self.processes)}.log"
        with log.open("wb") as file:
            command = [str(BIN / "ray"), "start", *common, *ports, *flags]
            node = psutil.Popen(
                command,
                cwd=self.folder,
                env=self.environment,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        self.processes.append(node)
        deadline = time.monotonic() + _START_SECONDS
        while not self.list_alive() - before:
            assert node.poll() is None, f"the node ended: {log.read_text()[-2000:]}"
            assert time.monotonic() < deadline, (
                f"the node did not join within {_START_SECONDS} s: {log.read_text()[-2000:]}"
            )
            time.sleep(0.2)
        return node

    def list_alive(self) -> set[str]:
        """Return the ids of the nodes that are alive, none before the dashboard answers."""
        try:
            return {str(node["node_id"]) for node in self.ask("nodes") if node["state"] == "ALIVE"}
        except OSError:
            return set()

    def ask(self, what: str) -> list[dict[str, Any]]:
        """Ask the dashboard for the cluster's nodes, actors and so on."""
        token = (self.folder / "token").read_text()
        url = f"{self.environment['RAY_API_SERVER_ADDRESS']}/api/v0/{what}?detail=1&limit=1000"
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            rows: list[dict[str, Any]] = json.load(answer)["data"]["result"]["result"]
        return rows

    def submit(
        self, job: str, *arguments: str, flags: tuple[str, ...] = ()
    ) -> tuple[int, dict[str, Any], str]:
        """Submit a job from the clone. Returns exit code, the last line of JSON, and all output."""
        command = [
            "ray",
            "job",
            "submit",
            "--working-dir",
            ".",
            *flags,
            "--",
            "python",
            f"jobs/{job}.py",
            *arguments,
        ]
        done = self.run(*command)
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        return done.returncode, json.loads(lines[-1]) if lines else {}, done.stdout

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the clone as a submitter would, with both outputs merged."""
        return subprocess.run(
            command,
            cwd=self.clone,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_JOB_SECONDS,
            check=False,
        )

    def kill_worker(self, *, holding: str) -> None:
        """Kill all processes of a node that runs an actor of the given class, like a power cut."""
        ids = {
            actor["node_id"]
            for actor in self.ask("actors")
            if actor["state"] == "ALIVE" and holding in actor["class_name"]
        }
        assert ids, f"no actor {holding} is alive"
        for node in self.workers:
            raylets = [
                process for process in node.children(recursive=True) if process.name() == "raylet"
            ]
            if any(
                f"--node_id={name}" in " ".join(raylet.cmdline())
                for raylet in raylets
                for name in ids
            ):
                _kill(node)
                return
        raise AssertionError(f"{holding} runs on none of the workers")

    def end(self) -> None:
        """Stop the nodes, and check that no process is left."""
        running = [node for node in self.processes if node.poll() is None]
        for node in running:
            node.terminate()
        _, alive = psutil.wait_procs(running, timeout=_END_SECONDS)
        for node in alive:  # Ray itself would wait half a minute for some of them
            _kill(node)
        try:
            self.wait_until(lambda: not self._left(), what=f"the end of {self._left()}")
        finally:
            shutil.rmtree(self.folder)

    def _left(self) -> list[str]:
        """Return the processes that have this cluster's token in their environment."""
        return [
            " ".join(process.cmdline())
            for process in psutil.process_iter()
            if _belongs_to(process, self.folder)
        ]

    @staticmethod
    def wait_until(condition: Any, *, what: str, seconds: float = 300) -> None:
        """Return once a condition holds, or fail after `seconds`."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"{seconds:g} s were not enough for {what}"
            time.sleep(0.2)


def _copy_tracked(clone: Path) -> None:
    """Copy the tracked files in their present state, with `TRAVELLED` as the package's version."""
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for name in filter(None, names.split("\0")):
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, clone / name)
    package = clone / "resunet_ray" / "__init__.py"
    text, _, rest = package.read_text().partition("__version__ = ")
    assert rest, "the package has no __version__"
    package.write_text(f'{text}__version__ = "{TRAVELLED}"\n{rest.partition(chr(10))[2]}')


def _kill(node: psutil.Popen) -> None:
    for process in [node, *node.children(recursive=True)]:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    node.wait(timeout=300)


def _belongs_to(process: psutil.Process, folder: Path) -> bool:
    try:
        return bool(
            process.status() != psutil.STATUS_ZOMBIE
            and process.environ().get("RAY_AUTH_TOKEN_PATH") == str(folder / "token")
        )
    except psutil.Error:
        return False
