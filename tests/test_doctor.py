"""The doctor finds what was planted and says how to fix it, and ends whatever hangs."""

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE
from tempfile import TemporaryDirectory

import boto3
import cv2
import pytest
from support import ROOT, free_port, read_picture, relayed

from resunet_ray.doctor.checkup import list_checks
from resunet_ray.doctor.machine import judge_devices

CHECKS = {check.name: check for check in list_checks()}
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
UNSHARE = ("unshare", "--mount", *(() if os.geteuid() == 0 else ("--map-root-user",)))
OWN_MOUNTS = (
    shutil.which("unshare") is not None
    and subprocess.run([*UNSHARE, "true"], check=False).returncode == 0
)
needs_mounts = pytest.mark.skipif(
    not OWN_MOUNTS, reason="needs a mount namespace, to give a node other disks"
)

LEAVE = """
import ray
from ray.util import placement_group
ray.init()
ray.get(placement_group([{"CPU": 1}], lifetime="detached").ready())
"""
ASK_TOO_MUCH = """
import ray, time
ray.init()
asked = ray.remote(num_cpus=64)(lambda: None).remote()
taken = ray.remote(num_cpus=2)(lambda: time.sleep(600)).remote()
print("asked", flush=True)
input()
"""


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


@pytest.fixture(scope="module")
def head(s3: str) -> Iterator[Head]:
    """A cluster of one node with three CPUs."""
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


@pytest.fixture(scope="module")
def silent() -> Iterator[int]:
    """A port that accepts connections and never answers."""
    with socket.create_server(("", 0), backlog=99) as server:
        yield int(server.getsockname()[1])


@pytest.fixture(scope="module")
def hanging(silent: int, s3: str) -> Doctor:
    """A run in which nothing answers, with the default time limits."""
    return Doctor(
        *("--storage", f"{s3}/hanging", "--bundle", f"{s3}/bundle"),
        RAY_ADDRESS=f"127.0.0.1:{silent}",
        AWS_ENDPOINT_URL=f"http://127.0.0.1:{silent}",
    )


@pytest.fixture(scope="module")
def nobody(s3: str) -> Doctor:
    """A run in which every connection is refused."""
    address = f"http://127.0.0.1:{free_port()}"
    return Doctor(
        "--storage", f"{s3}/nobody", RAY_API_SERVER_ADDRESS=address, AWS_ENDPOINT_URL=address
    )


@pytest.fixture(scope="module")
def refused(
    head: Head, s3: str, bundle_uri: str, tmp_path_factory: pytest.TempPathFactory
) -> Doctor:
    """A run with the wrong token, wrong keys, and a bundle whose output changed."""
    bundle = shutil.copytree(bundle_uri, tmp_path_factory.mktemp("other") / "bundle")
    _, content = cv2.imencode(".png", 255 - read_picture(bundle / "expected.png"))
    (bundle / "expected.png").write_bytes(content.tobytes())
    info = json.loads((bundle / "bundle.json").read_text())
    info["sha256"]["expected.png"] = hashlib.sha256(content.tobytes()).hexdigest()
    (bundle / "bundle.json").write_text(json.dumps(info))
    return Doctor(
        *("--storage", f"{s3}/refused", "--bundle", str(bundle), "--connect-seconds", "12"),
        RAY_ADDRESS=head.address,
        RAY_AUTH_TOKEN="another-token-altogether",  # noqa: S106 (of nothing)
        AWS_SECRET_ACCESS_KEY="not-the-secret",  # noqa: S106
    )


def test_it_says_so_when_nothing_is_wrong(head: Head, s3: str, bundle_uri: str) -> None:
    """Submitted as a job, with the code. No other run is beside it, which would slow it down."""
    flags = [*ROOMY, *PATIENT, "--storage", f"{s3}/healthy", "--bundle", bundle_uri]
    done = subprocess.run(
        [
            str(BIN / "ray"),
            "job",
            "submit",
            "--working-dir",
            str(ROOT),
            "--",
            "python",
            "jobs/doctor.py",
            *flags,
        ],
        capture_output=True,
        text=True,
        check=False,
        env=clean_environment(**AUTH, RAY_API_SERVER_ADDRESS=head.dashboard),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    checks = read_checks(done.stdout)
    assert {check["status"] for check in checks.values()} == {"ok"}, done.stdout
    assert len(checks) == 25
    left = boto3.client("s3").list_objects_v2(Bucket="lab", Prefix="healthy/").get("Contents", [])
    assert [item["Key"] for item in left if not item["Key"].endswith("/")] == [], (
        "what it wrote is removed"
    )


@pytest.fixture(scope="module")
def ill(
    head: Head, refused: Doctor, bundle_uri: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Said]]:
    """What it says of a node with many faults, and once that and the dashboard are stopped."""
    folder = tmp_path_factory.mktemp("ill")
    plant_packages(folder / "path")
    shared, cache = folder / "shared", folder / "cache"
    for place in (shared, cache):
        place.mkdir()
    shutil.copytree(bundle_uri, shared / "bundle")
    mounts = "mount -t tmpfs -o size=64m none /dev/shm; "
    mounts += f"mount -t tmpfs -o size=16m none {shared}; mount -t tmpfs -o size=8m none {cache}; "
    mounts += f"mount --bind {folder / 'path' / 'resunet_ray'} {ROOT / 'resunet_ray'}; "
    mounts += "ulimit -n 2048; exec $0 $@"
    before = (*UNSHARE, "sh", "-e", "-c", mounts) if OWN_MOUNTS else ()
    joined = clean_environment(**AUTH, RAY_ADDRESS=head.address)
    joining = [f"--address={head.address}", "--num-cpus=1", "--num-gpus=1"]
    flags = [
        *ROOMY,
        *PATIENT,
        "--storage",
        str(shared),
        "--bundle",
        str(shared / "bundle"),
        "--cache",
        str(cache),
    ]
    with (
        subprocess.Popen([sys.executable, "-c", LEAVE], env=joined) as leaver,
        subprocess.Popen(
            [sys.executable, "-c", ASK_TOO_MUCH], env=joined, stdin=PIPE, stdout=PIPE
        ) as driver,
        ray_started(*joining, before=before, PYTHONPATH=f"{folder / 'path'}:{ROOT}") as node,
    ):
        assert leaver.wait() == 0
        assert driver.stdout is not None
        assert driver.stdout.readline() == b"asked\n"
        said = {"ill": Doctor(*flags, "--workers", "9", RAY_ADDRESS=head.address).read()}
        fix = said["ill"].checks["waiting"]["fix"].split("`")[1]
        path = {"PATH": f"{BIN}:{os.environ['PATH']}"}
        # As users would run it.
        subprocess.run(fix, shell=True, check=True, env=joined | path, capture_output=True)  # noqa: S602
        driver.communicate(b"\n")
        with standing_still(
            find_child(node.pid, "raylet/raylet"), find_child(head.pid, "dashboard/dashboard.py")
        ):
            said["stopped"] = Doctor(
                *ROOMY, *PATIENT, "--node-seconds", "6", RAY_ADDRESS=head.address
            ).read()
        yield said


def plant_packages(folder: Path) -> None:
    """Plant another NumPy in the metadata, changed code, and a clock that is 90 s ahead."""
    (folder / "numpy-1.26.4.dist-info").mkdir(parents=True)
    (folder / "numpy-1.26.4.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: numpy\nVersion: 1.26.4\n"
    )
    shutil.copytree(ROOT / "resunet_ray", folder / "resunet_ray")
    with (folder / "resunet_ray" / "errors.py").open("a") as file:
        file.write("# another state\n")
    (folder / "sitecustomize.py").write_text(
        "import time\n_true = time.time\ntime.time = lambda: _true() + 90\n"
    )


def find_child(parent: int, program: str) -> int:
    """Return the child process that runs a program."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it ended
            words = path.read_bytes().decode().split("\0")[:2]
            started_by = int((path.parent / "stat").read_text().rpartition(") ")[2].split()[1])
            if started_by == parent and any(word.endswith(program) for word in words):
                return int(path.parent.name)
    pytest.fail(f"{parent} runs no {program}")


@contextmanager
def standing_still(*processes: int) -> Iterator[None]:
    for process in processes:
        os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            os.kill(process, signal.SIGCONT)


@pytest.mark.parametrize(
    ("check", "status", "found", "fix"),
    [
        (
            "packages",
            "failed",
            "numpy 1.26.4 where >=2.1 is asked for",
            "pip install -c constraints.txt .",
        ),
        (
            "clocks",
            "failed",
            "s ahead of this process's clock (measured to",
            "timedatectl set-ntp true",
        ),
        ("gpus", "failed", "Ray gives away 1 GPUs, torch", "nvidia-smi"),
        ("training", "failed", "10 CPUs needed, 4 available", "fewer --workers"),
        ("segmentation", "warning", "2 CPUs needed, 4 available, ", "ray status"),
        (
            "waiting",
            "warning",
            "1 placement group of ended jobs: 1 CPU of job",
            "remove_placement_group",
        ),
        ("waiting", "warning", "waiting for what no node has: 64 CPU", "ray job stop"),
        pytest.param(
            "code",
            "failed",
            "digest",
            "ray job submit --working-dir .",
            marks=needs_mounts,
        ),
        pytest.param(
            "shared memory", "warning", "0.1 GiB in /dev/shm", "--shm-size", marks=needs_mounts
        ),
        pytest.param(
            "slide cache", "warning", "has room for 0.0 GiB", "--cache-gib", marks=needs_mounts
        ),
        pytest.param("open files", "warning", "2048", "ulimit -n 2100", marks=needs_mounts),
        pytest.param("shared storage", "failed", "does not see what", "s3://", marks=needs_mounts),
        pytest.param(
            "node bundle",
            "failed",
            "holds no bundle.json",
            "that every node reads",
            marks=needs_mounts,
        ),
    ],
)
@pytest.mark.campaign
def test_it_finds_what_is_wrong_with_one_node(
    ill: dict[str, Said], check: str, status: str, found: str, fix: str
) -> None:
    said = ill["ill"]
    assert said.code == 1
    said.expect(check, status, found=found, fix=fix)


@pytest.mark.campaign
def test_a_busy_cluster_answers_and_what_is_in_order_is_ok(ill: dict[str, Said]) -> None:
    """All CPUs are taken, some by a job that has ended."""
    said = ill["ill"]
    assert {check for check in said.checks if said.checks[check]["status"] == "ok"} >= {
        *(
            "ray",
            "token",
            "dashboard",
            "nodes",
            "disk",
            "memory",
            "storage",
            "one writer",
            "node storage",
            "bundle",
        )
    }


@pytest.mark.campaign
def test_a_stopped_node_is_told_from_a_busy_one(ill: dict[str, Said]) -> None:
    """So is a dashboard. The fix for `waiting` has freed what the ended job held."""
    said = ill["stopped"]
    said.expect(
        "nodes",
        "failed",
        found="nothing within 6 s",
        fix="raylet.out",
    )
    said.expect("dashboard", "warning", found="timed out", fix="--include-dashboard true")
    assert said.list_wrong() == {"nodes", "dashboard"}
    assert said.seconds < 60


def test_a_slow_answer_is_not_taken_for_a_wrong_clock() -> None:
    judged = CHECKS["clocks"].merge({"one": (2.9, 3.0), "other": (-0.1, 0.1)})
    assert judged.status == "ok"
    found = CHECKS["clocks"].merge({"one": (2.9, 0.5), "other": (-0.1, 0.1)})
    assert (found.status, found.found) == (
        "failed",
        "one: 2.9 s ahead of this process's clock (measured to 500 ms)",
    )


def test_gpus_that_ray_does_not_know_are_a_warning() -> None:
    """As a node's /dev shows them: these tests have no GPU."""
    devices = ["nvidia0", "nvidia1", "nvidiactl"]
    found = CHECKS["gpus"].merge({"one": judge_devices(devices), "other": judge_devices([])})
    assert (found.status, found.found) == (
        "warning",
        "one: 2 NVIDIA devices, of which Ray knows none",
    )
    assert "--num-gpus" in CHECKS["gpus"].fix


def test_it_says_when_it_is_refused(refused: Doctor) -> None:
    said = refused.read()
    assert said.code == 1
    said.expect("token", "failed", found="InvalidAuthToken", fix="ray get-auth-token")
    said.expect("ray", "failed", found="nothing within 12 s", fix="RAY_ADDRESS")
    said.expect(
        "storage", "failed", found="does not match the signature", fix="AWS_SECRET_ACCESS_KEY"
    )
    said.expect(
        "bundle",
        "failed",
        found="gives another output here than where it was saved",
        fix="provenance",
    )
    assert "not-the-secret" not in said.page + json.dumps(said.checks)
    assert said.list_wrong() == {"token", "ray", "storage", "bundle"}


def test_it_says_when_a_submitter_has_no_token_and_the_storage_knows_no_conditions(
    head: Head, s3: str, bundle_uri: str, tmp_path: Path
) -> None:
    bundle = shutil.copytree(bundle_uri, tmp_path / "bundle")
    with (bundle / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    with careless_storage() as endpoint:
        said = Doctor(
            *("--storage", f"{s3}/careless", "--bundle", str(bundle), *PATIENT),
            RAY_AUTH_MODE="disabled",
            RAY_API_SERVER_ADDRESS=head.dashboard,
            AWS_ENDPOINT_URL=endpoint,
        ).read()
    said.expect(
        "token",
        "failed",
        found="asks for a token, and none was sent; RAY_AUTH_MODE is disabled",
        fix="RAY_AUTH_MODE=token",
    )
    said.expect(
        "one writer", "failed", found="ignores conditions (If-None-Match)", fix="--no-lease"
    )
    said.expect(
        "bundle", "failed", found="model.safetensors is damaged", fix="copy the bundle there again"
    )
    assert said.list_wrong() == {"token", "one writer", "bundle"}
    assert "ray job submit" in said.checks["nodes"]["found"]


@contextmanager
def careless_storage() -> Iterator[str]:
    """The storage behind a relay that defeats If-None-Match by deleting the object first."""
    behind = os.environ["AWS_ENDPOINT_URL"]

    def remove(request: bytes) -> None:
        if b"If-None-Match" in request:
            bucket, _, key = request.split()[1].decode().lstrip("/").partition("/")
            boto3.client("s3", endpoint_url=behind).delete_object(Bucket=bucket, Key=key)

    with relayed(behind, remove) as endpoint:
        yield endpoint


def test_it_says_when_nothing_listens(nobody: Doctor) -> None:
    said = nobody.read()
    said.expect(
        "dashboard",
        "failed",
        found="no Ray dashboard answered at http://127.0.0.1",
        fix="--include-dashboard true",
    )
    said.expect("storage", "failed", found="did not answer", fix="AWS_ENDPOINT_URL")


@pytest.mark.ray
def test_a_local_ray_without_a_token_and_with_little_room() -> None:
    said = Doctor(
        "--disk-gib",
        "1e6",
        "--memory-fraction",
        "0",
        "--cache-gib",
        "1e6",
        RAY_AUTH_MODE="disabled",
    ).read()
    assert said.code == 1
    said.expect(
        "token", "warning", found="RAY_AUTH_MODE is disabled", fix="ray get-auth-token --generate"
    )
    said.expect("disk", "warning", found=" free", fix="--temp-dir")
    said.expect("slide cache", "warning", found="has room for", fix="a smaller --cache-gib")
    said.expect("memory", "failed", found=" free", fix="give the node more memory")
    assert said.checks["dashboard"]["found"] == "a local Ray has none, and needs none"


def test_it_ends_within_a_minute_whatever_hangs(hanging: Doctor) -> None:
    said = hanging.read()
    assert said.seconds < 60
    assert said.code == 1
    said.expect(
        "ray",
        "failed",
        found="nothing within 20 s",
        fix="RAY_ADDRESS names the head of a running Ray",
    )
    said.expect("storage", "failed", found="nothing within 20 s", fix="curl -m 5 $AWS_ENDPOINT_URL")
    said.expect("bundle", "failed", found="nothing within 20 s", fix="curl -m 5 $AWS_ENDPOINT_URL")
    assert said.list_wrong() == {"ray", "storage", "bundle"}
    assert said.checks["nodes"] == {
        **said.checks["nodes"],
        "status": "not asked",
        "found": "what it needs was not reached",
    }
