"""A filesystem for libraries that take it along to other processes, as Ray does for checkpoints.

Pickled, it carries nothing: in each process it is that process's own client (see `clients`), which
waits while the storage is unavailable (see `attempt`).
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs

from resunet_ray.storage.files import attempt, upload
from resunet_ray.storage.locations import open_filesystem
from resunet_ray.storage.reader import Reader


def open_portable(uri: str) -> tuple[fs.FileSystem, str]:
    """Return a filesystem that may leave this process, and the path of a location on it.

    Raises:
        ConfigError: the URI contains credentials, or its scheme is unknown.
        ResourceError: the credentials of the environment cannot be fetched.
    """
    filesystem, path = open_filesystem(uri)
    if isinstance(filesystem, fs.S3FileSystem):
        filesystem = fs.PyFileSystem(_S3())
    return filesystem, path


class _S3(fs.FileSystemHandler):  # type: ignore[misc]
    """All buckets: a path begins with the bucket."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _S3)

    def __hash__(self) -> int:
        return hash(_S3)

    def get_type_name(self) -> str:
        return "s3"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> list[fs.FileInfo]:
        return [_attempt(path, lambda store, path: store.get_file_info(path)) for path in paths]

    def get_file_info_selector(self, selector: fs.FileSelector) -> Any:
        return _attempt(selector.base_dir, lambda store, _: store.get_file_info(selector))

    def create_dir(self, path: str, recursive: bool) -> None:
        _attempt(path, lambda store, path: store.create_dir(path, recursive=recursive))

    def delete_dir(self, path: str) -> None:
        _attempt(path, lambda store, path: store.delete_dir(path))

    def delete_dir_contents(self, path: str, missing_dir_ok: bool) -> None:
        _attempt(
            path,
            lambda store, path: store.delete_dir_contents(path, missing_dir_ok=missing_dir_ok),
        )

    def delete_root_dir_contents(self) -> None:
        raise NotImplementedError("nobody deletes all buckets")

    def delete_file(self, path: str) -> None:
        _attempt(path, lambda store, path: store.delete_file(path))

    def move(self, src: str, dest: str) -> None:
        _attempt(src, lambda store, path: store.move(path, dest))

    def copy_file(self, src: str, dest: str) -> None:
        _attempt(src, lambda store, path: store.copy_file(path, dest))

    def open_input_stream(self, path: str) -> pa.PythonFile:
        return pa.PythonFile(Reader(f"s3://{path}"), mode="r")

    open_input_file = open_input_stream

    def open_output_stream(self, path: str, _metadata: object) -> pa.PythonFile:
        return pa.PythonFile(_Upload(f"s3://{path}"), mode="w")

    def open_append_stream(self, path: str, _metadata: object) -> pa.PythonFile:
        raise NotImplementedError(f"{path}: objects cannot be appended to")


def _attempt(path: str, call: Callable[[fs.FileSystem, str], Any]) -> Any:
    return attempt(f"s3://{path}", call)


class _Upload:
    """What is written to an object, which appears when this is closed and not if it is dropped."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        # Kept until the object is there, because it may have to be sent again.
        self._file = tempfile.NamedTemporaryFile()  # noqa: SIM115 (`close` closes it)

    @property
    def closed(self) -> bool:
        return self._file.closed

    def write(self, content: bytes) -> int:
        return self._file.write(content)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        if not self.closed:
            with self._file:
                self._file.flush()
                upload(Path(self._file.name), self._uri)
