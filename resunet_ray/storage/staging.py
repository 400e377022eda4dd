"""The staging cache: files of object storage whole on this node's disk, for libraries that read nothing else.

FOLDER/resunet_ray-UID/     this user's own; nothing else in FOLDER is touched, and nobody else reads or writes here
    CACHEDIR.TAG            says that it is a cache
    space.lock              held by who makes room
    NAME/files/             one staged file, with what belongs to it, or what came out of a compressed one;
                            NAME is a digest of location and fingerprint
    NAME/staged.json        the bytes of each
    NAME.lock               held shared by those who read it, alone by who brings or removes it

Several processes bring a file once. It appears whole, by one rename. When the cache is full, what was not used for longest
leaves; what is on its way counts with all of its bytes.
"""

import hashlib
import io
import lzma
import os
import shutil
import time
import uuid
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, cast

from pyarrow import fs

from resunet_ray.config import PrepareConfig, SegmentConfig
from resunet_ray.errors import InputError, ResourceError
from resunet_ray.storage import files
from resunet_ray.storage.reader import Reader
from resunet_ray.storage.space import (
    FILES,
    PART,
    is_whole,
    lock,
    making_room,
    open_cache,
    reserve,
    write_record,
)
from resunet_ray.storage.walk import walk_files

_BUFFER_BYTES = 2**23
_EXPANDED = "expanded"  # the one file of what was compressed
_DECODED = 2**16  # bytes that are decoded at a time: what is lost before damage is less
_STEP = 2**28  # bytes by which such an entry grows


@dataclass(frozen=True)
class _Wanted:
    """A file to bring."""

    uri: str
    name: str
    """Its path beside the others."""
    size: int
    fingerprint: str


@dataclass(frozen=True)
class Cache:
    """The staging cache of this user below a folder of this node's disk."""

    folder: str
    max_bytes: int
    """That it may hold."""

    @classmethod
    def of(cls, config: SegmentConfig | PrepareConfig) -> "Cache":
        """The one that a job is to use."""
        return cls(config.cache, int(config.cache_gib * 2**30))

    @contextmanager
    def stage(self, uri: str, *, fingerprint: str, companions: Sequence[str] = ()) -> Iterator[str]:
        """The path of a file on this machine, for as long as the context lasts; one that lies here already is used as it is.

        Args:
            uri: the file.
            fingerprint: what changes when its content does.
            companions: folders or files that belong beside it.

        Raises:
            InputError: it or a companion is not there, or they are larger than the cache.
            ResourceError: the storage stays away, or the cache cannot be used.
        """
        filesystem, path = files.open_filesystem(uri)
        beside = [file for companion in companions for file in _list_companion(companion, of=uri)]
        if isinstance(filesystem, fs.LocalFileSystem):
            yield path
            return
        known = f"{uri}\0{fingerprint}" + "".join(
            f"\0{file.name}\0{file.fingerprint}" for file in beside
        )

        def bring(part: Path) -> None:
            _bring([*_below(uri), *beside], part=part, max_bytes=self.max_bytes)

        with self._hold(uri, known, bring) as held:
            yield str(held / uri.rsplit("/", 1)[1])

    @contextmanager
    def expand(
        self, uri: str, *, fingerprint: str, decode: Callable[[BinaryIO], IO[bytes]]
    ) -> Iterator[str]:
        """The path of what comes out of a compressed file, as far as it comes and as the cache holds.

        Args:
            uri: the file.
            fingerprint: what changes when its content does.
            decode: the file → what comes out of it.

        Raises:
            InputError: it is not there.
            ResourceError: the storage stays away, or the cache cannot be used.
        """

        def bring(part: Path) -> None:
            _expand(uri, decode, part=part, max_bytes=self.max_bytes)

        with self._hold(uri, f"{uri}\0{fingerprint}\0expanded {self.max_bytes}", bring) as held:
            yield str(held / _EXPANDED)

    @contextmanager
    def _hold(self, uri: str, known: str, bring: Callable[[Path], None]) -> Iterator[Path]:
        """The folder of one entry's files, held; who finds none has it brought.

        Args:
            uri: what errors call it.
            known: all that it depends on.
            bring: makes the entry, at the place that it is given.
        """
        name = hashlib.sha256(known.encode("utf-8", "surrogateescape")).hexdigest()[:32]
        place = open_cache(self.folder) / name
        while True:
            with lock(place, shared=True):
                if is_whole(place):
                    os.utime(
                        place, ns=(time.time_ns(), time.time_ns())
                    )  # now; the kernel's own lags some milliseconds
                    yield place / FILES
                    return
            with lock(place, shared=False):
                if is_whole(place):
                    continue
                shutil.rmtree(place, ignore_errors=True)
                part = place.with_name(f"{place.name}.{uuid.uuid4().hex}{PART}")
                try:
                    bring(part)
                    with making_room(
                        place.parent
                    ):  # else who makes room may see neither the part nor the whole
                        part.rename(place)
                except OSError as error:
                    if error.errno is None:  # of no disk
                        raise
                    raise ResourceError(
                        f"{uri} cannot be staged in {place.parent}: {error}. Make room there, or give --cache another disk"
                    ) from None
                finally:
                    shutil.rmtree(part, ignore_errors=True)


def _bring(wanted: Sequence[_Wanted], *, part: Path, max_bytes: int) -> None:
    """Makes an entry of files of the storage."""
    first = wanted[0].uri
    for file in wanted:
        if {"", ".", ".."} & set(file.name.split("/")):
            raise InputError(f"{first} belongs with {file.name!r}, which is no path below it")
    total = sum(file.size for file in wanted)
    if total > max_bytes:
        raise InputError(
            f"{first} takes {total} bytes: the staging cache holds {max_bytes}. Give --cache-gib more"
        )
    reserve(part, {file.name: file.size for file in wanted}, max_bytes=max_bytes)
    for file in wanted:
        target = part / FILES / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        with Reader(file.uri) as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink, _BUFFER_BYTES)


def _expand(
    uri: str, decode: Callable[[BinaryIO], IO[bytes]], *, part: Path, max_bytes: int
) -> None:
    """Makes an entry of what comes out of a compressed file. How much that is nobody knows: room is made step by step."""
    size = reserved = 0
    with lock(
        part.parent / "expand", shared=False
    ):  # two that wait for each other's room would wait for ever
        reserve(part, {_EXPANDED: 0}, max_bytes=max_bytes)
        (part / FILES).mkdir()
        with Reader(uri) as source, (part / FILES / _EXPANDED).open("wb") as sink:
            for piece in _decoded(
                decode(cast("BinaryIO", io.BufferedReader(source, _BUFFER_BYTES)))
            ):
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
    """What comes out of a stream, until it is damaged."""
    while True:
        try:
            piece = stream.read(_DECODED)
        except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
            if getattr(error, "errno", None) is not None:  # the disk's own, not the decoder's
                raise
            return
        if not piece:
            return
        yield piece


def _below(uri: str) -> Iterator[_Wanted]:
    base = uri.rsplit("/", 1)[1]
    for file in walk_files(uri):
        location = files.join(uri, file.path) if file.path else uri
        yield _Wanted(location, f"{base}/{file.path}".rstrip("/"), file.size, file.fingerprint)


def _list_companion(uri: str, *, of: str) -> list[_Wanted]:
    try:
        return list(_below(uri))
    except InputError as error:
        raise InputError(
            f"{of} is not whole: {error}. It belongs to the slide: put it beside the file"
        ) from None
