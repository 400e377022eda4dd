"""The room of the staging cache: its folder, its entries, what leaves it when it is full (see `staging`)."""

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
_TAG_CONTENT = "Signature: 8a477f597d28d172789f06886806bc55\n# The staging cache of resunet_ray: it may be deleted as a whole.\n"
_RECORD = "staged.json"
_ENTRY = re.compile(rf"[0-9a-f]{{32}}(\.[0-9a-f]{{32}}{re.escape(PART)})?")
_STALE_SECONDS = 3600.0  # a part that nobody wrote to for so long was left by a process that died
_WAIT_SECONDS = 3600.0  # for others to be done with what they read
_LOOK_SECONDS = 0.5


def cache_folder(folder: str) -> Path:
    """The cache's own folder below the one that is given: one for each user."""
    return Path(folder) / f"resunet_ray-{os.geteuid()}"


def open_cache(folder: str) -> Path:
    """The cache's own folder, made where it is not there.

    Raises:
        ResourceError: what is there is not this user's, or no cache.
    """
    place = cache_folder(folder)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            place.mkdir(mode=0o700)
        found = place.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise ResourceError(
                f"{place} is not a folder that this user alone may read and write: remove it, or give --cache another folder"
            )
        if not (place / _TAG).exists():
            if any(place.iterdir()) and not (place / _TAG).exists():
                raise ResourceError(
                    f"{place} is no staging cache ({_TAG} is missing): give --cache another folder"
                )
            (place / _TAG).write_text(_TAG_CONTENT)
    except OSError as error:
        raise ResourceError(
            f"the staging cache {place} cannot be used: {error}. Give --cache another folder"
        ) from None
    return place


def is_whole(place: Path) -> bool:
    """Whether all of an entry is there, each file with the bytes that it is to have."""
    sizes = _read_record(place)
    if sizes is None:
        return False
    there = {name: place / FILES / name for name in sizes}
    return all(
        path.is_file() and path.stat().st_size == sizes[name] for name, path in there.items()
    )


def _read_record(place: Path) -> dict[str, int] | None:
    """The bytes of each file that an entry holds, or will hold; None: it says nothing."""
    with suppress(OSError, ValueError):
        sizes: dict[str, int] = json.loads((place / _RECORD).read_text())
        return sizes
    return None


def reserve(part: Path, sizes: dict[str, int], *, max_bytes: int) -> None:
    """Begins an entry, or goes on with one that is larger than it was thought, once there is room for all of it.

    Raises:
        ResourceError: others do not let go of what they read.
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
                f"the staging cache {folder} has had no room for an hour: {held} bytes are in use. Give --cache-gib more"
            )
        time.sleep(_LOOK_SECONDS)


def making_room(folder: Path) -> AbstractContextManager[None]:
    """Keeps all others from making room, and from what would mislead them in it."""
    return lock(folder / "space", shared=False)


def write_record(place: Path, sizes: dict[str, int]) -> None:
    """Says what bytes each file of an entry has, or will have."""
    new = place / f"{_RECORD}.new"
    new.write_text(json.dumps(sizes))
    new.replace(place / _RECORD)


def _make_room(folder: Path, *, max_bytes: int, beside: Path) -> int | None:
    """Removes what was not used for longest and is not in use, until all but one entry takes no more than so many bytes.

    Gives the bytes that are in use where that cannot be. No two processes do this at a time.
    """
    entries = [
        entry for entry in folder.iterdir() if _ENTRY.fullmatch(entry.name) and entry != beside
    ]
    sizes: dict[Path, int] = {}
    used: dict[Path, float] = {}
    for entry in entries:
        with suppress(FileNotFoundError):  # a part has become whole, or was given up
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
    """Holds an entry. While it is shared, it is read; else it is made or removed.

    Raises:
        BlockingIOError: somebody else holds it, and this one is not to wait.
    """
    with place.with_name(f"{place.name}.lock").open("a") as file:
        fcntl.flock(
            file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
        )
        yield
