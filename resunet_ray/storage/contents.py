"""An open file whose every read says which content it came from, by its fingerprint."""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import botocore.exceptions
from pyarrow import fs

from resunet_ray.storage.clients import connect, os_errors
from resunet_ray.storage.walk import FileStatus

_NO_RANGE = 416  # HTTP status of a read that begins at the end


class Content(Protocol):
    """An open file."""

    def read_at(self, size: int, offset: int) -> tuple[bytes, str]:
        """Return up to `size` bytes, and the fingerprint of what they are part of. Thread-safe."""

    def size(self) -> int:
        """Return its size in bytes."""

    def close(self) -> None:
        """Close it."""


def open_content(filesystem: fs.FileSystem, path: str) -> Content:
    """Open a file. All errors of it are OSErrors, as those of pyarrow are."""
    if isinstance(filesystem, fs.LocalFileSystem):
        return _LocalFile(path)
    if isinstance(filesystem, fs.S3FileSystem):
        return _Object(path)
    return _OtherFile(filesystem, path)


class _LocalFile:
    """The descriptor stays with the content that was opened, whatever takes its name."""

    def __init__(self, path: str) -> None:
        self._file = Path(path).open("rb", buffering=0)  # noqa: SIM115 (`close` closes it)

    def read_at(self, size: int, offset: int) -> tuple[bytes, str]:
        number, pieces = self._file.fileno(), []
        left = min(size, self.size() - offset)
        while left > 0 and (piece := os.pread(number, left, offset)):
            pieces.append(piece)
            left, offset = left - len(piece), offset + len(piece)
        return b"".join(pieces), FileStatus.of(os.fstat(number)).fingerprint

    def size(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        self._file.close()


class _Object:
    """An answer of S3 has the etag of the object that its bytes come from."""

    def __init__(self, path: str) -> None:
        bucket, _, key = path.partition("/")
        self._place = {"Bucket": bucket, "Key": key}

    @property
    def _client(self) -> Any:
        return connect(self._place["Bucket"]).s3  # another one once credentials were renewed

    def read_at(self, size: int, offset: int) -> tuple[bytes, str]:
        wanted = f"bytes={offset}-{offset + max(size, 1) - 1}"
        with os_errors():
            try:
                clients = connect(self._place["Bucket"])
                content, etag = clients.reads.read(
                    self._place["Key"], wanted=wanted, keys=clients.read_keys()
                )
                return content[:size], etag
            except botocore.exceptions.ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] != _NO_RANGE:
                    raise
            return b"", self._client.head_object(**self._place)["ETag"].strip('"')

    def size(self) -> int:
        with os_errors():
            return int(self._client.head_object(**self._place)["ContentLength"])

    def close(self) -> None:
        pass


class _OtherFile:
    """The store says only by name what is there, so it is asked after each read."""

    def __init__(self, filesystem: fs.FileSystem, path: str) -> None:
        self._filesystem, self._path = filesystem, path
        self._file = filesystem.open_input_file(path)

    def read_at(self, size: int, offset: int) -> tuple[bytes, str]:
        content = bytes(self._file.read_at(size, offset))
        found = self._filesystem.get_file_info(self._path)
        mtime = found.mtime or datetime.fromtimestamp(0, UTC)
        return content, FileStatus("", found.size or 0, mtime).fingerprint

    def size(self) -> int:
        return int(self._file.size())

    def close(self) -> None:
        self._file.close()
