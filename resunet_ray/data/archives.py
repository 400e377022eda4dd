"""Folders, zip and tar files alike: a list of named entries, each readable on its own anywhere.

Members are read into memory and never unpacked to disk, so a name chosen by an archive is never
used as a path. A compressed tar is expanded once per node, in the staging cache.
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
from dataclasses import dataclass, replace
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
"""Limit for one file or member. An image of `max_pixels` is smaller; slides are read in parts."""
_MAX_HEADER = 2**20  # bytes of a tar's extended header, which holds a path and some attributes
_HEADERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_BUFFER_BYTES = 2**20  # so that one read fetches many headers of a tar of small files
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
"""Raised by damaged bytes, or by a file that may not be read."""


@dataclass(frozen=True)
class Entry:
    """One file: a location, or a member of an archive."""

    uri: str
    member: str | None = None
    offset: int | None = None
    """Where it begins in the archive before compression: where a tar is read from, and what tells
    apart members of a zip that have the same name. None for a member of a zip: no other has its
    name."""
    size: int = 0
    crc: int | None = None
    """CRC-32 of the content, if the archive has one (zip)."""
    fingerprint: str | None = None
    """Of the file as it was listed, or of the archive; None: whatever is there."""

    @property
    def name(self) -> str:
        """Its name in errors and tables."""
        return self.uri if self.member is None else f"{self.uri}!{self.member}"

    def read(self, cache: storage.Cache) -> bytes:
        """Return the whole content.

        Args:
            cache: where a compressed tar is expanded.

        Raises:
            InputError: the file is gone, larger than `MAX_BYTES`, damaged, or has
                changed since it was listed (ChangedError).
            ResourceError: the storage does not answer, or the cache cannot be used.
        """
        if self.size > MAX_BYTES:
            raise InputError(
                f"{self.name} has {self.size} bytes: expected at most {MAX_BYTES} per image"
            )
        try:
            if self.member is None:
                return storage.read_listed(
                    self.uri, fingerprint=self.fingerprint, max_bytes=MAX_BYTES
                )
            decode = _find_decoder(self.uri)
            archive = self.fingerprint or storage.look_up(self.uri).fingerprint
            content = (
                _open_archive(self.uri, archive).read(self)
                if decode is None
                else self._read_expanded(decode, cache, archive)
            )
        except BROKEN as error:
            raise InputError(f"{self.name} cannot be read: {error}") from None
        if len(content) < self.size:
            raise InputError(
                f"{self.name} cannot be read: it ends after {len(content)} of {self.size} bytes"
            )
        return content

    def _read_expanded(self, decode: _Decoder, cache: storage.Cache, archive: str) -> bytes:
        assert self.offset is not None, f"{self.name} was listed without its offset"
        if self.offset + self.size > cache.max_bytes:
            raise ResourceError(
                f"{self.uri} expands to more than the {cache.max_bytes} bytes "
                "that the staging cache holds: increase --cache-gib"
            )
        with (
            cache.expand(self.uri, fingerprint=archive, decode=decode) as path,
            Path(path).open("rb") as file,
        ):
            file.seek(self.offset)
            return file.read(self.size)


class _Archive:
    """An open zip or uncompressed tar; a zip's directory is read once."""

    def __init__(self, uri: str, fingerprint: str) -> None:
        self._file = storage.Reader(uri, fingerprint=fingerprint)
        self._lock = threading.Lock()
        self._zip = zipfile.ZipFile(_buffered(self._file)) if uri.lower().endswith(".zip") else None
        self._zipped = (
            {} if self._zip is None else {info.header_offset: info for info in self._zip.infolist()}
        )

    def read(self, entry: Entry) -> bytes:
        if self._zip is not None:
            assert entry.member is not None, f"{entry.name} is not a member"
            with self._lock:
                return self._zip.read(
                    entry.member if entry.offset is None else self._zipped[entry.offset]
                )
        assert entry.offset is not None, f"{entry.name} was listed without its offset"
        return self._file.read_at(entry.size, entry.offset)


@functools.lru_cache(maxsize=4)
def _open_archive(uri: str, fingerprint: str) -> _Archive:
    return _Archive(uri, fingerprint)


def _find_decoder(uri: str) -> _Decoder | None:
    return next(
        (decode for suffix, decode in _DECODERS.items() if uri.lower().endswith(suffix)), None
    )


def is_archive(uri: str) -> bool:
    """Whether the name of a file is that of a zip or tar."""
    return uri.lower().endswith((".zip", ".tar", *_DECODERS))


def list_entries(
    uri: str, *, max_bytes: int, fingerprint: str | None = None
) -> Iterator[tuple[str, Entry]]:
    """Yield every file below a folder or inside a zip or tar, with its path relative to it.

    Args:
        uri: the folder or archive.
        max_bytes: maximum expanded size of a compressed tar: what the staging cache holds.
        fingerprint: of the archive, if it was listed before.

    Raises:
        InputError: the location does not exist, or is a file that is neither zip nor tar, is
            damaged, is too large, or has changed since it was listed (ChangedError).
    """
    uri = storage.absolute(uri)
    if not storage.exists(uri):
        raise InputError(
            f"{uri} does not exist: expected a folder, a zip or a tar of images and masks"
        )
    if not storage.is_file(uri):
        for found in sorted(storage.walk_files(uri), key=lambda found: found.path):
            where = storage.join(uri, found.path)
            if found.error is None:
                yield found.path, Entry(where, size=found.size, fingerprint=found.fingerprint)
            elif not isinstance(found.error, FileNotFoundError):  # not a broken link
                raise InputError(f"{where} cannot be read: {found.error}")
        return
    if not is_archive(uri):
        raise InputError(
            f"{uri} is not a .zip or .tar (.gz, .bz2, .xz): expected one of these or a folder"
        )
    fingerprint = fingerprint or storage.look_up(uri).fingerprint
    try:
        with _buffered(storage.Reader(uri, fingerprint=fingerprint)) as file:
            for entry in _members(uri, file, max_bytes=max_bytes):
                listed = replace(entry, fingerprint=fingerprint)
                yield str(entry.member).removeprefix("./"), listed
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
            # Listing further members would already decompress this one.
            if compressed and info.offset_data + info.size > max_bytes:
                raise tarfile.TarError(
                    f"{info.name} ends beyond the {max_bytes} bytes that the staging cache holds: "
                    "increase --cache-gib"
                )
            if info.isfile():
                yield Entry(uri, info.name, offset=info.offset_data, size=info.size)
            archive.members = []  # type: ignore[attr-defined]  # tarfile would keep all of them


class _Member(tarfile.TarInfo):
    """A tar header of plausible size: tarfile reads as many bytes into memory as it claims."""

    def _proc_member(self, archive: tarfile.TarFile) -> Any:
        if self.type in _HEADERS and self.size > _MAX_HEADER:
            raise tarfile.ReadError(
                f"a header claims {self.size} bytes: expected at most {_MAX_HEADER}"
            )
        return super()._proc_member(archive)  # type: ignore[misc]


def _buffered(file: storage.Reader) -> IO[bytes]:
    return io.BufferedReader(file, _BUFFER_BYTES)
