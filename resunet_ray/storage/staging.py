"""The staging cache: files of object storage whole on this node's disk, for libraries that read nothing else.

FOLDER/NAME/            one staged file, with what belongs to it; its name is a digest of location and fingerprint
FOLDER/NAME.lock        held shared by those who read it, alone by who brings or removes it

Several processes bring a file once. It appears whole, by one rename. When the cache is full, what was not used for longest
leaves.
"""

import fcntl
import hashlib
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from pyarrow import fs

from resunet_ray.errors import InputError
from resunet_ray.storage import files
from resunet_ray.storage.reader import Reader
from resunet_ray.storage.walk import walk_files

logger = logging.getLogger(__name__)

_CHUNK = 2**23  # bytes
_PART = ".part"
_Wanted = tuple[str, str, int]  # a file: where it is, its path beside the others, its bytes
_STALE_SECONDS = 3600.0  # a part that nobody wrote to for so long was left by a process that died


@contextmanager
def stage(uri: str, *, fingerprint: str, companions: Sequence[str], folder: str, max_bytes: int) -> Iterator[str]:
    """The path of a file on this machine, for as long as the context lasts; one that lies here already is used as it is.

    Args:
        uri: the file.
        fingerprint: what changes when its content does.
        companions: folders or files that belong beside it.
        folder: of the cache, on this node's disk.
        max_bytes: that the cache may hold.

    Raises:
        InputError: it or a companion is not there, or they are larger than the cache.
        ResourceError: the storage stays away.
    """
    filesystem, path = files.open_filesystem(uri)
    beside = [file for companion in companions for file in _list_companion(companion, of=uri)]
    if isinstance(filesystem, fs.LocalFileSystem):
        yield path
        return
    known = f"{uri}\0{fingerprint}" + "".join(f"\0{name}\0{size}" for _, name, size in beside)
    name = hashlib.sha256(known.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    place = Path(folder) / name
    place.parent.mkdir(parents=True, exist_ok=True)
    file = uri.rsplit("/", 1)[1]
    while True:
        with _lock(place, shared=True):
            if place.exists():
                os.utime(place, ns=(time.time_ns(), time.time_ns()))  # used now; the kernel's own "now" lags some milliseconds
                yield str(place / file)
                return
        with _lock(place, shared=False):
            if not place.exists():
                _bring([*_below(uri), *beside], place=place, max_bytes=max_bytes)


def _bring(wanted: Sequence[_Wanted], *, place: Path, max_bytes: int) -> None:
    total = sum(size for _, _, size in wanted)
    if total > max_bytes:
        raise InputError(f"{wanted[0][0]} takes {total} bytes: the staging cache holds {max_bytes}. Give --cache-gib more")
    _make_room(place.parent, max_bytes=max_bytes - total)
    part = place.with_name(f"{place.name}.{uuid.uuid4().hex}{_PART}")
    try:
        for uri, name, _ in wanted:
            target = part / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with Reader(uri) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink, _CHUNK)
        part.rename(place)
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


def _make_room(folder: Path, *, max_bytes: int) -> None:
    """Removes what was not used for longest and is not in use, until the rest takes no more than so many bytes."""
    for part in folder.glob(f"*{_PART}"):
        with suppress(FileNotFoundError):
            if time.time() - max(item.stat().st_mtime for item in (part, *part.rglob("*"))) > _STALE_SECONDS:
                shutil.rmtree(part, ignore_errors=True)
    staged = sorted((entry for entry in folder.iterdir() if entry.is_dir()), key=lambda entry: entry.stat().st_mtime)
    sizes = {entry: sum(item.stat().st_size for item in entry.rglob("*") if item.is_file()) for entry in staged}
    for entry in staged:
        if sum(sizes.values()) <= max_bytes:
            return
        if entry.name.endswith(_PART):
            continue
        with suppress(BlockingIOError), _lock(entry, shared=False, wait=False):
            shutil.rmtree(entry)
            sizes.pop(entry)
    logger.info("the staging cache %s holds %d bytes that are in use", folder, sum(sizes.values()))


@contextmanager
def _lock(place: Path, *, shared: bool, wait: bool = True) -> Iterator[None]:
    with place.with_name(f"{place.name}.lock").open("a") as file:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        yield
