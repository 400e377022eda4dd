"""Where bytes live: the filesystem behind a URI, and writes that are seen whole or not at all.

A location is a path on this machine or a URI that pyarrow knows (`s3://bucket/prefix`, `gs://…`, `file:///…`). Credentials
come from the environment's standard chain, never from the URI; `AWS_ENDPOINT_URL` is honoured.
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
_PAUSES = (1, 3, 10, 20, 40)  # seconds between attempts while a storage is away
_AWAY = re.compile(
    "NETWORK_CONNECTION|SERVICE_UNAVAILABLE|SLOW_DOWN|THROTTLING|INTERNAL_FAILURE|REQUEST_TIMEOUT|UNKNOWN.*HTTP 5"
)
"""What pyarrow's errors call a store that may be back soon."""
_FULL = (errno.ENOSPC, errno.EDQUOT)

_SECRET = re.compile(
    r"([?&][^=&\s]*(?:key|secret|token|signature|credential|password|sig)[^=&\s]*=)[^&\s]+",
    re.IGNORECASE,
)
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_REMOTE = ("s3", "gs", "gcs")
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
    if scheme == "file" and not authority:
        return fs.LocalFileSystem(), f"/{path}"
    # pyarrow's parser would take more of a bucket's name than its name, another host to send the credentials to for instance.
    if scheme not in _REMOTE or not _BUCKET.fullmatch(authority):
        raise ConfigError(
            f"the location {mask_credentials(uri)} is not understood: expected a path, s3://BUCKET/KEY, gs://BUCKET/KEY "
            "or file:///PATH, the bucket by its name alone"
        )
    try:
        filesystem, root = fs.FileSystem.from_uri(f"{scheme}://{authority}/")
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ConfigError(f"the location {uri} is not understood: {error}") from None
    return filesystem, "/".join(part for part in (root.rstrip("/"), path) if part)


def mask_credentials(text: str) -> str:
    """The text with whatever stands between `://` and `@` hidden, and what a query says of keys, tokens and signatures."""
    return _SECRET.sub(r"\1***", re.sub(r"://([^/@\s]*:[^@\s]*|[^/@\s]+)@", "://***@", text))


def absolute(uri: str) -> str:
    """The same location, understood the same way from any process's working directory."""
    return uri if _SCHEME.match(uri) else os.path.abspath(uri)  # noqa: PTH100 (resolve() would follow links)


def join(uri: str, *parts: str) -> str:
    """The location of something below another."""
    return "/".join((uri.rstrip("/"), *parts))


def parent(uri: str) -> str:
    """The location of the folder that holds something."""
    return absolute(uri).rstrip("/").rsplit("/", 1)[0]


def attempt(
    uri: str, call: Callable[[fs.FileSystem, str], Result], *, pauses: Sequence[float] = _PAUSES
) -> Result:
    """What a call gives that reads or writes a location; while its storage is away, it is called again for about a minute.

    Args:
        uri: the location.
        call: takes its filesystem and its path there. Called again, it must do no harm.
        pauses: seconds before it is called again; none: a storage that is away is an error at once.

    Raises:
        InputError: it is not there, or is there and cannot be read.
        ResourceError: the storage stayed away, or is full.
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
    """What a call gives; what goes wrong with it becomes an error that names the location."""
    try:
        return call()
    except FileNotFoundError:
        raise InputError(f"{uri} is not there") from None
    except OSError as error:
        reason = error.strerror or mask_credentials(str(error))
        if error.errno in _FULL:
            raise ResourceError(
                f"{uri} cannot be written: {reason}. Make room, and run the same command again"
            ) from None
        if _AWAY.search(reason):
            raise ResourceError(f"the storage of {uri} does not answer: {reason}") from None
        raise InputError(f"{uri} cannot be read or written: {reason}") from None


def exists(uri: str) -> bool:
    """Whether a file or a folder is there."""
    return bool(_file_type(uri) != fs.FileType.NotFound)


def is_file(uri: str) -> bool:
    """Whether a file is there."""
    return bool(_file_type(uri) == fs.FileType.File)


def _file_type(uri: str) -> fs.FileType:
    return attempt(uri, lambda filesystem, path: filesystem.get_file_info(path).type)


def list_files(uri: str, *, recursive: bool = True) -> Iterator[tuple[str, int]]:
    """Each file below a location, as its path relative to that and its size in bytes, sorted by path.

    Raises:
        InputError: nothing is there.
    """
    found = attempt(
        uri,
        lambda filesystem, path: filesystem.get_file_info(
            fs.FileSelector(path, recursive=recursive)
        ),
    )
    start = len(open_filesystem(uri)[1].rstrip("/")) + 1
    yield from sorted(
        (entry.path[start:], entry.size) for entry in found if entry.type == fs.FileType.File
    )


def list_folders(uri: str) -> list[str]:
    """The names of the folders directly below a location, sorted; none where nothing is there."""
    found = attempt(
        uri,
        lambda filesystem, path: filesystem.get_file_info(
            fs.FileSelector(path, allow_not_found=True)
        ),
    )
    return sorted(entry.base_name for entry in found if entry.type == fs.FileType.Directory)


def read_bytes(
    uri: str, *, pauses: Sequence[float] = _PAUSES, max_bytes: int | None = None
) -> bytes:
    """The whole content of a file; `pauses` as in `attempt`.

    Raises:
        InputError: it is not there, or has more than `max_bytes`.
    """

    def read(filesystem: fs.FileSystem, path: str) -> bytes:
        with filesystem.open_input_stream(path, compression=None) as stream:
            return bytes(stream.read() if max_bytes is None else stream.read(max_bytes + 1))

    content = attempt(uri, read, pauses=pauses)
    if max_bytes is not None and len(content) > max_bytes:
        raise InputError(
            f"{uri} has more than {max_bytes} bytes, the most that are read of one image"
        )
    return content


def write_bytes(uri: str, content: bytes, *, pauses: Sequence[float] = _PAUSES) -> None:
    """Writes a file that readers see whole or not at all, whenever the writer dies; `pauses` as in `attempt`.

    Raises:
        InputError: it cannot be written there.
        ResourceError: the storage is full or away.
    """

    def write(filesystem: fs.FileSystem, path: str) -> None:
        if isinstance(filesystem, fs.LocalFileSystem):
            _replace(Path(path), content)
            return
        with filesystem.open_output_stream(
            path, compression=None
        ) as stream:  # an object appears when it is complete
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
    """Writes a file, or a folder with all below it, from this machine's disk; what stands highest in a folder comes last."""
    for file in sorted(
        (item for item in path.rglob("*") if item.is_file()),
        key=lambda item: (-len(item.parts), item),
    ):
        _upload_file(file, join(uri, file.relative_to(path).as_posix()))
    if path.is_file():
        _upload_file(path, uri)


def _upload_file(source: Path, uri: str) -> None:
    def write(filesystem: fs.FileSystem, path: str) -> None:
        if isinstance(filesystem, fs.LocalFileSystem):
            _replace(Path(path), source)
            return
        with (
            source.open("rb") as file,
            filesystem.open_output_stream(path, compression=None) as stream,
        ):
            shutil.copyfileobj(file, stream, _BUFFER_BYTES)

    attempt(uri, write)


def delete(uri: str) -> None:
    """Removes a folder and all below it, if it is there."""
    if _file_type(uri) == fs.FileType.Directory:
        attempt(uri, lambda filesystem, path: filesystem.delete_dir(path))


def clear_parts(uri: str) -> None:
    """Removes what writers that died have left below a folder; readers never see it."""
    filesystem, path = open_filesystem(uri)
    if isinstance(filesystem, fs.LocalFileSystem):
        for part in Path(path).rglob(".*.part"):
            part.unlink(missing_ok=True)


def delete_file(uri: str) -> None:
    """Removes a file, if it is there."""
    if is_file(uri):
        attempt(uri, lambda filesystem, path: filesystem.delete_file(path))


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
            f"the output {uri} cannot be used: {error}. Expected a location that this account may write, read and delete in"
        ) from None
