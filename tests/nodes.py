"""A real Ray cluster of several nodes on this machine, each with processes, ports and resources of its own, and tokens on."""

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
"""The version that the clone has: nothing but what travelled with a job can write it."""

_WORKERS, _WORKER_CPUS = 2, 3
_START_SECONDS = 60
_END_SECONDS = 5
_JOB_SECONDS = 240


@dataclass
class Nodes:
    """A cluster, a clean clone of this repository, and the command line that submits from there."""

    folder: Path
    """For everything that the cluster writes; its path is short, since sockets lie in it."""
    environment: dict[str, str] = field(default_factory=dict)
    """What a submitter needs: where the cluster is, and the token."""
    processes: list[psutil.Popen] = field(default_factory=list)
    """One a node, the head first: `ray start --block`, which holds the node's other processes."""
    address: str = ""
    _usual: list[psutil.Popen] = field(default_factory=list)

    @property
    def clone(self) -> Path:
        """Where jobs are submitted from."""
        return self.folder / "clone"

    def start(self) -> None:
        """A head that takes no work, and the workers; each has joined before the next one starts."""
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
        """Those that are alive, in the order in which they joined."""
        return [node for node in self.processes[1:] if node.poll() is None]

    def restore(self) -> None:
        """Two workers again, whatever became of them."""
        for node in self.workers:
            if node not in self._usual:
                _kill(node)
        while len(self.workers) < _WORKERS:
            self._usual.append(self.add(cpus=_WORKER_CPUS))

    def add(self, *, cpus: int) -> psutil.Popen:
        """One worker more."""
        # The nodes share one folder of logs, which the head's monitor reads already.
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
        """Ids of the nodes that the cluster takes for alive; none where nobody answers yet."""
        try:
            return {str(node["node_id"]) for node in self.ask("nodes") if node["state"] == "ALIVE"}
        except OSError:
            return set()

    def ask(self, what: str) -> list[dict[str, Any]]:
        """What the cluster says of its nodes, actors ..., through its dashboard."""
        token = (self.folder / "token").read_text()
        url = f"{self.environment['RAY_API_SERVER_ADDRESS']}/api/v0/{what}?detail=1&limit=1000"
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            rows: list[dict[str, Any]] = json.load(answer)["data"]["result"]["result"]
        return rows

    def submit(
        self, job: str, *arguments: str, flags: tuple[str, ...] = ()
    ) -> tuple[int, dict[str, Any], str]:
        """`ray job submit` of one job, from the clone: its exit code, the job's last JSON line, and all that was shown."""
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
        """A command in the clone, as a submitter runs it: standard error beside standard output."""
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
        """Power loss of the node on which an actor of the given class stands: all of its processes at once."""
        ids = {
            actor["node_id"]
            for actor in self.ask("actors")
            if actor["state"] == "ALIVE" and holding in actor["class_name"]
        }
        assert ids, f"no {holding} anywhere"
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
        raise AssertionError(f"{holding} stands on none of the workers")

    def end(self) -> None:
        """Ends the nodes, and shows that no process stays behind."""
        running = [node for node in self.processes if node.poll() is None]
        for node in running:
            node.terminate()
        for node in psutil.wait_procs(running, timeout=_END_SECONDS)[
            1
        ]:  # Ray itself would wait half a minute for some
            _kill(node)
        try:
            self.wait_until(lambda: not self._left(), what=f"the end of {self._left()}", seconds=20)
        finally:
            shutil.rmtree(self.folder)

    def _left(self) -> list[str]:
        """Processes that bear this cluster's token, whoever started them."""
        return [
            " ".join(process.cmdline())
            for process in psutil.process_iter()
            if _belongs_to(process, self.folder)
        ]

    @staticmethod
    def wait_until(condition: Any, *, what: str, seconds: float = 90) -> None:
        """Returns when it holds; fails where that takes too long."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"{seconds:g} seconds, and still not: {what}"
            time.sleep(0.2)


def _copy_tracked(clone: Path) -> None:
    """The files under version control as they stand now; the package's version says that they are these."""
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for name in filter(None, names.split("\0")):
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, clone / name)
    package = clone / "resunet_ray" / "__init__.py"
    text, _, rest = package.read_text().partition("__version__ = ")
    assert rest, "the package says no version"
    package.write_text(f'{text}__version__ = "{TRAVELLED}"\n{rest.partition(chr(10))[2]}')


def _kill(node: psutil.Popen) -> None:
    for process in [node, *node.children(recursive=True)]:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    node.wait(timeout=30)


def _belongs_to(process: psutil.Process, folder: Path) -> bool:
    try:
        return bool(
            process.status() != psutil.STATUS_ZOMBIE
            and process.environ().get("RAY_AUTH_TOKEN_PATH") == str(folder / "token")
        )
    except psutil.Error:
        return False
