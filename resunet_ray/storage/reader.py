"""A file in any storage as a Python file object, for libraries that read at many offsets."""

import io
import os

from pyarrow import NativeFile, fs

from resunet_ray.storage.files import attempt


class Reader(io.RawIOBase):
    """A file opened for reading. Reads wait while its storage is unavailable (see `attempt`)."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._opened: tuple[fs.FileSystem, NativeFile] | None = None
        self._size = attempt(uri, lambda *place: self._open(*place).size())
        self._position = 0

    def _open(self, filesystem: fs.FileSystem, path: str) -> NativeFile:
        """Return the open file; open it again once its credentials were renewed."""
        opened = self._opened
        if opened is None or opened[0] is not filesystem:
            self._opened = opened = filesystem, filesystem.open_input_file(path)
        return opened[1]

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
        self._position = (
            offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        )
        return self._position

    def read_at(self, size: int, offset: int) -> bytes:
        """Return up to `size` bytes from `offset`, fewer at the end of the file. Thread-safe."""
        return attempt(self._uri, lambda *place: bytes(self._open(*place).read_at(size, offset)))

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        """Fill a buffer from the current offset, advance, and return the number of bytes read."""
        content = self.read_at(len(buffer), self._position)
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)

    def close(self) -> None:
        """Close the file."""
        if not self.closed and self._opened is not None:
            self._opened[1].close()
        super().close()
