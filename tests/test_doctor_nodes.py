"""The doctor finds what was planted on one node of a cluster, and tells it from a busy one."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from subprocess import PIPE

import pytest
from doctor_runs import (
    AUTH,
    BIN,
    PATIENT,
    ROOMY,
    Doctor,
    Head,
    Said,
    clean_environment,
    head_started,
    ray_started,
)
from support import ROOT

pytestmark = pytest.mark.campaign

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


@pytest.fixture(scope="module")
def head(s3: str) -> Iterator[Head]:
    with head_started() as started:
        yield started


@pytest.fixture(scope="module")
def ill(
    head: Head, bundle_uri: str, tmp_path_factory: pytest.TempPathFactory
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
def test_it_finds_what_is_wrong_with_one_node(
    ill: dict[str, Said], check: str, status: str, found: str, fix: str
) -> None:
    said = ill["ill"]
    assert said.code == 1
    said.expect(check, status, found=found, fix=fix)


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
