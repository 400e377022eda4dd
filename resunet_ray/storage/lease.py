"""The lease: one writer for each output, whoever dies and whenever.

A lease is a small object `leases/000042`, made only if no object of that name is there: a conditional put in S3, an exclusive
create in a file system. Whoever made the highest number holds it, and rewrites it while it works. One that was not rewritten
for too long, or that says it was given back, is followed by the next number, which again only one can make. Ages are
differences of the store's own times, so clocks that disagree do no harm. Whoever stands on the machine of a holder that died
sees that, and follows at once.
"""

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import botocore.exceptions
from pyarrow import fs

from resunet_ray.errors import ConfigError, LeaseError, RunError
from resunet_ray.storage import files
from resunet_ray.storage.walk import s3_client, walk_files

logger = logging.getLogger(__name__)

LEASES = "leases"

_PROC = Path("/proc")
_UNREADABLE_SECONDS = 60.0  # how long a lease is believed that does not say


@dataclass
class Lease:
    """A lease that this process holds."""

    uri: str
    holder: str
    seconds: float
    renewed: float
    """When it was last written, by this machine's clock."""
    lost: str | None = None
    """Who took it over, once somebody did."""

    def check(self) -> None:
        """Raises RunError if another run took the lease over, or may have: what this one still wrote would be written twice."""
        if self.lost is None and time.time() - self.renewed > self.seconds:
            self.lost = "nobody yet, but any run may"
        if self.lost is not None:
            raise RunError(
                f"the lease {self.uri} was taken over by {self.lost}: this run did not renew it in time. "
                "What it committed is kept; run it again"
            )


@contextmanager
def hold_lease(output: str, *, seconds: float) -> Iterator[Lease]:
    """Holds the lease of an output, renewed by a thread, and gives it back at the end.

    Args:
        output: the location that only one run may write to.
        seconds: after so long without renewal another run may take it over.

    Raises:
        LeaseError: another run holds it; the message says which.
        ConfigError: the storage has no write that fails where something is there already.
    """
    folder = files.join(output, LEASES)
    _require_exclusive_writes(folder)
    lease = _acquire(folder, seconds=seconds)
    stop = threading.Event()
    thread = threading.Thread(
        target=_renew,
        args=(lease, stop),
        kwargs={"folder": folder, "seconds": seconds},
        daemon=True,
    )
    thread.start()
    try:
        yield lease
    finally:
        stop.set()
        thread.join()
        if lease.lost is None:
            files.write_bytes(lease.uri, _content(lease.holder, seconds=seconds, released=True))


def _acquire(folder: str, *, seconds: float) -> Lease:
    holder = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
    newest = _newest(folder)
    if newest is not None and (state := _read_held(folder, newest)) is not None:
        raise LeaseError(
            f"another run, {state['holder']}, is writing to {files.parent(folder)}: this one leaves it alone. "
            f"If that run is dead, its lease ends {state['seconds']:.0f} s after its last sign of life"
        )
    number = 1 if newest is None else newest + 1
    uri = files.join(folder, f"{number:06d}")
    began = time.time()
    if not create_exclusively(uri, _content(holder, seconds=seconds)) or _newest(folder) != number:
        raise LeaseError(
            f"another run took the lease {uri} at the same moment: this one leaves it alone"
        )
    if create_exclusively(uri, b"a second one"):
        files.delete_file(uri)
        raise ConfigError(
            f"the storage of {folder} ignores conditions (If-None-Match), so two runs could not be kept apart. "
            "Make sure that only one runs, and say --no-lease"
        )
    for name, _ in files.list_files(folder):
        if name.isdigit() and int(name) < number:
            files.delete_file(files.join(folder, name))
    return Lease(uri, holder, seconds, began)


def _newest(folder: str) -> int | None:
    if not files.exists(folder):
        return None
    return max((int(name) for name, _ in files.list_files(folder) if name.isdigit()), default=None)


def _read_held(folder: str, number: int) -> dict[str, Any] | None:
    """What a lease says; None if it was given back, or not renewed for longer than its holder promised."""
    uri = files.join(folder, f"{number:06d}")
    state: dict[str, Any] = {"holder": "unknown", "released": False, "seconds": _UNREADABLE_SECONDS}
    with suppress(ValueError):  # a write that was cut short
        state = json.loads(files.read_bytes(uri))
    return (
        None
        if state["released"]
        or _is_dead(state.get("process"))
        or _age_seconds(uri) > state["seconds"]
        else state
    )


def _age_seconds(uri: str) -> float:
    """Seconds since a file was written, by the clock of the storage: that of a file written now, less its own."""
    probe = f"{uri}.{uuid.uuid4().hex}"
    files.write_bytes(probe, b"now")
    try:
        now = next(iter(walk_files(probe))).mtime
        return (now - next(iter(walk_files(uri))).mtime).total_seconds()
    finally:
        files.delete_file(probe)


def _renew(lease: Lease, stop: threading.Event, *, folder: str, seconds: float) -> None:
    while not stop.wait(seconds / 4):
        try:
            newest = _newest(folder)
            if newest is not None and newest > int(lease.uri.rsplit("/", 1)[1]):
                lease.lost = (
                    _read_held(folder, newest) or {"holder": "a run that has ended since"}
                )["holder"]
                return
            began = time.time()
            files.write_bytes(lease.uri, _content(lease.holder, seconds=seconds))
            lease.renewed = began
        except Exception as error:  # noqa: BLE001 (a store that is away may come back; meanwhile the lease ages)
            logger.warning(
                "the lease %s could not be renewed: %s",
                lease.uri,
                files.mask_credentials(str(error)),
            )


def _content(holder: str, *, seconds: float, released: bool = False) -> bytes:
    state = {
        "holder": holder,
        "process": _describe_process(os.getpid()),
        "released": released,
        "seconds": seconds,
    }
    return json.dumps({**state, "written": time.time()}).encode()


def _describe_process(pid: int) -> list[str] | None:
    """What no two processes share: the machine's boot, the container's process namespace, the number, and when it started.

    None where the system does not say: only Linux does, and not always of another user's process.
    """
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        namespace = str((_PROC / "self/ns/pid").readlink())
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return [
        boot,
        namespace,
        str(pid),
        "ended" if fields[0] == "Z" else fields[19],
    ]  # proc(5): state is field 3, starttime 22


def _is_dead(process: list[str] | None) -> bool:
    """Whether a holder on this very machine, and in the same container if any, has ended."""
    own = _describe_process(os.getpid())
    if process is None or own is None or process[:2] != own[:2]:
        return False
    try:
        os.kill(int(process[2]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return _describe_process(int(process[2])) not in (None, process)


def _require_exclusive_writes(folder: str) -> None:
    filesystem, _ = files.open_filesystem(folder)
    if not isinstance(filesystem, (fs.LocalFileSystem, fs.S3FileSystem)):
        raise ConfigError(
            f"{folder}: no write that fails where something is there already is known for this storage, so two runs could not be "
            "kept apart. Make sure that only one runs, and say --no-lease"
        )


def create_exclusively(uri: str, content: bytes) -> bool:
    """Writes a file unless one of that name is there; whether it did."""
    filesystem, path = files.open_filesystem(uri)
    if isinstance(filesystem, fs.LocalFileSystem):
        filesystem.create_dir(path.rsplit("/", 1)[0], recursive=True)
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        return True
    bucket, _, key = path.partition("/")
    try:
        s3_client().put_object(Bucket=bucket, Key=key, Body=content, IfNoneMatch="*")
    except botocore.exceptions.ClientError as error:
        # 412: it is there. 409: another conditional write of it is under way.
        if error.response["ResponseMetadata"]["HTTPStatusCode"] not in (409, 412):
            raise
        # Or it is this very one, and the answer to the first attempt was lost.
        return files.read_bytes(uri) == content
    return True
