"""Folders, zip and tar files as one thing: a list of named entries, each readable by itself from any process.

Members are read into memory, never unpacked to disk, so a name that an archive chose is only ever a name.
"""

import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from resunet_ray import storage
from resunet_ray.errors import InputError

_COMPRESSED_TAR = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


@dataclass(frozen=True)
class Entry:
    """One file: a location, and where it lies inside an archive."""

    uri: str
    member: str | None = None
    offset: int | None = None
    """First byte within an uncompressed tar, which lets a reader go straight there."""
    size: int = 0

    @property
    def name(self) -> str:
        """What errors and tables call it."""
        return self.uri if self.member is None else f"{self.uri}!{self.member}"

    def read(self) -> bytes:
        """All of its bytes.

        Raises:
            InputError: it is gone or the archive is damaged there.
        """
        if self.member is None:
            return storage.read_bytes(self.uri)
        try:
            with _open(self.uri) as file:
                if self.offset is not None:
                    file.seek(self.offset)
                    return bytes(file.read(self.size))
                if self.uri.endswith(".zip"):
                    return zipfile.ZipFile(file).read(self.member)
                with tarfile.open(fileobj=file) as archive:
                    content = archive.extractfile(self.member)
                    assert content is not None, f"{self.name} was listed as a file"
                    return content.read()
        except (zipfile.BadZipFile, tarfile.TarError, EOFError, KeyError, RuntimeError, ValueError, OSError) as error:
            raise InputError(f"{self.name} cannot be read from its archive: {error}") from None


def list_entries(uri: str) -> Iterator[tuple[str, Entry]]:
    """Every file below a folder or inside a zip or tar, with its path relative to that.

    Raises:
        InputError: nothing is there, or a file is there that is neither zip nor tar, or is damaged.
    """
    uri = storage.absolute(uri)
    if not storage.exists(uri):
        raise InputError(f"{uri} is not there: expected a folder, a zip or a tar of images and masks")
    if not storage.is_file(uri):
        yield from ((path, Entry(storage.join(uri, path), size=size)) for path, size in storage.list_files(uri))
        return
    try:
        with _open(uri) as file:
            if uri.endswith(".zip"):
                members = [
                    Entry(uri, info.filename, size=info.file_size)
                    for info in zipfile.ZipFile(file).infolist()
                    if not info.is_dir()
                ]
            elif uri.endswith((".tar", *_COMPRESSED_TAR)):
                direct = uri.endswith(".tar")
                with tarfile.open(fileobj=file) as archive:
                    members = [
                        Entry(uri, info.name, offset=info.offset_data if direct else None, size=info.size)
                        for info in archive
                        if info.isfile()
                    ]
            else:
                raise InputError(
                    f"{uri} is a file but neither .zip nor .tar (.gz, .bz2, .xz): expected one of these, or a folder"
                )
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, ValueError, OSError) as error:
        raise InputError(f"{uri} cannot be read as an archive: {error}") from None
    yield from ((str(entry.member).removeprefix("./"), entry) for entry in members)


@contextmanager
def _open(uri: str) -> Iterator["storage.fs.NativeFile"]:
    filesystem, path = storage.open_filesystem(uri)
    with filesystem.open_input_file(path) as file:
        yield file
