"""Tables about images that users write: manifests and sidecars."""

import math
from collections.abc import Iterator
from typing import Any

import pyarrow.parquet as pq

from resunet_ray import storage
from resunet_ray.data.names import plain
from resunet_ray.data.texts import read_rows
from resunet_ray.errors import InputError

_MANIFEST_COLUMNS = {"uri", "member", "mask_uri", "mpp"}


def read_manifest_rows(uri: str) -> Iterator[dict[str, Any]]:
    """Read a CSV or Parquet file with a column `uri` and optionally `member`, `mask_uri` and `mpp`.

    Raises:
        InputError: there is no column `uri`.
    """
    yield from _parquet_rows(uri) if uri.lower().endswith(".parquet") else _csv_rows(uri)


def is_manifest(uri: str) -> bool:
    """Whether the name of a file is that of a manifest."""
    return uri.lower().endswith((".csv", ".parquet"))


def read_pixel_sizes(uri: str | None) -> dict[str, float]:
    """Read the pixel sizes in a CSV with the columns `name` (a file's name or location) and `mpp`.

    Raises:
        InputError: the file is missing, or is not such a table.
    """
    if uri is None:
        return {}
    rows = list(read_rows(storage.absolute(uri)))
    if not rows or not {"name", "mpp"} <= set(rows[0]):
        raise InputError(
            f"{uri} is not a table of pixel sizes: expected a CSV file with the columns `name` and "
            "`mpp`, and a row for each slide"
        )
    try:
        known = {plain(row["name"]): _parse_number(row["mpp"]) for row in rows}
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
    mpp = math.nan if value in (None, "") else _parse_number(value)
    if math.isnan(mpp):
        return None
    if not 0 < mpp < math.inf:
        raise InputError(f"its mpp is {value}: must be more than 0, or empty if it is unknown")
    return mpp


def _parquet_rows(uri: str) -> Iterator[dict[str, Any]]:
    filesystem, path = storage.open_filesystem(uri)
    with filesystem.open_input_file(path) as file:
        table = pq.ParquetFile(file)
        names = _check_columns(table.schema_arrow.names, uri)
        for batch in table.iter_batches(batch_size=4096, columns=names):
            yield from (row for row in batch.to_pylist() if any(row.values()))


def _csv_rows(uri: str) -> Iterator[dict[str, Any]]:
    for number, row in enumerate(read_rows(uri)):
        if number == 0:
            _check_columns([name for name in row if name], uri)
        yield row


def _parse_number(value: Any) -> float:
    """Parse a number, whose decimals may follow a comma."""
    return float(str(value).replace(",", "."))


def _check_columns(names: list[str], uri: str) -> list[str]:
    if "uri" not in names:
        raise InputError(
            f"the manifest {uri} has columns {', '.join(names) or 'none'}: expected `uri`, and "
            f"optionally {', '.join(sorted(_MANIFEST_COLUMNS - {'uri'}))}, with commas between them"
        )
    return [name for name in names if name in _MANIFEST_COLUMNS]
