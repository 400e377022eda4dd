"""A file in any storage as a Python file object, for libraries that read at many offsets."""

import functools
import io
import os

from resunet_ray.errors import ChangedError, InputError, ResourceError
from resunet_ray.storage.contents import open_content
from resunet_ray.storage.files import attempt
from resunet_ray.storage.walk import look_up


class Reader(io.RawIOBase):
    """One content of a file, opened for reading.

    Reads wait while its storage is unavailable (see `attempt`). They end with a ChangedError where
    the file is no longer the one that was listed or, without a fingerprint, first read.
    """

    def __init__(self, uri: str, *, fingerprint: str | None = None) -> None:
        """Open a file.

        Args:
            uri: its location.
            fingerprint: as `walk_files` listed it.
        """
        self._uri, self._fingerprint = uri, fingerprint
        self._file = attempt(uri, open_content)
        self._position = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the offset of the next read, in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move to an offset in bytes, and return the new offset from the start."""
        if whence != os.SEEK_SET:
            offset += self._position if whence == os.SEEK_CUR else self._size
        self._position = offset
        return self._position

    @functools.cached_property
    def _size(self) -> int:
        return attempt(self._uri, lambda *_: self._file.size())

    def read_at(self, size: int, offset: int) -> bytes:
        """Return up to `size` bytes from `offset`, fewer at the end of the file. Thread-safe.

        Raises:
            ChangedError: the file has changed.
        """
        content, found = attempt(self._uri, lambda *_: self._file.read_at(size, offset))
        if self._fingerprint is None:
            self._fingerprint = found
        if found != self._fingerprint:
            raise self._changed(found)
        return content

    def _changed(self, found: str) -> Exception:
        now = look_up(self._uri)
        if now.etag is not None and now.etag == self._fingerprint:
            return ResourceError(
                f"{self._uri} is listed with the etag {self._fingerprint} and read with the etag "
                f"{found}: a store whose listings and reads disagree cannot be used"
            )
        return ChangedError(f"{self._uri} has changed since it was listed")

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        """Fill a buffer from the current offset, advance, and return the number of bytes read."""
        content = self.read_at(len(buffer), self._position)
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)

    def close(self) -> None:
        """Close the file."""
        if not self.closed:
            self._file.close()
        super().close()


def read_listed(uri: str, *, fingerprint: str | None, max_bytes: int) -> bytes:
    """Return the whole content of a file as it was listed.

    Args:
        uri: the file.
        fingerprint: as `walk_files` listed it; None: whatever is there.
        max_bytes: the largest size.

    Raises:
        ChangedError: it has changed since.
        InputError: it does not exist, or is larger.
    """
    with Reader(uri, fingerprint=fingerprint) as file:
        content = file.read_at(max_bytes + 1, 0)
    if len(content) > max_bytes:
        raise InputError(f"{uri} has more than {max_bytes} bytes, the limit for one image")
    return content
