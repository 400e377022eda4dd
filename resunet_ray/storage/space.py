"""The space of the staging cache: its folder, its entries, and eviction (see `staging`)."""

import errno
import fcntl
import functools
import json
import logging
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from resunet_ray.errors import ResourceError

logger = logging.getLogger(__name__)

FILES, PART = "files", ".part"
FULL = (errno.ENOSPC, errno.EDQUOT)

_TAG = "CACHEDIR.TAG"
_TAG_CONTENT = (
    "Signature: 8a477f597d28d172789f06886806bc55\n"
    "# The staging cache of resunet_ray. The whole folder may be deleted.\n"
)
_RECORD = "staged.json"
_ENTRY = re.compile(rf"[0-9a-f]{{32}}(\.[0-9a-f]{{32}}{re.escape(PART)})?")
_STALE_SECONDS = 3600.0  # a part not written to for this long was left by a dead process
_WAIT_SECONDS = 3600.0  # how long to wait for others to finish with entries that they read
_LOOK_SECONDS = 0.5
_SAY_SECONDS = 60.0  # between two log lines of one that waits
_SPARE_BYTES = 2**23  # left free on the disk, for locks and records
_NAMES = 4  # of folders that are tried where the first is taken
_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)


def cache_folder(folder: str) -> Path:
    """Return the cache's own folder below a folder: one per user."""
    return Path(folder) / f"resunet_ray-{os.geteuid()}"


def open_cache(folder: str) -> Path:
    """Return the cache's own folder, creating it if needed.

    If its name is taken, for instance by another user, the folder has another name. If nothing can
    be written or locked there, it is in the folder for temporary files.

    Raises:
        ResourceError: none of these can be used.
    """
    parents = dict.fromkeys((folder, tempfile.gettempdir()))
    wanted, reason = cache_folder(folder), ""
    for first in map(cache_folder, parents):
        for number in range(_NAMES):
            place = first.with_name(f"{first.name}.{number}") if number else first
            try:
                unusable = _claim(place)
            except OSError as error:
                if error.errno not in _CLOSED:
                    raise ResourceError(_describe(place, error)) from None
                reason = reason or str(error)
                break  # nor under another name
            if unusable is None:
                if place != wanted:
                    _say_instead(wanted, place, reason)
                return place
            reason = reason or unusable
    raise ResourceError(_describe(wanted, reason))


def _describe(place: Path, reason: object) -> str:
    return f"the staging cache {place} cannot be used: {reason}. Give --cache another folder"


@functools.cache  # so that it is said once
def _say_instead(wanted: Path, place: Path, reason: str) -> None:
    logger.warning("the staging cache %s cannot be used: %s. Using %s", wanted, reason, place)


def _claim(place: Path) -> str | None:
    """Create the cache's own folder if needed; return why it cannot be used, None if it can."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        place.mkdir(mode=0o700)
    found = place.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        return "it is not a folder that only this user may read and write"
    if not (place / _TAG).exists():
        if any(place.iterdir()) and not (place / _TAG).exists():
            return f"it is not a staging cache ({_TAG} is missing)"
        (place / _TAG).write_text(_TAG_CONTENT)
    return None if _can_lock(place) else "its file system has no locks"


@functools.lru_cache(maxsize=16)
def _can_lock(place: Path) -> bool:
    """Whether a lock keeps a second one out."""
    with (place / "probe.lock").open("a+") as first, (place / "probe.lock").open("a+") as second:
        try:
            fcntl.flock(first, fcntl.LOCK_EX)
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False


def is_whole(place: Path) -> bool:
    """Whether an entry is complete: each file exists and has its recorded size."""
    sizes = _read_record(place)
    if sizes is None:
        return False
    paths = {name: place / FILES / name for name in sizes}
    return all(
        path.is_file() and path.stat().st_size == sizes[name] for name, path in paths.items()
    )


def _read_record(place: Path) -> dict[str, int] | None:
    """Return the size in bytes of each file of an entry, or None if there is no valid record."""
    with suppress(OSError, ValueError):
        sizes: dict[str, int] = json.loads((place / _RECORD).read_text())
        return sizes
    return None


def reserve(part: Path, sizes: dict[str, int], *, max_bytes: int) -> None:
    """Start an entry, or enlarge one, once there is space for all of it, on the disk as well.

    Unused entries make room, and those in use are waited for.

    Raises:
        ResourceError: other processes kept using their entries for too long, or the disk would be
            full even without them.
    """
    begun, folder, said = time.monotonic(), part.parent, 0.0
    while True:
        with making_room(folder):
            lack = _make_room(folder, sizes, max_bytes=max_bytes, beside=part)
            if lack is None:
                part.mkdir(exist_ok=True)
                write_record(part, sizes)
                return
        found = (
            f"{sum(sizes.values())} bytes are wanted, {lack.held} bytes of it are in use, and "
            f"{lack.free} bytes are free on its disk"
        )
        if lack.hopeless:
            raise ResourceError(
                f"the disk of the staging cache {folder} is full: {found}. Free some space there, "
                "or give --cache a folder on another disk"
            )
        waited = time.monotonic() - begun
        if waited > _WAIT_SECONDS:
            raise ResourceError(
                f"the staging cache {folder} has had no room for an hour: {found}. Raise "
                "--cache-gib, or give --cache a folder on a larger disk"
            )
        if waited >= said:
            logger.info("waiting for room in the staging cache %s: %s", folder, found)
            said = waited + _SAY_SECONDS
        time.sleep(_LOOK_SECONDS)


def evict_unused(folder: Path) -> None:
    """Remove every entry that nobody reads."""
    with making_room(folder):
        _make_room(folder, {}, max_bytes=-1, beside=None)


def making_room(folder: Path) -> AbstractContextManager[None]:
    """Lock out other processes that make room, and renames that would mislead them."""
    return lock(folder / "space", shared=False)


def write_record(place: Path, sizes: dict[str, int]) -> None:
    """Record the size in bytes that each file of an entry has or will have."""
    new = place / f"{_RECORD}.new"
    new.write_text(json.dumps(sizes))
    new.replace(place / _RECORD)


class _Lack(NamedTuple):
    """Too little room, in bytes."""

    held: int
    """In use."""
    free: int
    """On the disk."""
    hopeless: bool
    """The disk would be too full even if nothing of the cache were in use."""


def _make_room(
    folder: Path, wanted: dict[str, int], *, max_bytes: int, beside: Path | None
) -> _Lack | None:
    """Evict unused entries, least recently used first, until there is room for another.

    Only one process does this at a time.

    Args:
        folder: the cache's own.
        wanted: sizes of the files of the new entry.
        max_bytes: most bytes that all entries may take.
        beside: the new entry itself, as far as it is there.
    """
    sizes: dict[Path, int] = {}
    used: dict[Path, float] = {}
    unwritten = sum(wanted.values())  # bytes that the disk has still to take
    for entry in [entry for entry in folder.iterdir() if _ENTRY.fullmatch(entry.name)]:
        with suppress(FileNotFoundError):  # another process completed or abandoned a part
            below = [item.stat() for item in (entry, *entry.rglob("*"))]
            written = sum(item.st_size for item in below if stat.S_ISREG(item.st_mode))
            if entry == beside:
                unwritten = max(0, unwritten - written)
                continue
            newest = max(item.st_mtime for item in below)
            if entry.suffix == PART and time.time() - newest > _STALE_SECONDS:
                shutil.rmtree(entry, ignore_errors=True)
                continue
            used[entry] = entry.stat().st_mtime
            sizes[entry] = sum((_read_record(entry) or {}).values())
            unwritten += max(0, sizes[entry] - written)
    free = shutil.disk_usage(folder).free - _SPARE_BYTES
    unused = sorted((entry for entry in sizes if entry.suffix != PART), key=lambda it: used[it])
    while sum(sizes.values()) + sum(wanted.values()) > max_bytes or unwritten > free:
        if not unused:
            held = sum(sizes.values())
            return _Lack(held, free, hopeless=unwritten > free + held)
        entry = unused.pop(0)
        with suppress(BlockingIOError), lock(entry, shared=False, wait=False):
            shutil.rmtree(entry, ignore_errors=True)
            free += sizes.pop(entry)
    return None


@contextmanager
def lock(place: Path, *, shared: bool, wait: bool = True) -> Iterator[None]:
    """Lock an entry: shared to read it, exclusively to create or remove it.

    Raises:
        BlockingIOError: another process holds the lock, and `wait` is False.
        ResourceError: the file system refuses.
    """
    kind = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    with ExitStack() as opened:
        try:
            # NFS locks a file for reading only if it was opened for reading.
            file = opened.enter_context(place.with_name(f"{place.name}.lock").open("a+"))
            fcntl.flock(file, kind)
        except BlockingIOError:
            raise
        except OSError as error:
            raise ResourceError(_describe(place.parent, error)) from None
        yield
