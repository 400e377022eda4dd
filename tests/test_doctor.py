"""The doctor finds what was planted and says how to fix it, and ends whatever hangs."""

import hashlib
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import cv2
import pytest
from doctor_runs import (
    AUTH,
    BIN,
    PATIENT,
    ROOMY,
    Doctor,
    Head,
    clean_environment,
    head_started,
    read_checks,
)
from support import ROOT, free_port, read_picture, relayed

from resunet_ray.doctor.checkup import list_checks
from resunet_ray.doctor.machine import judge_devices

CHECKS = {check.name: check for check in list_checks()}


@pytest.fixture(scope="module")
def head(s3: str) -> Iterator[Head]:
    with head_started() as started:
        yield started


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
