"""The staging cache: remote files copied whole to this node's disk, for libraries that need that.

    FOLDER/resunet_ray-UID/   one user's private cache; nothing else in FOLDER is touched (where it
                              cannot be used, see `space.open_cache`)
        CACHEDIR.TAG          marks the folder as a cache
        space.lock            held while making room
        NAME/files/           one staged file with its companions, or the content of a compressed
                              file; NAME is a digest of location and fingerprint
        NAME/staged.json      the size of each file in bytes
        NAME.lock             held shared to read the entry, exclusively to create or remove it

If several processes want the same file, it is downloaded once. An entry appears complete, by one
rename, and holds exactly the content that was listed. When the cache or its disk is full, the
least recently used entries are removed, and entries in use are waited for. A file that is still
being downloaded counts with its full size.
"""

import hashlib
import io
import lzma
import os
import shutil
import time
import uuid
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, BinaryIO, cast

from pyarrow import fs

from resunet_ray.config import PrepareConfig, SegmentConfig
from resunet_ray.errors import InputError, ResourceError
from resunet_ray.storage import locations
from resunet_ray.storage.parts import Part, list_parts
from resunet_ray.storage.reader import Reader
from resunet_ray.storage.space import (
    FILES,
    FULL,
    PART,
    evict_unused,
    is_whole,
    lock,
    making_room,
    open_cache,
    reserve,
    write_record,
)

_BUFFER_BYTES = 2**23
_EXPANDED = "expanded"  # name of the one file that holds decompressed content
_DECODED = 2**16  # bytes decoded at a time; damage loses less than this
_STEP = 2**28  # bytes by which an entry of decompressed content grows


@dataclass(frozen=True)
class Cache:
    """This user's staging cache below a folder on this node's disk."""

    folder: str
    max_bytes: int
    """Most bytes that the cache may hold."""

    @classmethod
    def of(cls, config: SegmentConfig | PrepareConfig) -> "Cache":
        """Return the cache that a job is configured to use."""
        return cls(config.cache, int(config.cache_gib * 2**30))

    @contextmanager
    def stage(
        self,
        uri: str,
        *,
        fingerprint: str | None = None,
        companions: Sequence[str] = (),
        suffix: str | None = None,
        names: Collection[str] | None = None,
    ) -> Iterator[str]:
        """Yield the path of a file or folder on this machine, valid while the context lasts.

        A local file is used where it is. If it has changed, the context says so at its end.

        Args:
            uri: the file.
            fingerprint: of the file together with its companions, as they were listed (see
                `list_parts`); None: whatever is there.
            companions: folders or files that belong next to it.
            suffix: it is a folder, of which only the files that end so belong to it.
            names: of those to stage; None: all.

        Raises:
            ChangedError: it or a companion is no longer the one that was listed.
            InputError: it or a companion does not exist, or they are larger than the cache.
            ResourceError: the storage stayed unavailable, or the cache cannot be used.
        """
        filesystem, path = locations.open_filesystem(uri)
        look = partial(list_parts, uri=uri, companions=companions, suffix=suffix)
        expected = fingerprint or look(None)[0]
        if isinstance(filesystem, fs.LocalFileSystem):
            look(expected)
            try:
                yield path
            except Exception as error:
                if not isinstance(error, ResourceError):
                    look(expected)
                raise
            look(expected)
            return

        def bring(part: Path) -> None:
            _, parts = look(expected)
            chosen = None if names is None else {f"{uri.rsplit('/', 1)[1]}/{one}" for one in names}
            wanted = [one for one in parts if chosen is None or one.name in chosen]
            _bring(wanted, part=part, max_bytes=self.max_bytes)

        known = "\0".join([uri, expected, *(names or ())])
        with self._hold(uri, known, bring) as held:
            yield str(held / uri.rsplit("/", 1)[1])

    @contextmanager
    def expand(
        self, uri: str, *, fingerprint: str, decode: Callable[[BinaryIO], IO[bytes]]
    ) -> Iterator[str]:
        """Yield the path of the decompressed content of a file, valid while the context lasts.

        The content ends at the first damage, or at the size of the cache.

        Args:
            uri: the file.
            fingerprint: as it was listed.
            decode: compressed stream → decompressed stream.

        Raises:
            ChangedError: it has changed since.
            InputError: it does not exist.
            ResourceError: the storage stayed unavailable, or the cache cannot be used.
        """

        def bring(part: Path) -> None:
            with Reader(uri, fingerprint=fingerprint) as source:
                _expand(source, decode, part=part, max_bytes=self.max_bytes)

        with self._hold(uri, f"{uri}\0{fingerprint}\0expanded {self.max_bytes}", bring) as held:
            yield str(held / _EXPANDED)

    @contextmanager
    def _hold(self, uri: str, known: str, bring: Callable[[Path], None]) -> Iterator[Path]:
        """Yield the folder of an entry's files, locked against removal; create it if it is missing.

        Args:
            uri: the file, for errors.
            known: everything that the entry depends on.
            bring: creates the entry at the path that it is given.
        """
        name = hashlib.sha256(known.encode("utf-8", "surrogateescape")).hexdigest()[:32]
        place = open_cache(self.folder) / name
        while True:
            with lock(place, shared=True):
                if is_whole(place):
                    # Explicit times, because the kernel's own lag by some milliseconds.
                    with suppress(OSError):  # of the disk; the entry is there all the same
                        os.utime(place, ns=(time.time_ns(), time.time_ns()))
                    yield place / FILES
                    return
            with lock(place, shared=False):
                if is_whole(place):
                    continue
                shutil.rmtree(place, ignore_errors=True)
                try:
                    try:
                        _create(place, bring)
                    except OSError as error:
                        if error.errno not in FULL:
                            raise
                        # Other programs write to the disk as well.
                        evict_unused(place.parent)
                        _create(place, bring)
                except OSError as error:
                    if error.errno is None:  # not an error of the disk
                        raise
                    raise ResourceError(
                        f"{uri} cannot be staged in {place.parent}: {error}. Free some space "
                        "there, or give --cache a folder on another disk"
                    ) from None


def _create(place: Path, bring: Callable[[Path], None]) -> None:
    """Create an entry, whole or not at all."""
    part = place.with_name(f"{place.name}.{uuid.uuid4().hex}{PART}")
    try:
        bring(part)
        # Without the lock, a process that makes room might see neither the part nor the finished
        # entry.
        with making_room(place.parent):
            part.rename(place)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _bring(wanted: Sequence[Part], *, part: Path, max_bytes: int) -> None:
    """Create an entry by downloading files."""
    first = wanted[0].uri
    for file in wanted:
        if {"", ".", ".."} & set(file.name.split("/")):
            raise InputError(f"{first} has a companion {file.name!r}, which is not a path below it")
    total = sum(file.size for file in wanted)
    if total > max_bytes:
        raise InputError(
            f"{first} takes {total} bytes, but the staging cache holds {max_bytes}. "
            "Raise --cache-gib"
        )
    reserve(part, {file.name: file.size for file in wanted}, max_bytes=max_bytes)
    for file in wanted:
        target = part / FILES / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        with Reader(file.uri, fingerprint=file.fingerprint) as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink, _BUFFER_BYTES)


def _expand(
    source: Reader, decode: Callable[[BinaryIO], IO[bytes]], *, part: Path, max_bytes: int
) -> None:
    """Create an entry from the decompressed content of a file.

    The size is not known beforehand, so space is reserved step by step.
    """
    size = reserved = 0
    # One at a time: two that wait for each other's space would deadlock.
    with lock(part.parent / "expand", shared=False):
        reserve(part, {_EXPANDED: 0}, max_bytes=max_bytes)
        (part / FILES).mkdir()
        with (part / FILES / _EXPANDED).open("wb") as sink:
            buffered = cast("BinaryIO", io.BufferedReader(source, _BUFFER_BYTES))
            for piece in _decoded(decode(buffered)):
                kept = piece[: max_bytes - size]
                if size + len(kept) > reserved:
                    reserved = min(size + len(kept) + _STEP, max_bytes)
                    reserve(part, {_EXPANDED: reserved}, max_bytes=max_bytes)
                sink.write(kept)
                size += len(kept)
                if size == max_bytes:
                    break
        write_record(part, {_EXPANDED: size})


def _decoded(stream: IO[bytes]) -> Iterator[bytes]:
    """Yield the content of a stream up to the first damage."""
    while True:
        try:
            piece = stream.read(_DECODED)
        except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
            if (
                getattr(error, "errno", None) is not None
            ):  # an error of the disk, not of the decoder
                raise
            return
        if not piece:
            return
        yield piece
