"""Where bytes live: the filesystem behind a URI, and writes that are seen whole or not at all.

A location is a path on this machine or a URI that pyarrow knows (`s3://bucket/prefix`, `gs://…`, `file:///…`). Credentials
come from the environment's standard chain, never from the URI; `AWS_ENDPOINT_URL` is honoured.
"""

import logging
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from resunet_ray.errors import ConfigError, InputError, ResourceError

logger = logging.getLogger(__name__)

_SCHEME = re.compile(r"^[a-zA-Z][a-zA-Z0-9+.-]+://")


def open_filesystem(uri: str) -> tuple[fs.FileSystem, str]:
    """The filesystem of a location and the path on it.

    Raises:
        ConfigError: the URI carries credentials, or its scheme is unknown.
    """
    if not _SCHEME.match(uri):
        return fs.LocalFileSystem(), absolute(uri)
    scheme, rest = uri.split("://", 1)
    authority, _, path = rest.partition("/")
    if "@" in uri and ":" in authority.partition("@")[0]:  # a secret may hold a slash
        raise ConfigError(
            f"the location {mask_credentials(uri)} carries credentials: give them through the standard chain "
            "(environment, profile or role), not in the URI"
        )
    try:
        # Only the first part goes through pyarrow's parser, which takes no spaces and no letters beyond ASCII.
        filesystem, root = fs.FileSystem.from_uri(f"{scheme}://{authority}/")
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ConfigError(f"the location {uri} is not understood: {error}. Expected a path, s3://, gs:// or file://") from None
    return filesystem, "/".join(part for part in (root.rstrip("/"), path) if part) if authority else f"/{path}"


def mask_credentials(text: str) -> str:
    """The text with whatever stands between `://` and `@` hidden."""
    return re.sub(r"://([^/@\s]*:[^@\s]*|[^/@\s]+)@", "://***@", text)


def absolute(uri: str) -> str:
    """The same location, understood the same way from any process's working directory."""
    return uri if _SCHEME.match(uri) else os.path.abspath(uri)  # noqa: PTH100 (resolve() would follow links)


def join(uri: str, *parts: str) -> str:
    """The location of something below another."""
    return "/".join((uri.rstrip("/"), *parts))


def parent(uri: str) -> str:
    """The location of the folder that holds something."""
    return absolute(uri).rstrip("/").rsplit("/", 1)[0]


@contextmanager
def _reading(uri: str) -> Iterator[tuple[fs.FileSystem, str]]:
    """The filesystem and path of a location; what goes wrong with it becomes an error that names it."""
    try:
        yield open_filesystem(uri)
    except FileNotFoundError:
        raise InputError(f"{uri} is not there") from None
    except (PermissionError, IsADirectoryError, NotADirectoryError) as error:
        raise InputError(f"{uri} cannot be read: {error.strerror or error}") from None
    except OSError as error:
        raise ResourceError(
            f"the storage of {uri} does not answer as it should: {mask_credentials(str(error))}. "
            "Expected a location that this account may read: check its name, the credentials and the endpoint"
        ) from None


def exists(uri: str) -> bool:
    """Whether a file or a folder is there."""
    with _reading(uri) as (filesystem, path):
        return bool(filesystem.get_file_info(path).type != fs.FileType.NotFound)


def is_file(uri: str) -> bool:
    """Whether a file is there."""
    with _reading(uri) as (filesystem, path):
        return bool(filesystem.get_file_info(path).type == fs.FileType.File)


def list_files(uri: str, *, recursive: bool = True) -> Iterator[tuple[str, int]]:
    """Each file below a location, as its path relative to that and its size in bytes, sorted by path.

    Raises:
        InputError: nothing is there.
    """
    with _reading(uri) as (filesystem, path):
        found = filesystem.get_file_info(fs.FileSelector(path, recursive=recursive))
    start = len(path.rstrip("/")) + 1
    yield from sorted((entry.path[start:], entry.size) for entry in found if entry.type == fs.FileType.File)


def list_folders(uri: str) -> list[str]:
    """The names of the folders directly below a location, sorted; none where nothing is there."""
    with _reading(uri) as (filesystem, path):
        found = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
    return sorted(entry.base_name for entry in found if entry.type == fs.FileType.Directory)


def read_bytes(uri: str) -> bytes:
    """The whole content of a file.

    Raises:
        InputError: it is not there.
    """
    with _reading(uri) as (filesystem, path), filesystem.open_input_stream(path, compression=None) as stream:
        return bytes(stream.read())


def write_bytes(uri: str, content: bytes) -> None:
    """Writes a file that readers see whole or not at all, whenever the writer dies."""
    filesystem, path = open_filesystem(uri)
    if not isinstance(filesystem, fs.LocalFileSystem):
        with filesystem.open_output_stream(path, compression=None) as stream:  # an object appears when it is complete
            stream.write(content)
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def write_table(uri: str, table: pa.Table, *, rows_per_group: int = 2**16) -> None:
    """Writes a Parquet file, zstd, whole or not at all."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", row_group_size=rows_per_group)
    write_bytes(uri, sink.getvalue())


def read_table(uri: str, *, columns: list[str] | None = None) -> pa.Table:
    """Reads a Parquet file.

    Raises:
        InputError: it is not there.
    """
    with _reading(uri) as (filesystem, path), filesystem.open_input_file(path) as file:
        return pq.read_table(file, columns=columns)


def delete(uri: str) -> None:
    """Removes a folder and all below it, if it is there."""
    filesystem, path = open_filesystem(uri)
    if filesystem.get_file_info(path).type == fs.FileType.Directory:
        filesystem.delete_dir(path)


def delete_file(uri: str) -> None:
    """Removes a file, if it is there."""
    filesystem, path = open_filesystem(uri)
    if filesystem.get_file_info(path).type == fs.FileType.File:
        filesystem.delete_file(path)


def check_writable(uri: str) -> None:
    """Writes, reads and removes a small file, so that a job learns of a closed door before it works.

    Raises:
        ResourceError: one of the three fails.
    """
    name = f".probe-{uuid.uuid4().hex}"
    location = join(uri, name)
    try:
        write_bytes(location, b"probe")
        if read_bytes(location) != b"probe":
            raise OSError("what was read differs from what was written")
        delete_file(location)
    except (OSError, InputError, ResourceError) as error:
        raise ResourceError(
            f"the output {uri} cannot be written: {mask_credentials(str(error))}. "
            "Expected a location that this account may write, read and delete in"
        ) from None
