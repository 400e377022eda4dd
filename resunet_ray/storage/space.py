"""The space of the staging cache: its folder, its entries, and eviction (see `staging`)."""

import fcntl
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from resunet_ray.errors import ResourceError

FILES, PART = "files", ".part"

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


def cache_folder(folder: str) -> Path:
    """Return the cache's own folder below a folder: one per user."""
    return Path(folder) / f"resunet_ray-{os.geteuid()}"


def open_cache(folder: str) -> Path:
    """Return the cache's own folder, creating it if needed.

    Raises:
        ResourceError: the folder belongs to another user, is open to others, or is not a cache.
    """
    place = cache_folder(folder)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            place.mkdir(mode=0o700)
        found = place.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise ResourceError(
                f"{place} is not a folder that only this user may read and write: remove it, or "
                "give --cache another folder"
            )
        if not (place / _TAG).exists():
            if any(place.iterdir()) and not (place / _TAG).exists():
                raise ResourceError(
                    f"{place} is not a staging cache ({_TAG} is missing): give --cache another "
                    "folder"
                )
            (place / _TAG).write_text(_TAG_CONTENT)
    except OSError as error:
        raise ResourceError(
            f"the staging cache {place} cannot be used: {error}. Give --cache another folder"
        ) from None
    return place


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
    """Start an entry, or enlarge one, once there is space for all of it.

    Raises:
        ResourceError: other processes kept using their entries for too long.
    """
    deadline, folder = time.monotonic() + _WAIT_SECONDS, part.parent
    while True:
        with making_room(folder):
            held = _make_room(folder, max_bytes=max_bytes - sum(sizes.values()), beside=part)
            if held is None:
                part.mkdir(exist_ok=True)
                write_record(part, sizes)
                return
        if time.monotonic() > deadline:
            raise ResourceError(
                f"the staging cache {folder} has had no free space for an hour: {held} bytes are "
                "in use. Raise --cache-gib"
            )
        time.sleep(_LOOK_SECONDS)


def making_room(folder: Path) -> AbstractContextManager[None]:
    """Lock out other processes that make room, and renames that would mislead them."""
    return lock(folder / "space", shared=False)


def write_record(place: Path, sizes: dict[str, int]) -> None:
    """Record the size in bytes that each file of an entry has or will have."""
    new = place / f"{_RECORD}.new"
    new.write_text(json.dumps(sizes))
    new.replace(place / _RECORD)


def _make_room(folder: Path, *, max_bytes: int, beside: Path) -> int | None:
    """Evict unused entries, least recently used first, until they take at most `max_bytes`.

    The entry `beside` does not count. Returns None on success, else the bytes that remain in use.
    Only one process does this at a time.
    """
    entries = [
        entry for entry in folder.iterdir() if _ENTRY.fullmatch(entry.name) and entry != beside
    ]
    sizes: dict[Path, int] = {}
    used: dict[Path, float] = {}
    for entry in entries:
        with suppress(FileNotFoundError):  # another process completed or abandoned a part
            newest = max(item.stat().st_mtime for item in (entry, *entry.rglob("*")))
            record = _read_record(entry)
            if entry.suffix == PART and time.time() - newest > _STALE_SECONDS:
                shutil.rmtree(entry, ignore_errors=True)
                continue
            sizes[entry], used[entry] = sum((record or {}).values()), entry.stat().st_mtime
    for entry in sorted(sizes, key=lambda entry: used[entry]):
        if sum(sizes.values()) <= max_bytes:
            return None
        if entry.suffix == PART:
            continue
        with suppress(BlockingIOError), lock(entry, shared=False, wait=False):
            shutil.rmtree(entry, ignore_errors=True)
            sizes.pop(entry)
    held = sum(sizes.values())
    return None if held <= max_bytes else held


@contextmanager
def lock(place: Path, *, shared: bool, wait: bool = True) -> Iterator[None]:
    """Lock an entry: shared to read it, exclusively to create or remove it.

    Raises:
        BlockingIOError: another process holds the lock, and `wait` is False.
    """
    with place.with_name(f"{place.name}.lock").open("a") as file:
        fcntl.flock(
            file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
        )
        yield
