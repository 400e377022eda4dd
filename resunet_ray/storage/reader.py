"""A file in any storage as Python's own kind of file, for libraries that read at many places."""

import io
import os

from resunet_ray.storage.files import attempt


class Reader(io.RawIOBase):
    """A file that is open for reading; while its storage is away, a read waits (see `attempt`)."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._file = attempt(uri, lambda filesystem, path: filesystem.open_input_file(path))
        self._size = attempt(uri, lambda *_: self._file.size())
        self._position = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Where the next read begins, bytes."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Moves there, and says where that is, bytes."""
        self._position = (
            offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        )
        return self._position

    def read_at(self, size: int, offset: int) -> bytes:
        """Bytes from a place, fewer at the end of the file; from several threads, too."""
        return attempt(self._uri, lambda *_: bytes(self._file.read_at(size, offset)))

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        """Fills a buffer from the position on, and moves it."""
        content = self.read_at(len(buffer), self._position)
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)

    def close(self) -> None:
        """Closes the file."""
        if not self.closed:
            self._file.close()
        super().close()
