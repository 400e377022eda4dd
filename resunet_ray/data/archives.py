"""Folders, zip and tar files as one thing: a list of named entries, each readable by itself from any process.

Members are read into memory, never unpacked to disk, so a name that an archive chose is only ever a name. A compressed tar is
expanded once on each node, in the staging cache.
"""

import bz2
import functools
import gzip
import io
import lzma
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

from resunet_ray import storage
from resunet_ray.errors import InputError, ResourceError

_Decoder = Callable[[BinaryIO], IO[bytes]]
_DECODERS: dict[str, Any] = {
    ".tar.gz": gzip.open,
    ".tgz": gzip.open,
    ".tar.bz2": bz2.open,
    ".tbz2": bz2.open,
    ".tar.xz": lzma.open,
    ".txz": lzma.open,
}
MAX_BYTES = 2**30
"""What is read of one file or member. An image of `max_pixels` has less; slides are read in parts."""
_MAX_HEADER = 2**20  # bytes of a tar's extended header: a path, and some attributes
_HEADERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_BUFFER_BYTES = 2**20  # the headers of a tar of small files come many at a time
BROKEN = (
    zipfile.BadZipFile,
    tarfile.TarError,
    EOFError,
    KeyError,
    RuntimeError,
    ValueError,
    OSError,
    zlib.error,
    lzma.LZMAError,
)
"""What reading bad bytes raises, or a file that may not be read."""


@dataclass(frozen=True)
class Entry:
    """One file: a location, and where it lies inside an archive."""

    uri: str
    member: str | None = None
    offset: int | None = None
    """Where it begins within the archive, before compression: a tar is read from there, and a zip's members of one name told
    apart. None, of a zip's member: the only one of its name."""
    size: int = 0
    crc: int | None = None
    """CRC-32 of the content, where the archive holds one (zip)."""

    @property
    def name(self) -> str:
        """What errors and tables call it."""
        return self.uri if self.member is None else f"{self.uri}!{self.member}"

    def read(self, cache: storage.Cache) -> bytes:
        """All of its bytes.

        Args:
            cache: where a compressed tar is expanded.

        Raises:
            InputError: it is gone, has more than `MAX_BYTES`, or the archive is damaged there.
            ResourceError: the storage stays away, or the cache cannot be used.
        """
        if self.size > MAX_BYTES:
            raise InputError(
                f"{self.name} has {self.size} bytes: expected at most {MAX_BYTES} of one image"
            )
        try:
            if self.member is None:
                return storage.read_bytes(self.uri, max_bytes=MAX_BYTES)
            decode = _find_decoder(self.uri)
            content = (
                _open_archive(self.uri).read(self)
                if decode is None
                else self._read_expanded(decode, cache)
            )
        except BROKEN as error:
            raise InputError(f"{self.name} cannot be read: {error}") from None
        if len(content) < self.size:
            raise InputError(
                f"{self.name} cannot be read: it ends after {len(content)} of {self.size} bytes"
            )
        return content

    def _read_expanded(self, decode: _Decoder, cache: storage.Cache) -> bytes:
        assert self.offset is not None, f"{self.name} was listed without its place"
        if self.offset + self.size > cache.max_bytes:
            raise ResourceError(
                f"{self.uri} comes to more than the {cache.max_bytes} bytes that the staging cache holds: give --cache-gib more"
            )
        with (
            cache.expand(self.uri, fingerprint=_fingerprint(self.uri), decode=decode) as path,
            Path(path).open("rb") as file,
        ):
            file.seek(self.offset)
            return file.read(self.size)


class _Archive:
    """An open zip or tar that is not compressed as a whole; a zip's directory is read once."""

    def __init__(self, uri: str) -> None:
        self._file = storage.Reader(uri)
        self._lock = threading.Lock()
        self._zip = zipfile.ZipFile(_buffered(self._file)) if uri.lower().endswith(".zip") else None
        self._zipped = (
            {} if self._zip is None else {info.header_offset: info for info in self._zip.infolist()}
        )

    def read(self, entry: Entry) -> bytes:
        if self._zip is not None:
            assert entry.member is not None, f"{entry.name} is no member"
            with self._lock:
                return self._zip.read(
                    entry.member if entry.offset is None else self._zipped[entry.offset]
                )
        assert entry.offset is not None, f"{entry.name} was listed without its place"
        return self._file.read_at(entry.size, entry.offset)


@functools.lru_cache(maxsize=4)
def _open_archive(uri: str) -> _Archive:
    return _Archive(uri)


@functools.lru_cache(maxsize=64)
def _fingerprint(uri: str) -> str:
    (file,) = storage.walk_files(uri)
    return file.fingerprint


def _find_decoder(uri: str) -> _Decoder | None:
    return next(
        (decode for suffix, decode in _DECODERS.items() if uri.lower().endswith(suffix)), None
    )


def is_archive(uri: str) -> bool:
    """Whether a file is a zip or a tar by its name."""
    return uri.lower().endswith((".zip", ".tar", *_DECODERS))


def list_entries(uri: str, *, max_bytes: int) -> Iterator[tuple[str, Entry]]:
    """Every file below a folder or inside a zip or tar, with its path relative to that.

    Args:
        uri: the folder or archive.
        max_bytes: what a compressed tar may come to: as much as the staging cache holds.

    Raises:
        InputError: nothing is there, or a file is there that is neither zip nor tar, or is damaged or too large.
    """
    uri = storage.absolute(uri)
    if not storage.exists(uri):
        raise InputError(
            f"{uri} is not there: expected a folder, a zip or a tar of images and masks"
        )
    if not storage.is_file(uri):
        yield from (
            (path, Entry(storage.join(uri, path), size=size))
            for path, size in storage.list_files(uri)
        )
        return
    if not is_archive(uri):
        raise InputError(
            f"{uri} is a file but neither .zip nor .tar (.gz, .bz2, .xz): expected one of these, or a folder"
        )
    try:
        with _buffered(storage.Reader(uri)) as file:
            for entry in _members(uri, file, max_bytes=max_bytes):
                yield str(entry.member).removeprefix("./"), entry
    except BROKEN as error:
        raise InputError(f"{uri} cannot be read as an archive: {error}") from None


def _members(uri: str, file: IO[bytes], *, max_bytes: int) -> Iterator[Entry]:
    if uri.lower().endswith(".zip"):
        for found in zipfile.ZipFile(file).infolist():
            if not found.is_dir():
                yield Entry(
                    uri,
                    found.filename,
                    offset=found.header_offset,
                    size=found.file_size,
                    crc=found.CRC,
                )
        return
    with tarfile.open(fileobj=file, tarinfo=_Member) as archive:
        compressed = _find_decoder(uri) is not None
        for info in archive:
            if (
                compressed and info.offset_data + info.size > max_bytes
            ):  # to go on would be to decode it
                raise tarfile.TarError(
                    f"{info.name} lies beyond the {max_bytes} bytes that the staging cache holds: give --cache-gib more"
                )
            if info.isfile():
                yield Entry(uri, info.name, offset=info.offset_data, size=info.size)
            archive.members = []  # type: ignore[attr-defined]  # it would keep them all


class _Member(tarfile.TarInfo):
    """A header of a tar, which claims no more than there is reason for: what it claims is read into memory."""

    def _proc_member(self, archive: tarfile.TarFile) -> Any:
        if self.type in _HEADERS and self.size > _MAX_HEADER:
            raise tarfile.ReadError(
                f"a header of it claims {self.size} bytes: expected at most {_MAX_HEADER}"
            )
        return super()._proc_member(archive)  # type: ignore[misc]


def _buffered(file: storage.Reader) -> IO[bytes]:
    return io.BufferedReader(file, _BUFFER_BYTES)
