"""The lease: at most one writer per output, even if a writer dies at any moment.

A lease is a small object such as `leases/000042`. It is created only if no object with that name
exists: by a conditional put in S3, by an exclusive create in a file system. The run that created
the highest number holds the lease and rewrites the object while it works. If the object has not
been rewritten for too long, or says that it was released, another run may create the next number,
which again only one can do. So does a holder that could not renew its lease in time, after a sleep
for instance: if nobody took it, it goes on. Ages are differences of the store's own timestamps, so
clocks that disagree do no harm. A run on the same machine as a dead holder sees that it is dead and
takes over at once. Elsewhere, it waits for the end of a lease whose renewal is overdue.
"""

import json
import logging
import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError
from pyarrow import fs

from resunet_ray.config.lease import LeaseConfig
from resunet_ray.errors import (
    ConfigError,
    InputError,
    LeaseError,
    ResUNetRayError,
    RunError,
)
from resunet_ray.storage import files, locations
from resunet_ray.storage.clients import connect, os_errors
from resunet_ray.storage.faults import mask_credentials
from resunet_ray.storage.processes import describe_process, is_dead
from resunet_ray.storage.walk import walk_files

logger = logging.getLogger(__name__)

LEASES = "leases"

_RENEWING = threading.Lock()  # not a lease's own: a sweep's callback, which holds it, is pickled
_PAUSE_SECONDS = 1.0
_UNREADABLE_SECONDS = 60.0  # how long to respect a lease whose content cannot be read


@dataclass
class Lease:
    """A lease held by this process, or a copy of it in another one, which only looks."""

    uri: str
    holder: str
    seconds: float
    renewed: float
    """When the lease was last written, by this machine's clock."""
    lost: str | None = None
    """The run that took the lease over, if one did."""
    copied: bool = False
    """Whether this is a copy. It leaves renewing to the process that holds the lease."""

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"copied": True, "seconds": math.inf}

    def check(self) -> None:
        """Check that this run still holds the lease, so that nothing is written twice.

        Raises:
            RunError: another run took the lease over, or may have.
        """
        reason = ""
        if self.copied and self.uri:
            self._look()
        if self._late and self.lost is None:
            try:
                self.renew()
            except (OSError, ResUNetRayError) as error:
                reason = f" ({mask_credentials(str(error))})"
        if self.lost is not None or self._late:
            what = f"was taken over by {self.lost}" if self.lost else "may be taken over"
            raise RunError(
                f"the lease {self.uri} {what}, because this run did not renew it in time{reason}. "
                "What was committed is kept; run the same command again"
            )

    def renew(self) -> None:
        """Say that this process is alive; note it if another run has taken the lease over."""
        folder, number = locations.parent(self.uri), int(self.uri.rsplit("/", 1)[1])
        with _RENEWING:
            newest, began = _newest(folder), time.time()
            content = _content(self.holder, seconds=self.seconds)
            if newest is not None and newest > number:
                state = _read_held(folder, newest) or {"holder": "a run that has ended since"}
                self.lost = state["holder"]
            elif not self._late:
                files.write_bytes(self.uri, content)
                self.renewed = began
            # Another run may be about to take the lease, and only one can create the next.
            elif create_exclusively(uri := locations.join(folder, f"{number + 1:06d}"), content):
                files.delete_file(self.uri)
                self.uri, self.renewed = uri, began
            else:
                self.lost = "a run that came at the same moment"

    def _look(self) -> None:
        """Note it if the newest lease in the storage is another run's."""
        folder = locations.parent(self.uri)
        newest = _newest(folder)
        with suppress(ValueError, InputError):  # it is being written, or the holder just renamed it
            state = json.loads(files.read_bytes(locations.join(folder, f"{newest or 0:06d}")))
            if state["holder"] != self.holder:
                self.lost = state["holder"]

    @property
    def _late(self) -> bool:
        return time.time() - self.renewed > self.seconds


NO_LEASE = Lease(uri="", holder="", seconds=math.inf, renewed=0.0)
"""What a job has whose leases are switched off: nobody takes it over."""


def hold_output(
    config: LeaseConfig, output: str, *, held: Lease | None = None
) -> AbstractContextManager[Lease]:
    """Check that an output can be written to, and hold its lease as a job's configuration says.

    Args:
        config: of the job.
        output: the location that only one run may write to.
        held: a lease of the caller that covers the output, which then needs none of its own.

    Raises:
        ConfigError: the storage cannot keep two runs apart, and leases are on.
        LeaseError: another run holds the lease; the message says which.
        ResourceError: the output cannot be written to.
    """
    files.check_writable(output)
    if held is not None or not config.lease:
        return nullcontext(held or NO_LEASE)
    return hold_lease(output, seconds=config.lease_seconds)


@contextmanager
def hold_lease(output: str, *, seconds: float) -> Iterator[Lease]:
    """Hold the lease of an output while the context lasts, renewing it from a thread.

    Args:
        output: the location that only one run may write to.
        seconds: how long after the last renewal another run may take the lease over.

    Raises:
        LeaseError: another run holds the lease; the message says which.
        ConfigError: the storage has no write that fails if the object exists.
    """
    folder = locations.join(output, LEASES)
    _require_exclusive_writes(folder)
    lease = _acquire(folder, seconds=seconds)
    stop = threading.Event()
    thread = threading.Thread(target=_renew, args=(lease, stop), daemon=True)
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
    while newest is not None and (state := _read_held(folder, newest)) is not None:
        if state["age"] < state["seconds"] / 3:
            raise LeaseError(
                f"another run, {state['holder']}, is writing to {locations.parent(folder)}, so "
                "this run stops. If that run is dead, its lease expires "
                f"{state['seconds']:.0f} s after its last renewal"
            )
        # Its last renewal is overdue: its machine may be lost.
        time.sleep(_PAUSE_SECONDS)
        newest = _newest(folder)
    number = 1 if newest is None else newest + 1
    uri = locations.join(folder, f"{number:06d}")
    began = time.time()
    if not create_exclusively(uri, _content(holder, seconds=seconds)) or _newest(folder) != number:
        raise LeaseError(f"another run took the lease {uri} at the same moment, so this run stops")
    if create_exclusively(uri, b"a second one"):
        files.delete_file(uri)
        raise ConfigError(
            f"the storage of {folder} ignores conditions (If-None-Match), so it cannot keep two "
            "runs apart. Make sure that only one run writes there, and pass --no-lease"
        )
    for name, _ in files.list_files(folder):
        if name.isdigit() and int(name) < number:
            files.delete_file(locations.join(folder, name))
    return Lease(uri, holder, seconds, began)


def _newest(folder: str) -> int | None:
    if not files.exists(folder):
        return None
    return max((int(name) for name, _ in files.list_files(folder) if name.isdigit()), default=None)


def _read_held(folder: str, number: int) -> dict[str, Any] | None:
    """Return the content of a lease, or None if it was released, it expired or its holder died."""
    uri = locations.join(folder, f"{number:06d}")
    state: dict[str, Any] = {"holder": "unknown", "released": False, "seconds": _UNREADABLE_SECONDS}
    with suppress(ValueError):  # not JSON: the write was interrupted
        state = json.loads(files.read_bytes(uri))
    if state["released"] or is_dead(state.get("process")):
        return None
    state["age"] = _age_seconds(uri)
    return None if state["age"] > state["seconds"] else state


def _age_seconds(uri: str) -> float:
    """Return the seconds since a file was written, by the storage's clock.

    The storage's present time is that of a file written now.
    """
    probe = f"{uri}.{uuid.uuid4().hex}"
    files.write_bytes(probe, b"now")
    try:
        now = next(iter(walk_files(probe))).mtime
        return (now - next(iter(walk_files(uri))).mtime).total_seconds()
    finally:
        files.delete_file(probe)


def _renew(lease: Lease, stop: threading.Event) -> None:
    while lease.lost is None and not stop.wait(lease.seconds / 4):
        try:
            lease.renew()
        except Exception as error:  # noqa: BLE001 (the store may come back; until then the lease ages)
            logger.warning(
                "the lease %s could not be renewed: %s",
                lease.uri,
                mask_credentials(str(error)),
            )


def _content(holder: str, *, seconds: float, released: bool = False) -> bytes:
    state = {"holder": holder, "process": describe_process(os.getpid()), "seconds": seconds}
    return json.dumps({**state, "released": released, "written": time.time()}).encode()


def _require_exclusive_writes(folder: str) -> None:
    filesystem, _ = locations.open_filesystem(folder)
    if not isinstance(filesystem, (fs.LocalFileSystem, fs.S3FileSystem)):
        raise ConfigError(
            f"{folder}: this storage has no write that fails if the object exists, so it cannot "
            "keep two runs apart. Make sure that only one run writes there, and pass --no-lease"
        )


def create_exclusively(uri: str, content: bytes) -> bool:
    """Write a file unless it exists, and return whether it was written.

    Raises:
        ResourceError: it cannot be written.
    """
    return files.attempt(uri, lambda filesystem, path: _create(filesystem, path, content))


def _create(filesystem: fs.FileSystem, path: str, content: bytes) -> bool:
    if isinstance(filesystem, fs.LocalFileSystem):
        filesystem.create_dir(path.rsplit("/", 1)[0], recursive=True)
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return Path(path).read_bytes() == content  # as below
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        return True
    bucket, _, key = path.partition("/")
    client = connect(bucket).s3
    with os_errors():
        try:
            client.put_object(Bucket=bucket, Key=key, Body=content, IfNoneMatch="*")
        except ClientError as error:
            # 412: the object exists. 409: another conditional write of it is in progress.
            if error.response["ResponseMetadata"]["HTTPStatusCode"] not in (409, 412):
                raise
        else:
            return True
        # It may be this one, if the answer to an earlier attempt was lost.
        with suppress(client.exceptions.NoSuchKey):
            return bool(client.get_object(Bucket=bucket, Key=key)["Body"].read() == content)
    return False
