"""The staging cache: files of object storage whole on this node's disk, for libraries that read nothing else.

FOLDER/resunet_ray-UID/     this user's own; nothing else in FOLDER is touched, and nobody else reads or writes here
    CACHEDIR.TAG            says that it is a cache
    space.lock              held by who makes room
    NAME/files/             one staged file, with what belongs to it; NAME is a digest of location and fingerprint
    NAME/staged.json        the bytes of each
    NAME.lock               held shared by those who read it, alone by who brings or removes it

Several processes bring a file once. It appears whole, by one rename. When the cache is full, what was not used for longest
leaves; what is on its way counts with all of its bytes.
"""

import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from pyarrow import fs

from resunet_ray.errors import InputError, ResourceError
from resunet_ray.storage import files
from resunet_ray.storage.reader import Reader
from resunet_ray.storage.walk import walk_files

logger = logging.getLogger(__name__)

_CHUNK = 2**23  # bytes
_TAG = "CACHEDIR.TAG"
_TAG_CONTENT = "Signature: 8a477f597d28d172789f06886806bc55\n# The staging cache of resunet_ray: it may be deleted as a whole.\n"
_FILES, _RECORD, _PART = "files", "staged.json", ".part"
_ENTRY = re.compile(rf"[0-9a-f]{{32}}(\.[0-9a-f]{{32}}{re.escape(_PART)})?")
_STALE_SECONDS = 3600.0  # a part that nobody wrote to for so long was left by a process that died
_WAIT_SECONDS = 3600.0  # for others to be done with what they read
_LOOK_SECONDS = 0.5
_Wanted = tuple[str, str, int]  # a file: where it is, its path beside the others, its bytes


@contextmanager
def stage(uri: str, *, fingerprint: str, companions: Sequence[str], folder: str, max_bytes: int) -> Iterator[str]:
    """The path of a file on this machine, for as long as the context lasts; one that lies here already is used as it is.

    Args:
        uri: the file.
        fingerprint: what changes when its content does.
        companions: folders or files that belong beside it.
        folder: where the cache's own folder is, on this node's disk.
        max_bytes: that the cache may hold.

    Raises:
        InputError: it or a companion is not there, or they are larger than the cache.
        ResourceError: the storage stays away, or the cache cannot be used.
    """
    filesystem, path = files.open_filesystem(uri)
    beside = [file for companion in companions for file in _list_companion(companion, of=uri)]
    if isinstance(filesystem, fs.LocalFileSystem):
        yield path
        return
    known = f"{uri}\0{fingerprint}" + "".join(f"\0{name}\0{size}" for _, name, size in beside)
    name = hashlib.sha256(known.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    place = _open_cache(folder) / name
    while True:
        with _lock(place, shared=True):
            if _is_whole(place):
                os.utime(place, ns=(time.time_ns(), time.time_ns()))  # used now; the kernel's own "now" lags some milliseconds
                yield str(place / _FILES / uri.rsplit("/", 1)[1])
                return
        with _lock(place, shared=False):
            if not _is_whole(place):
                shutil.rmtree(place, ignore_errors=True)
                _bring([*_below(uri), *beside], place=place, max_bytes=max_bytes)


def cache_folder(folder: str) -> Path:
    """The cache's own folder below the one that is given: one for each user."""
    return Path(folder) / f"resunet_ray-{os.geteuid()}"


def _open_cache(folder: str) -> Path:
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
                raise ResourceError(f"{place} is no staging cache ({_TAG} is missing): give --cache another folder")
            (place / _TAG).write_text(_TAG_CONTENT)
    except OSError as error:
        raise ResourceError(f"the staging cache {place} cannot be used: {error}. Give --cache another folder") from None
    return place


def _is_whole(place: Path) -> bool:
    """Whether all of an entry is there, each file with the bytes that it is to have."""
    sizes = _read_record(place)
    if sizes is None:
        return False
    there = {name: place / _FILES / name for name in sizes}
    return all(path.is_file() and path.stat().st_size == sizes[name] for name, path in there.items())


def _read_record(place: Path) -> dict[str, int] | None:
    """The bytes of each file that an entry holds, or will hold; None: it says nothing."""
    with suppress(OSError, ValueError):
        sizes: dict[str, int] = json.loads((place / _RECORD).read_text())
        return sizes
    return None


def _bring(wanted: Sequence[_Wanted], *, place: Path, max_bytes: int) -> None:
    for _, name, _ in wanted:
        if {"", ".", ".."} & set(name.split("/")):
            raise InputError(f"{wanted[0][0]} belongs with {name!r}, which is no path below it")
    total = sum(size for _, _, size in wanted)
    if total > max_bytes:
        raise InputError(f"{wanted[0][0]} takes {total} bytes: the staging cache holds {max_bytes}. Give --cache-gib more")
    part = place.with_name(f"{place.name}.{uuid.uuid4().hex}{_PART}")
    try:
        _reserve(part, {name: size for _, name, size in wanted}, max_bytes=max_bytes)
        for uri, name, _ in wanted:
            target = part / _FILES / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with Reader(uri) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink, _CHUNK)
        part.rename(place)
    except OSError as error:
        raise ResourceError(
            f"{wanted[0][0]} cannot be staged in {place.parent}: {error}. Make room there, or give --cache another disk"
        ) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _below(uri: str) -> Iterator[_Wanted]:
    base = uri.rsplit("/", 1)[1]
    for file in walk_files(uri):
        yield (files.join(uri, file.path) if file.path else uri), f"{base}/{file.path}".rstrip("/"), file.size


def _list_companion(uri: str, *, of: str) -> list[_Wanted]:
    try:
        return list(_below(uri))
    except InputError as error:
        raise InputError(f"{of} is not whole: {error}. It belongs to the slide: put it beside the file") from None


def _reserve(part: Path, sizes: dict[str, int], *, max_bytes: int) -> None:
    """Begins an entry once there is room for all of it.

    Raises:
        ResourceError: others do not let go of what they read.
    """
    deadline, folder = time.monotonic() + _WAIT_SECONDS, part.parent
    while True:
        with _lock(folder / "space", shared=False):
            held = _make_room(folder, max_bytes=max_bytes - sum(sizes.values()))
            if held is None:
                part.mkdir()
                (part / _RECORD).write_text(json.dumps(sizes))
                return
        if time.monotonic() > deadline:
            raise ResourceError(
                f"the staging cache {folder} has had no room for an hour: {held} bytes are in use. Give --cache-gib more"
            )
        time.sleep(_LOOK_SECONDS)


def _make_room(folder: Path, *, max_bytes: int) -> int | None:
    """Removes what was not used for longest and is not in use, until the rest takes no more than so many bytes.

    Gives the bytes that are in use where that cannot be. No two processes do this at a time.
    """
    entries = [entry for entry in folder.iterdir() if _ENTRY.fullmatch(entry.name)]
    sizes: dict[Path, int] = {}
    used: dict[Path, float] = {}
    for entry in entries:
        with suppress(FileNotFoundError):  # a part has become whole, or was given up
            newest = max(item.stat().st_mtime for item in (entry, *entry.rglob("*")))
            record = _read_record(entry)
            if entry.suffix == _PART and time.time() - newest > _STALE_SECONDS:
                shutil.rmtree(entry, ignore_errors=True)
                continue
            sizes[entry], used[entry] = sum((record or {}).values()), entry.stat().st_mtime
    for entry in sorted(sizes, key=lambda entry: used[entry]):
        if sum(sizes.values()) <= max_bytes:
            return None
        if entry.suffix == _PART:
            continue
        with suppress(BlockingIOError), _lock(entry, shared=False, wait=False):
            shutil.rmtree(entry, ignore_errors=True)
            sizes.pop(entry)
    held = sum(sizes.values())
    return None if held <= max_bytes else held


@contextmanager
def _lock(place: Path, *, shared: bool, wait: bool = True) -> Iterator[None]:
    with place.with_name(f"{place.name}.lock").open("a") as file:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        yield
