"""Tables that users write, as spreadsheets save them: CSV in UTF-8, with or without its mark."""

import codecs
import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager

from resunet_ray import storage
from resunet_ray.errors import InputError

_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_text(uri: str) -> str:
    """Read a text.

    Raises:
        InputError: it does not exist, or is not UTF-8.
    """
    with _naming_encoding(uri):
        return storage.read_bytes(uri).decode("utf-8-sig")


def read_rows(uri: str) -> Iterator[dict[str, str]]:
    """Yield the rows of a CSV file by the names in its first row. Empty rows are left out.

    Raises:
        InputError: it does not exist, or is not UTF-8.
    """
    filesystem, path = storage.open_filesystem(uri)
    with (
        filesystem.open_input_stream(path, compression=None) as stream,
        _naming_encoding(uri),
    ):
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        yield from (row for row in csv.DictReader(text) if any(row.values()))


@contextmanager
def _naming_encoding(uri: str) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        known = "UTF-16" if error.object.startswith(_UTF_16) else "another encoding"
        raise InputError(
            f"{uri} is a text in {known} (byte 0x{error.object[error.start]:02x}): expected UTF-8. "
            "Save it as CSV UTF-8"
        ) from None
