"""Folders, zip and tar files alike: a list of named entries, each readable on its own anywhere.

What an archive is, and how it is compressed, its first bytes say, not its name. Members are read
into memory and never unpacked to disk, so a name chosen by an archive is never used as a path. A
compressed tar is expanded once per node, in the staging cache.
"""

import bz2
import functools
import gzip
import io
import lzma
import stat
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, BinaryIO

import pyarrow as pa

from resunet_ray import storage
from resunet_ray.data.names import plain
from resunet_ray.errors import InputError, ResourceError

SUFFIXES = (
    *(".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz", ".tbz2"),
    *(".tar.xz", ".txz", ".tar.zst", ".tzst"),
)
"""Files with these suffixes are archives."""
OTHER_SUFFIXES = (".7z", ".rar")
"""Files with these are archives that cannot be read."""

_Decoder = Callable[[BinaryIO], IO[bytes]]


def _open_zstd(file: BinaryIO) -> Any:
    return pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd")


_DECODERS: dict[bytes, Any] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
    b"\x28\xb5\x2f\xfd": _open_zstd,
}
"""What reads a compressed tar, by its first bytes."""
_ZIP = (b"PK\3\4", b"PK\5\6", b"PK\7\x08")  # of files, of none, of parts
_TAR, _TAR_AT = b"ustar", 257  # bytes (POSIX.1-1988)
_ENCRYPTED = 1  # bit of a zip's flags
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
    unread: str | None = None
    """Why a member cannot be read: encrypted, link, sparse file; None: it can."""

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
            fingerprint = self.fingerprint or storage.look_up(self.uri).fingerprint
            archive = _open_archive(self.uri, fingerprint)
            content = (
                archive.read(self)
                if archive.decode is None
                else self._read_expanded(archive.decode, cache, fingerprint)
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
        is_zip, self.decode = _tell_kind(self._file, uri)
        self._zip = zipfile.ZipFile(_buffered(self._file)) if is_zip else None
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


def _tell_kind(file: storage.Reader, uri: str) -> tuple[bool, _Decoder | None]:
    """Return whether a file is a zip, and what reads it if it is a compressed tar."""
    start = file.read_at(_TAR_AT + len(_TAR), 0)
    if start[_TAR_AT:] == _TAR:
        return False, None
    decode = next((found for known, found in _DECODERS.items() if start.startswith(known)), None)
    # Some begin with a program that unpacks them.
    is_zip = start.startswith(_ZIP) or (decode is None and uri.lower().endswith(".zip"))
    return is_zip, decode


def is_archive(uri: str) -> bool:
    """Whether the name of a file is that of a zip or tar."""
    return uri.lower().endswith(SUFFIXES)


def list_entries(
    uri: str, *, max_bytes: int, fingerprint: str | None = None
) -> Iterator[tuple[str, Entry]]:
    """Yield every file below a folder or inside a zip or tar, with its path relative to it.

    Paths have slashes and composed letters (NFC), whatever system wrote them.

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
                yield (
                    plain(found.path),
                    Entry(where, size=found.size, fingerprint=found.fingerprint),
                )
            elif not isinstance(found.error, FileNotFoundError):  # not a broken link
                raise InputError(f"{where} cannot be read: {found.error}")
        return
    if not is_archive(uri):
        raise InputError(
            f"{uri} is not a .zip or .tar (.gz, .bz2, .xz, .zst): expected one of these or a folder"
        )
    fingerprint = fingerprint or storage.look_up(uri).fingerprint
    try:
        with storage.Reader(uri, fingerprint=fingerprint) as file:
            for entry in _members(uri, file, max_bytes=max_bytes):
                path = plain(str(entry.member)).replace("\\", "/").removeprefix("./")
                yield path, replace(entry, fingerprint=fingerprint)
    except BROKEN as error:
        raise InputError(f"{uri} cannot be read as an archive: {error}") from None


def _members(uri: str, file: storage.Reader, *, max_bytes: int) -> Iterator[Entry]:
    is_zip, decode = _tell_kind(file, uri)
    if is_zip:
        yield from _zip_members(uri, _buffered(file))
        return
    # Nothing before what is read is needed again.
    stream = _buffered(file) if decode is None else decode(_buffered(file))  # type: ignore[arg-type]
    mode: Any = "r:" if decode is None else "r|"
    with tarfile.open(fileobj=stream, mode=mode, tarinfo=_Member) as archive:
        for info in archive:
            # Listing further members would already decompress this one.
            if decode is not None and info.offset_data + info.size > max_bytes:
                raise tarfile.TarError(
                    f"{info.name} ends beyond the {max_bytes} bytes that the staging cache holds: "
                    "increase --cache-gib"
                )
            is_link = info.islnk() or info.issym()
            if info.isfile() or is_link:
                unread = "link" if is_link else "sparse file" if info.issparse() else None
                yield Entry(uri, info.name, offset=info.offset_data, size=info.size, unread=unread)
            archive.members = []  # type: ignore[attr-defined]  # tarfile would keep all of them


def _zip_members(uri: str, file: IO[bytes]) -> Iterator[Entry]:
    members = zipfile.ZipFile(file).infolist()
    file.seek(0)
    if file.read(len(_ZIP[0])) == _ZIP[0] and all(info.header_offset for info in members):
        # Of a zip that was cut short, zipfile may find the directory of a zip within it.
        raise zipfile.BadZipFile("its first member is not in its directory: it was cut short")
    for info in members:
        if not info.is_dir():
            yield Entry(
                uri,
                info.filename,
                offset=info.header_offset,
                size=info.file_size,
                crc=info.CRC,
                unread="encrypted"
                if info.flag_bits & _ENCRYPTED
                else "link"
                if stat.S_ISLNK(info.external_attr >> 16)
                else None,
            )


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
