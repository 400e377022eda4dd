"""Parquet files in any storage."""

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from resunet_ray.storage.files import attempt, write_bytes


def write_table(uri: str, table: pa.Table, *, rows_per_group: int = 2**16) -> None:
    """Write a Parquet file, compressed with zstd, that readers see whole or not at all."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", row_group_size=rows_per_group)
    write_bytes(uri, sink.getvalue())


def read_table(
    uri: str, *, columns: list[str] | None = None, row_group: int | None = None
) -> pa.Table:
    """Read a Parquet file, or one of its row groups.

    Raises:
        InputError: it does not exist.
    """

    def read(filesystem: fs.FileSystem, path: str) -> pa.Table:
        with filesystem.open_input_file(path) as file:
            table = pq.ParquetFile(file)
            return (
                table.read(columns=columns)
                if row_group is None
                else table.read_row_group(row_group, columns=columns)
            )

    return attempt(uri, read)


def read_metadata(uri: str) -> pq.FileMetaData:
    """Return the footer of a Parquet file: its schema, and the number of rows of each row group.

    Raises:
        InputError: it does not exist.
    """

    def read(filesystem: fs.FileSystem, path: str) -> pq.FileMetaData:
        with filesystem.open_input_file(path) as file:
            return pq.read_metadata(file)

    return attempt(uri, read)
