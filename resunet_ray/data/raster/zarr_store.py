"""Any location of a storage as a store of Zarr, only for reading."""

import asyncio
import struct
from collections.abc import AsyncIterator, Iterable

from pyarrow import fs
from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    Store,
    SuffixByteRequest,
)
from zarr.core.buffer import Buffer, BufferPrototype

from resunet_ray import storage
from resunet_ray.errors import ImageError

_METADATA = (".zarray", ".zattrs", ".zgroup", "zarr.json")
_BLOSC = struct.Struct("<12xI")  # header of a chunk, which ends with its size


class LocationStore(Store):
    """The files below a folder or prefix, each fetched when it is asked for."""

    supports_writes = False
    supports_deletes = False
    supports_listing = False

    def __init__(self, uri: str) -> None:
        super().__init__(read_only=True)
        self.uri = uri
        self.missing = 0
        """How often a file was asked for that is not there."""
        self.blosc: set[str] = set()
        """Arrays whose chunks are compressed by Blosc, which reads beyond the end of one that was
        cut short."""

    def read(self, key: str, byte_range: ByteRequest | None = None) -> bytes | None:
        """Return the content of a file or a part of it, None if there is no such file.

        Raises:
            ImageError: it is not below the location, or was cut short.
            UnclearError: it is denied.
            ResourceError: the storage stayed unavailable.
        """
        if ".." in key.split("/"):
            raise ImageError(f"its metadata name {key}, which is outside of it")

        def call(filesystem: fs.FileSystem, path: str) -> bytes | None:
            try:
                with filesystem.open_input_file(path) as file:
                    start, end = _span(byte_range, size=file.size())
                    content = bytes(file.read_at(max(0, end - start), start))
                    if len(content) < end - start:
                        raise ImageError(f"its chunk {key} was cut short: copy it again")
                    return content
            except (FileNotFoundError, NotADirectoryError):
                return None

        return storage.attempt(storage.join(self.uri, key), call)

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Fetch a file or a part of it; several are fetched at a time."""
        content = await asyncio.to_thread(self.read, key, byte_range)
        if content is None:
            self.missing += 1
            return None
        if any(key.startswith(f"{place}/") for place in self.blosc):
            _check_blosc(content, key)
        return prototype.buffer.from_bytes(content)

    async def get_partial_values(
        self,
        prototype: BufferPrototype,
        key_ranges: Iterable[tuple[str, ByteRequest | None]],
    ) -> list[Buffer | None]:
        """Fetch parts of files."""
        return list(
            await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges))
        )

    async def exists(self, key: str) -> bool:
        """Whether there is a file."""
        return await asyncio.to_thread(storage.is_file, storage.join(self.uri, key))

    async def set(self, key: str, value: Buffer) -> None:  # noqa: ARG002
        """Refuse to write."""
        raise PermissionError(f"{self.uri} is open for reading only")

    async def delete(self, key: str) -> None:  # noqa: ARG002
        """Refuse to delete."""
        raise PermissionError(f"{self.uri} is open for reading only")

    def list(self) -> AsyncIterator[str]:
        """Refuse to list: what there is, metadata say."""
        raise NotImplementedError

    def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Refuse to list."""
        raise NotImplementedError

    def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Refuse to list."""
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LocationStore) and other.uri == self.uri

    __hash__ = None  # type: ignore[assignment]


def _check_blosc(content: bytes, key: str) -> None:
    """Refuse a chunk that is not as long as its header says."""
    if key.rsplit("/", 1)[-1] in _METADATA:
        return
    stated = _BLOSC.unpack_from(content)[0] if len(content) >= _BLOSC.size else None
    if stated != len(content):
        raise ImageError(f"its chunk {key} has {len(content)} bytes of {stated}: copy it again")


def _span(part: ByteRequest | None, *, size: int) -> tuple[int, int]:
    """Return first byte and end of a part of a file of `size` bytes."""
    match part:
        case RangeByteRequest(start, end):
            return start, end
        case OffsetByteRequest(offset):
            return offset, size
        case SuffixByteRequest(suffix):
            return max(0, size - suffix), size
        case _:
            return 0, size
