"""The storage: small and large files written, read and removed, and one writer kept apart from another."""

import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import botocore.exceptions

from resunet_ray import storage
from resunet_ray.config import DoctorConfig
from resunet_ray.doctor.finding import Finding, describe, failed, not_asked, ok, warning
from resunet_ray.errors import ResUNetRayError

_SMALL, _LARGE = 64, 2**22  # bytes
_LEASE_SECONDS = 60.0
KEYS = (
    "Look at the keys and their rights (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE or the machine's role: read, "
    "write, list, delete), at AWS_ENDPOINT_URL, and at whether the bucket is there"
)
_APART = "a write that fails where something is there already (If-None-Match)"


@dataclass(frozen=True)
class Probe:
    """What a process makes of a storage."""

    seconds: float
    """Of a small file, written and read."""
    mib_per_second: float
    """Of a larger one, written and read."""
    one_writer: str | None
    """Why two runs could not be kept apart; None: they can."""


def new_folder(uri: str) -> str:
    """A folder for probes, below a location."""
    return storage.join(storage.absolute(uri), f".doctor-{uuid.uuid4().hex[:12]}")


def probe(folder: str, name: str) -> Probe:
    """Writes, reads and removes a file, writes and reads a larger one, which stays for others to look at, and holds a lease.

    Args:
        folder: for probes.
        name: of this process in it.

    Raises:
        ResUNetRayError: the storage cannot be written, read or deleted in.
        OSError: it does not give what was written.
    """
    small = storage.join(folder, f"{name}-small")
    _write_and_read(small, _SMALL)  # makes the connection
    seconds = _write_and_read(small, _SMALL)
    storage.delete_file(small)
    rate = _LARGE / 2**20 / _write_and_read(storage.join(folder, name), _LARGE)
    try:
        with storage.hold_lease(storage.join(folder, f"{name}-lease"), seconds=_LEASE_SECONDS):
            pass
    except (
        ResUNetRayError,
        botocore.exceptions.ClientError,
        botocore.exceptions.BotoCoreError,
    ) as error:
        return Probe(seconds, rate, describe(error))
    return Probe(seconds, rate, None)


def _write_and_read(location: str, size: int) -> float:
    """Seconds that it took."""
    content = os.urandom(size)
    begun = time.perf_counter()
    storage.write_bytes(location, content, pauses=())
    if storage.read_bytes(location, pauses=()) != content:
        raise OSError(f"{location}: what was read differs from what was written")
    return time.perf_counter() - begun


def list_names(folder: str) -> list[str]:
    """Who left a probe that this process sees."""
    return (
        [name for name, _ in storage.list_files(folder, recursive=False)]
        if storage.exists(folder)
        else []
    )


def examine(config: DoctorConfig) -> Iterator[Finding]:
    """What this process makes of the storage."""
    assert config.storage is not None
    folder = new_folder(config.storage)
    try:
        found = probe(folder, "driver")
    except (ResUNetRayError, OSError) as error:
        yield failed(
            "storage",
            describe(error),
            expected="a location that this process may write, read and delete in",
            fix=KEYS,
        )
        yield not_asked("one writer", "the storage cannot be used")
        return
    yield judge_speed("storage", {"this process": found}, config)
    yield judge_one_writer("one writer", {"this process": found})
    storage.delete(folder)


def judge_speed(check: str, probes: dict[str, Probe], config: DoctorConfig) -> Finding:
    """Whether files come and go fast enough."""
    slowest = max(probes.values(), key=lambda item: item.seconds)
    rate = min(item.mib_per_second for item in probes.values())
    found = f"{config.storage}: a small file in {slowest.seconds * 1000:.0f} ms, {rate:.0f} MiB/s"
    if slowest.seconds <= config.storage_seconds and rate >= config.storage_mib_per_second:
        return ok(check, found)
    return warning(
        check,
        f"{found} at the slowest of {len(probes)}",
        expected=f"at most {config.storage_seconds * 1000:.0f} ms and at least {config.storage_mib_per_second:.0f} MiB/s",
        fix="Use storage in the same region or network as the nodes, and look at what else uses it now",
    )


def judge_one_writer(check: str, probes: dict[str, Probe]) -> Finding:
    """Whether two runs over one output are kept apart."""
    unfit = next((item.one_writer for item in probes.values() if item.one_writer), None)
    if unfit is None:
        return ok(check, f"the storage knows {_APART}")
    return failed(
        check,
        unfit,
        expected=_APART,
        fix="Say --no-lease to jobs/segment.py and see that one run at a time writes to an output",
    )
