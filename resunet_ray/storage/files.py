"""Files behind a path or a URI, and writes that readers see whole or not at all.

A location is a path on this machine or a URI that pyarrow knows (`s3://bucket/prefix`, `gs://…`,
`file:///…`). Credentials come from the standard chain of the environment, never from the URI.
`AWS_ENDPOINT_URL` is honoured.
"""

import errno
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
from pyarrow import fs

from resunet_ray.errors import ConfigError, InputError, ResourceError

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

_BUFFER_BYTES = 2**23
_PAUSES = (1, 3, 10, 20, 40)  # seconds between attempts while a storage is unavailable
_AWAY = re.compile(
    "NETWORK_CONNECTION|SERVICE_UNAVAILABLE|SLOW_DOWN|THROTTLING|INTERNAL_FAILURE|REQUEST_TIMEOUT"
    "|UNKNOWN.*HTTP 5"
)
"""Matches pyarrow's errors about a store that may be back soon."""
_FULL = (errno.ENOSPC, errno.EDQUOT)

_SECRET = re.compile(
    r"([?&][^=&\s]*(?:key|secret|token|signature|credential|password|sig)[^=&\s]*=)[^&\s]+",
    re.IGNORECASE,
)
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_REMOTE = ("s3", "gs", "gcs")
_SCHEME = re.compile(r"^[a-zA-Z][a-zA-Z0-9+.-]+://")


def open_filesystem(uri: str) -> tuple[fs.FileSystem, str]:
    """Return the filesystem of a location, and the path of the location on it.

    Raises:
        ConfigError: the URI contains credentials, or its scheme is unknown.
    """
    if not _SCHEME.match(uri):
        return fs.LocalFileSystem(), absolute(uri)
    scheme, rest = uri.split("://", 1)
    authority, _, path = rest.partition("/")
    if "@" in uri and ":" in authority.partition("@")[0]:  # a secret may contain a slash
        raise ConfigError(
            f"the location {mask_credentials(uri)} contains credentials: provide them through the "
            "standard chain (environment, profile or role), not in the URI"
        )
    if scheme == "file" and not authority:
        return fs.LocalFileSystem(), f"/{path}"
    # pyarrow's own parser would accept more than a bucket name here, for instance another host to
    # send the credentials to.
    if scheme not in _REMOTE or not _BUCKET.fullmatch(authority):
        raise ConfigError(
            f"the location {mask_credentials(uri)} is not valid: expected a path, s3://BUCKET/KEY, "
            "gs://BUCKET/KEY or file:///PATH, where BUCKET is only the bucket's name"
        )
    try:
        filesystem, root = fs.FileSystem.from_uri(f"{scheme}://{authority}/")
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ConfigError(f"the location {uri} is not valid: {error}") from None
    return filesystem, "/".join(part for part in (root.rstrip("/"), path) if part)


def mask_credentials(text: str) -> str:
    """Return the text with `***` for the secrets in its URIs.

    Hidden are whatever is between `://` and `@`, and keys, tokens and signatures in a query.
    """
    return _SECRET.sub(r"\1***", re.sub(r"://([^/@\s]*:[^@\s]*|[^/@\s]+)@", "://***@", text))


def absolute(uri: str) -> str:
    """Return the location in a form that does not depend on the working directory."""
    return uri if _SCHEME.match(uri) else os.path.abspath(uri)  # noqa: PTH100 (keeps links)


def join(uri: str, *parts: str) -> str:
    """Return the location of something below another location."""
    return "/".join((uri.rstrip("/"), *parts))


def parent(uri: str) -> str:
    """Return the location of the folder that contains something."""
    return absolute(uri).rstrip("/").rsplit("/", 1)[0]


def attempt(
    uri: str, call: Callable[[fs.FileSystem, str], Result], *, pauses: Sequence[float] = _PAUSES
) -> Result:
    """Return the result of a call that reads or writes a location.

    While the storage is unavailable, the call is repeated for about a minute.

    Args:
        uri: the location.
        call: takes the filesystem and the path of the location. It must be safe to repeat.
        pauses: seconds before each repetition. If empty, the call is not repeated.

    Raises:
        InputError: the location does not exist, or cannot be read or written.
        ResourceError: the storage stayed unavailable, or is full.
    """
    filesystem, path = open_filesystem(uri)
    for pause in pauses:
        try:
            return _call(uri, lambda: call(filesystem, path))
        except ResourceError as error:
            if not _AWAY.search(str(error)):
                raise
            logger.warning("%s; trying again in %d s", error, pause)
            time.sleep(pause)
    return _call(uri, lambda: call(filesystem, path))


def _call(uri: str, call: Callable[[], Result]) -> Result:
    """Return the result of a call, turning OS errors into errors that name the location."""
    try:
        return call()
    except FileNotFoundError:
        raise InputError(f"{uri} does not exist") from None
    except OSError as error:
        reason = error.strerror or mask_credentials(str(error))
        if error.errno in _FULL:
            raise ResourceError(
                f"{uri} cannot be written: {reason}. Free some space and run the same command again"
            ) from None
        if _AWAY.search(reason):
            raise ResourceError(f"the storage of {uri} did not answer: {reason}") from None
        raise InputError(f"{uri} cannot be read or written: {reason}") from None


def exists(uri: str) -> bool:
    """Whether a file or a folder exists."""
    return bool(_file_type(uri) != fs.FileType.NotFound)


def is_file(uri: str) -> bool:
    """Whether the location is a file."""
    return bool(_file_type(uri) == fs.FileType.File)


def _file_type(uri: str) -> fs.FileType:
    return attempt(uri, lambda store, path: store.get_file_info(path).type)


def list_files(uri: str, *, recursive: bool = True) -> Iterator[tuple[str, int]]:
    """Yield relative path and size in bytes of each file below a location, sorted by path.

    Raises:
        InputError: the location does not exist.
    """
    found = attempt(
        uri, lambda store, path: store.get_file_info(fs.FileSelector(path, recursive=recursive))
    )
    start = len(open_filesystem(uri)[1].rstrip("/")) + 1
    yield from sorted(
        (entry.path[start:], entry.size) for entry in found if entry.type == fs.FileType.File
    )


def list_folders(uri: str) -> list[str]:
    """Return the sorted names of the folders directly below a location, [] if it does not exist."""
    found = attempt(
        uri, lambda store, path: store.get_file_info(fs.FileSelector(path, allow_not_found=True))
    )
    return sorted(entry.base_name for entry in found if entry.type == fs.FileType.Directory)


def read_bytes(
    uri: str, *, pauses: Sequence[float] = _PAUSES, max_bytes: int | None = None
) -> bytes:
    """Return the whole content of a file; `pauses` as in `attempt`.

    Raises:
        InputError: it does not exist, or is larger than `max_bytes`.
    """

    def read(store: fs.FileSystem, path: str) -> bytes:
        with store.open_input_stream(path, compression=None) as stream:
            return bytes(stream.read() if max_bytes is None else stream.read(max_bytes + 1))

    content = attempt(uri, read, pauses=pauses)
    if max_bytes is not None and len(content) > max_bytes:
        raise InputError(f"{uri} has more than {max_bytes} bytes, the limit for one image")
    return content


def write_bytes(uri: str, content: bytes, *, pauses: Sequence[float] = _PAUSES) -> None:
    """Write a file that readers see whole or not at all, even if the writer dies.

    `pauses` is as in `attempt`.

    Raises:
        InputError: the location cannot be written.
        ResourceError: the storage is full or unavailable.
    """

    def write(store: fs.FileSystem, path: str) -> None:
        if isinstance(store, fs.LocalFileSystem):
            _replace(Path(path), content)
            return
        # In object storage, an object appears only once it is complete.
        with store.open_output_stream(path, compression=None) as stream:
            stream.write(content)

    attempt(uri, write, pauses=pauses)


def _replace(target: Path, content: bytes | Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
    try:
        with part.open("wb") as file:
            if isinstance(content, Path):
                with content.open("rb") as source:
                    shutil.copyfileobj(source, file, _BUFFER_BYTES)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def upload(path: Path, uri: str) -> None:
    """Copy a file, or a folder with everything below it, from this machine's disk.

    Deeper files are written first, so the files at the top of a folder appear last.
    """
    for file in sorted(
        (item for item in path.rglob("*") if item.is_file()),
        key=lambda item: (-len(item.parts), item),
    ):
        _upload_file(file, join(uri, file.relative_to(path).as_posix()))
    if path.is_file():
        _upload_file(path, uri)


def _upload_file(source: Path, uri: str) -> None:
    def write(store: fs.FileSystem, path: str) -> None:
        if isinstance(store, fs.LocalFileSystem):
            _replace(Path(path), source)
            return
        with source.open("rb") as file, store.open_output_stream(path, compression=None) as stream:
            shutil.copyfileobj(file, stream, _BUFFER_BYTES)

    attempt(uri, write)


def delete_folder(uri: str) -> None:
    """Delete a folder and everything below it, if it exists."""
    if _file_type(uri) == fs.FileType.Directory:
        attempt(uri, lambda store, path: store.delete_dir(path))


def clear_parts(uri: str) -> None:
    """Delete the partial files that dead writers left below a folder. Readers never see them."""
    filesystem, path = open_filesystem(uri)
    if isinstance(filesystem, fs.LocalFileSystem):
        for part in Path(path).rglob(".*.part"):
            part.unlink(missing_ok=True)


def delete_file(uri: str) -> None:
    """Delete a file, if it exists."""
    if is_file(uri):
        attempt(uri, lambda store, path: store.delete_file(path))


def check_writable(uri: str) -> None:
    """Write, read and delete a small file, so that missing access shows before the work starts.

    Raises:
        ResourceError: one of the three failed.
    """
    location = join(uri, f".probe-{uuid.uuid4().hex}")
    try:
        write_bytes(location, b"probe")
        if read_bytes(location) != b"probe":
            raise OSError("the content read differs from the content written")
        delete_file(location)
    except (OSError, InputError, ResourceError) as error:
        raise ResourceError(
            f"the output {uri} cannot be used: {error}. Expected a location where this account may "
            "write, read and delete"
        ) from None
