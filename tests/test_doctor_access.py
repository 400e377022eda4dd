"""The doctor finds what stands between this machine and an object store, and says what to do."""

import os
from datetime import timedelta

import pytest
from benchmarks.faulty import Answer, faulty_store
from machine import MetadataService

from resunet_ray.config import DoctorConfig
from resunet_ray.doctor.check import CHECKS, Finding, Surroundings, run_checks
from resunet_ray.doctor.checkup import list_checks


def look(group: str, folder: str) -> dict[str, Finding]:
    """Make the checks of a group, in this process."""
    judges = {check.name: check.judge for check in list_checks() if check.group == group}
    config = DoctorConfig(storage=folder)
    verdicts = run_checks(judges, Surroundings(config, folder))
    return {name: CHECKS[name].conclude(verdict, config) for name, verdict in verdicts.items()}


def expect(finding: Finding, *, status: str, found: str, fix: str) -> None:
    assert finding.status == status, finding
    assert found in finding.found, finding
    assert fix in finding.fix, finding


def test_a_busy_metadata_service_is_found(machine: MetadataService, s3: str) -> None:
    machine.decide = lambda _: 429
    for group, check in (("access to storage", "credentials"), ("storage", "storage")):
        said = look(group, f"{s3}/doctor-busy")
        expect(
            said[check],
            status="failed",
            found=f"metadata service at {machine.endpoint.removeprefix('http://')}",
            fix="start fewer processes",
        )
        assert {item.status for name, item in said.items() if name != check} == {"not asked"}


def test_a_machine_without_credentials_is_found(machine: MetadataService, s3: str) -> None:
    machine.decide = lambda _: 404
    said = look("access to storage", f"{s3}/doctor-nobody")
    expect(said["credentials"], status="warning", found="none were found", fix="AWS_PROFILE")


def test_nothing_is_wrong_with_a_role(machine: MetadataService, s3: str) -> None:
    said = look("access to storage", f"{s3}/doctor-role")
    assert {item.status for item in said.values()} == {"ok"}, said
    assert "iam-role" in said["credentials"].found


@pytest.mark.parametrize(
    ("code", "fix"),
    [("ExpiredToken", "Renew them"), ("RequestTimeTooSkewed", "timedatectl set-ntp true")],
)
def test_what_a_store_refuses_is_told_apart(
    s3: str, monkeypatch: pytest.MonkeyPatch, code: str, fix: str
) -> None:
    def decide(method: str, _: str) -> Answer:
        return (400, code) if method in ("PUT", "POST") else None

    with faulty_store(os.environ["AWS_ENDPOINT_URL"], decide) as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.endpoint)
        said = look("storage", f"{s3}/doctor-{code}")
    expect(said["storage"], status="failed", found="refuses the credentials", fix=fix)


@pytest.mark.parametrize(
    ("minutes", "status", "found"),
    [
        (-16, "failed", "s ahead of the store's"),
        (16, "failed", "s behind the store's"),
        (6, "warning", "s behind the store's"),
        (4, "ok", "s behind the store's"),
    ],
)
def test_a_wrong_clock_is_found(
    s3: str, monkeypatch: pytest.MonkeyPatch, minutes: int, status: str, found: str
) -> None:
    ahead = timedelta(minutes=minutes)
    with faulty_store(os.environ["AWS_ENDPOINT_URL"], ahead=ahead) as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.endpoint)
        said = look("access to storage", f"{s3}/doctor-clock")["store clock"]
    expect(said, status=status, found=found, fix="" if status == "ok" else "set-ntp")
    seconds = int(said.found.split(" is ")[1].split(" s ")[0])
    assert abs(seconds - 60 * abs(minutes)) <= 3


@pytest.mark.parametrize("listings", [True, False])
def test_a_way_that_only_one_client_gets_through_is_found(
    s3: str, monkeypatch: pytest.MonkeyPatch, listings: bool
) -> None:
    """A proxy that refuses what one of them asks."""

    def decide(_: str, path: str) -> Answer:
        return 407 if ("list-type" in path) == listings else None

    with faulty_store(os.environ["AWS_ENDPOINT_URL"], decide) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.endpoint.replace("//", "//name:secret@"))
        monkeypatch.setenv("NO_PROXY", "elsewhere")
        said = look("access to storage", f"{s3}/doctor-proxy")["both clients"]
    client = "botocore's" if listings else "pyarrow's"
    expect(said, status="failed", found=f"{client} does not reach", fix="NO_PROXY")
    assert "through http://***@127.0.0.1" in said.found
    assert "secret" not in said.found


def test_a_store_that_nobody_reaches_is_left_to_another_check(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    said = look("access to storage", f"{s3}/doctor-nowhere")
    assert said["store clock"].status == said["both clients"].status == "not asked"


def test_a_folder_needs_none_of_this(tmp_path: object) -> None:
    said = look("access to storage", str(tmp_path))
    assert {item.status for item in said.values()} == {"ok"}
