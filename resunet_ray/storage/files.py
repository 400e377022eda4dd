"""Files in any storage, and writes that readers see whole or not at all."""

import logging
import os
import random
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from pyarrow import fs

from resunet_ray.errors import InputError, ResourceError
from resunet_ray.storage.clients import forget
from resunet_ray.storage.faults import AwayError, RefusedError, explain, mask_credentials, may_pass
from resunet_ray.storage.locations import bucket_of, join, open_filesystem, parent

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

_BUFFER_BYTES = 2**23
_PAUSES = (1, 3, 10, 20, 40)  # seconds between attempts while a storage is unavailable
_answered: set[str] = set()  # buckets that have let this process in


def attempt(
    uri: str, call: Callable[[fs.FileSystem, str], Result], *, pauses: Sequence[float] = _PAUSES
) -> Result:
    """Return the result of a call that reads or writes a location.

    While the storage is unavailable, the call is repeated for about a minute.

    Args:
        uri: the location.
        call: takes the filesystem, another one once credentials were renewed, and the path of the
            location. It must be safe to repeat.
        pauses: seconds before each repetition. If empty, the call is not repeated.

    Raises:
        InputError: the location does not exist (UnclearError), or cannot be read or written.
        ResourceError: the storage stayed unavailable, or is full.
    """
    bucket, filesystem = bucket_of(uri), None
    for number, pause in enumerate([*pauses, None]):
        found: Exception
        try:
            filesystem, path = open_filesystem(uri)
            result = call(filesystem, path)
        except OSError as error:
            text = error.strerror or mask_credentials(str(error))
            found = explain(uri, error, text=text, answers=bucket in _answered)
        except (AwayError, RefusedError) as error:  # of the credentials
            found = error
        else:
            _answered.add(bucket)
            return result
        if pause is None or not may_pass(found, attempt=number):
            raise found from None
        if isinstance(found, RefusedError):
            forget(filesystem)
        wait = pause * random.uniform(0.7, 1.3)  # noqa: S311 (so that processes spread)
        logger.warning("%s; trying again in %.0f s", found, wait)
        time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def exists(uri: str) -> bool:
    """Whether a file or a folder exists."""
    return bool(_file_type(uri) != fs.FileType.NotFound)


def require_folder(uri: str) -> None:
    """Check that the folder or prefix of a file that is missing or denied is still there.

    Raises:
        ResourceError: it is gone too, which says nothing about the file.
    """
    folder = parent(uri)
    if not exists(folder):
        raise ResourceError(
            f"{folder} is gone: is its disk or share still mounted? Once it is back, run the same "
            "command again"
        )


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


def read_bytes(uri: str, *, pauses: Sequence[float] = _PAUSES) -> bytes:
    """Return the whole content of a file; `pauses` as in `attempt`.

    Raises:
        InputError: it does not exist.
    """

    def read(store: fs.FileSystem, path: str) -> bytes:
        with store.open_input_stream(path, compression=None) as stream:
            return bytes(stream.read())

    return attempt(uri, read, pauses=pauses)


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
