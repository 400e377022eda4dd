"""Tables about images that users write: manifests and sidecars."""

import csv
import io
import math
from collections.abc import Iterator
from typing import Any

import pyarrow.parquet as pq

from resunet_ray import storage
from resunet_ray.errors import InputError

_MANIFEST_COLUMNS = {"uri", "member", "mask_uri", "mpp"}


def read_manifest_rows(uri: str) -> Iterator[dict[str, Any]]:
    """Read a CSV or Parquet file with a column `uri` and optionally `member`, `mask_uri` and `mpp`.

    Raises:
        InputError: there is no column `uri`.
    """
    yield from _parquet_rows(uri) if uri.endswith(".parquet") else _csv_rows(uri)


def read_pixel_sizes(uri: str | None) -> dict[str, float]:
    """Read the pixel sizes in a CSV with the columns `name` (a file's name or location) and `mpp`.

    Raises:
        InputError: the file is missing, or is not such a table.
    """
    if uri is None:
        return {}
    rows = list(
        csv.DictReader(io.StringIO(storage.read_bytes(storage.absolute(uri)).decode("utf-8-sig")))
    )
    if not rows or not {"name", "mpp"} <= set(rows[0]):
        raise InputError(
            f"{uri} is not a table of pixel sizes: expected a CSV file with the columns `name` and "
            "`mpp`, and a row for each slide"
        )
    try:
        known = {row["name"]: float(row["mpp"]) for row in rows}
    except ValueError as error:
        raise InputError(f"{uri}: {error}: mpp must be a number, microns per pixel") from None
    if bad := [name for name, mpp in known.items() if not mpp > 0]:
        raise InputError(f"{uri}: mpp of {bad[0]} is {known[bad[0]]}: must be more than 0")
    return known


def parse_mpp(value: Any) -> float | None:
    """Parse microns per pixel; None if the square is empty.

    Raises:
        InputError: it is not a positive number.
    """
    mpp = math.nan if value in (None, "") else float(value)
    if math.isnan(mpp):
        return None
    if not 0 < mpp < math.inf:
        raise InputError(f"its mpp is {value}: must be more than 0, or empty if it is unknown")
    return mpp


def _parquet_rows(uri: str) -> Iterator[dict[str, Any]]:
    filesystem, path = storage.open_filesystem(uri)
    with filesystem.open_input_file(path) as file:
        table = pq.ParquetFile(file)
        columns = _check_columns(table.schema_arrow.names, uri)
        for batch in table.iter_batches(batch_size=4096, columns=columns):
            yield from batch.to_pylist()


def _csv_rows(uri: str) -> Iterator[dict[str, Any]]:
    filesystem, path = storage.open_filesystem(uri)
    with filesystem.open_input_stream(path, compression=None) as stream:
        reader = csv.DictReader(io.TextIOWrapper(stream, encoding="utf-8", newline=""))
        _check_columns(list(reader.fieldnames or ()), uri)
        yield from reader


def _check_columns(names: list[str], uri: str) -> list[str]:
    if "uri" not in names:
        raise InputError(
            f"the manifest {uri} has columns {', '.join(names) or 'none'}: expected `uri`, and "
            f"optionally {', '.join(sorted(_MANIFEST_COLUMNS - {'uri'}))}"
        )
    return [name for name in names if name in _MANIFEST_COLUMNS]
