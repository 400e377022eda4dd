"""Listings of any length, with a fingerprint that tells whether a file has changed."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pyarrow import fs

from resunet_ray.errors import ResourceError, UnclearError
from resunet_ray.storage.clients import connect, os_errors
from resunet_ray.storage.faults import DeniedError, explain
from resunet_ray.storage.files import attempt
from resunet_ray.storage.locations import open_filesystem

_EPOCH = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True)
class FileStatus:
    """One file of a listing."""

    path: str
    """Relative to the listed location; empty for that location itself."""
    size: int
    mtime: datetime
    error: OSError | None = None
    """Why the file, or the folder of that name, cannot be read."""
    etag: str | None = None
    """The object store's digest of the content, if it provides one."""

    @property
    def fingerprint(self) -> str:
        """Changes whenever the content changes: the etag, or size and time of the last change."""
        return self.etag or f"{self.size}-{self.mtime.timestamp():.6f}"

    @classmethod
    def of(cls, found: os.stat_result, path: str = "") -> "FileStatus":
        """Return the status of a file on this machine."""
        return cls(path, found.st_size, datetime.fromtimestamp(found.st_mtime, UTC))


def look_up(uri: str) -> FileStatus:
    """Return the status of one file.

    Raises:
        UnclearError: it does not exist.
        ResourceError: it cannot be listed.
    """
    return next(walk_files(uri))


def walk_files(uri: str, *, deep: bool = True) -> Iterator[FileStatus]:
    """Yield each file below a folder or prefix, or the single file at that location.

    Files are streamed: memory does not grow with their number. All files of a folder come before
    any that is not below it.

    Args:
        uri: the location.
        deep: go on into folders below.

    Raises:
        UnclearError: the location does not exist.
        ResourceError: the location cannot be listed.
    """
    filesystem, path = open_filesystem(uri)
    if isinstance(filesystem, fs.LocalFileSystem):
        yield from _walk_local(Path(path), uri, deep=deep)
    elif isinstance(filesystem, fs.S3FileSystem):
        yield from _walk_s3(path, uri, deep=deep)
    else:
        yield from _walk_any(filesystem, path, uri, deep=deep)


def _walk_local(root: Path, uri: str, *, deep: bool) -> Iterator[FileStatus]:
    if not root.exists():
        raise UnclearError(f"{uri} does not exist: expected a file, or a folder with files")
    if root.is_file():
        yield FileStatus.of(root.stat())
        return
    folders, seen = [""], set()
    while folders:
        folder = folders.pop()
        try:
            place = (root / folder).stat()
            if (place.st_dev, place.st_ino) in seen:  # a link back to a folder that was listed
                continue
            seen.add((place.st_dev, place.st_ino))
            with os.scandir(root / folder) as entries:
                for entry in entries:
                    path = f"{folder}/{entry.name}" if folder else entry.name
                    status = _stat_local(entry, path, uri)
                    if status is not None:
                        yield status
                    elif deep:
                        folders.append(path)
        except OSError as error:
            yield _note(error, folder, uri)


def _stat_local(entry: os.DirEntry[str], path: str, uri: str) -> FileStatus | None:
    """Return the status of a file, or None for a folder."""
    try:
        if entry.is_dir():
            return None
        found = entry.stat()
    except OSError as error:  # a broken link, or deleted meanwhile
        return _note(error, path, uri)
    return FileStatus.of(found, path)


def _note(error: OSError, path: str, uri: str) -> FileStatus:
    """Return the status of what cannot be read, unless the whole storage is to blame."""
    place = f"{uri}/{path}"
    found = explain(place, error, text=error.strerror or str(error), answers=True)
    if isinstance(found, ResourceError):
        raise found from None
    return FileStatus(path, 0, _EPOCH, error=error)


def _walk_s3(path: str, uri: str, *, deep: bool) -> Iterator[FileStatus]:
    bucket, _, key = path.partition("/")
    prefix = f"{key.rstrip('/')}/" if key else ""
    empty, place = True, {"Bucket": bucket, "Prefix": key.rstrip("/") if deep else prefix}
    place |= {} if deep else {"Delimiter": "/"}
    while place:
        page = _list_page(uri, place)
        # S3 matches prefixes: `a/b` also finds `a/bc`, which is neither `a/b` nor below it.
        for item in page.get("Contents", ()):
            name = item["Key"]
            if not name.endswith("/") and (name == key or name.startswith(prefix)):
                empty = False
                yield FileStatus(
                    name[len(prefix) :],
                    item["Size"],
                    item["LastModified"],
                    etag=item["ETag"].strip('"'),
                )
        more = page.get("NextContinuationToken")
        place = {**place, "ContinuationToken": more} if more else {}
    if empty:
        raise UnclearError(f"{uri} does not exist: expected an object, or a prefix with objects")


def _list_page(uri: str, place: dict[str, str]) -> dict[str, Any]:
    def call(*_: object) -> dict[str, Any]:
        with os_errors():
            return connect(place["Bucket"]).s3.list_objects_v2(**place)  # type: ignore[no-any-return]

    try:
        return attempt(uri, call)
    except DeniedError as error:
        raise ResourceError(f"{uri} cannot be listed: {error}") from None


def _walk_any(
    filesystem: fs.FileSystem, path: str, uri: str, *, deep: bool
) -> Iterator[FileStatus]:
    start = filesystem.get_file_info(path)
    if start.type == fs.FileType.NotFound:
        raise UnclearError(f"{uri} does not exist: expected a file, or a folder with files")
    waiting = [start]
    while waiting:
        entry = waiting.pop()
        if entry.type == fs.FileType.Directory and (deep or entry is start):
            waiting += filesystem.get_file_info(fs.FileSelector(entry.path))
        elif entry.type == fs.FileType.File:
            yield FileStatus(
                entry.path[len(path.rstrip("/")) + 1 :], entry.size, entry.mtime or _EPOCH
            )
