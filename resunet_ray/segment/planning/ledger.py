"""The ledger: which images are done, read from the rows of images/, the only record of it."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from resunet_ray import storage
from resunet_ray.segment import layout
from resunet_ray.tasks import map_ahead

ID_BYTES = 16

_FAILURES = ["attempt", "error_kind", "finished_at"]
_COLUMNS = ["image_id", "file_id", "bundle_digest", "config_digest", "status", *_FAILURES]
_PAUSES = (timedelta(0), timedelta(hours=20), timedelta(hours=68))
"""How long after its last attempt an image is tried again: in the next run, the next night, and
three nights later."""
_THREADS = 8

Ids = np.ndarray
"""Image ids, dtype S16: sixteen bytes each, so that five million take 80 MB."""


@dataclass(frozen=True)
class Ledger:
    """The images that one bundle and configuration have processed."""

    done: Ids
    """Sorted ids of the images that need no more work, and of all files whose planes are images."""
    failed: dict[bytes, int]
    """Number of the last attempt of each image that failed, wholly or in part, and of its file."""
    due: set[bytes] = field(default_factory=set)
    """Those of them that were missing or denied, and are to be tried again."""

    def again(self, *, retry_failed: bool) -> set[bytes]:
        """Return the ids of the images that failed and are tried again, and of their files."""
        return set(self.failed) if retry_failed else self.due


def read_ledger(
    output: str, *, bundle_digest: str, config_digest: str, retries: int = len(_PAUSES)
) -> Ledger:
    """Read the ledger of one bundle and configuration; empty if nothing was written yet.

    Args:
        output: of all runs.
        bundle_digest: of the bundle.
        config_digest: of the configuration.
        retries: how often images are tried again that were missing or denied.
    """
    folder = storage.join(output, layout.IMAGES)
    if not storage.exists(folder):
        return Ledger(np.empty(0, f"S{ID_BYTES}"), {})
    files = [
        storage.join(folder, file.path)
        for file in storage.walk_files(folder)
        if file.path.endswith(".parquet")
    ]

    now = datetime.now(UTC)

    def is_due(row: dict[str, Any]) -> bool:
        attempt = row["attempt"]
        pause = _PAUSES[min(attempt, len(_PAUSES)) - 1]
        unclear = row.get("error_kind") == "unclear"
        return unclear and attempt <= retries and now - row["finished_at"] >= pause

    def read(uri: str) -> tuple[Ids, dict[bytes, int], set[bytes]]:
        table = storage.read_table(uri, columns=_COLUMNS)
        same = pc.and_(
            pc.equal(table["bundle_digest"], bundle_digest),
            pc.equal(table["config_digest"], config_digest),
        )
        table = table.filter(same)
        bad = pc.is_in(table["status"], value_set=pa.array(["failed", "partial"]))
        failed = table.filter(bad)
        names = ["image_id", "file_id", *_FAILURES]
        rows = failed.select([name for name in names if name in table.column_names]).to_pylist()
        attempts: dict[bytes, int] = {}
        again: set[bytes] = set()
        for row in rows:
            ids = {parse_id(name) for name in (row["image_id"], row.get("file_id")) if name}
            attempts |= dict.fromkeys(ids, row["attempt"])
            again |= ids if is_due(row) else set()
        done = [parse_ids(table.filter(pc.invert(bad))["image_id"])]
        if "file_id" in table.column_names:  # since version 0.2.0
            done.append(np.unique(parse_ids(table["file_id"].drop_null())))
        return np.concatenate(done), attempts, again

    done = [np.empty(0, f"S{ID_BYTES}")]
    failed: dict[bytes, int] = {}
    due: set[bytes] = set()
    with ThreadPoolExecutor(_THREADS) as pool:
        for ids, attempts, again in map_ahead(pool, read, files, depth=2 * _THREADS):
            done.append(ids)
            failed |= attempts
            due |= again
    return Ledger(np.sort(np.concatenate(done)), failed, due)


def parse_id(text: str) -> bytes:
    """Parse an id of 32 hexadecimal digits; NumPy takes zeros at the end for padding."""
    return bytes.fromhex(text).rstrip(b"\0")


def parse_ids(column: pa.ChunkedArray) -> Ids:
    """Parse ids of 32 hexadecimal digits."""
    text = b"".join(np.asarray(column.to_numpy(zero_copy_only=False), f"S{2 * ID_BYTES}").tolist())
    return np.frombuffer(bytes.fromhex(text.decode()), f"S{ID_BYTES}")


def contains(ids: Ids, wanted: Ids) -> np.ndarray:
    """Whether each of `wanted` is in the sorted `ids`."""
    if not len(ids):
        return np.zeros(len(wanted), bool)
    places = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)
    found: np.ndarray = ids[places] == wanted
    return found


class SeenIds:
    """The ids seen so far, in sorted runs that are merged as they grow.

    This takes little memory, and a batch is not compared with every id one by one.
    """

    def __init__(self) -> None:
        self._runs: list[Ids] = []

    def add(self, ids: Ids) -> np.ndarray:
        """Add some ids, and return for each whether it is new."""
        new = np.zeros(len(ids), bool)
        new[np.unique(ids, return_index=True)[1]] = True
        for run in self._runs:
            new &= ~contains(run, ids)
        self._runs.append(np.sort(ids[new]))
        while len(self._runs) > 1 and len(self._runs[-2]) <= 2 * len(self._runs[-1]):
            last = self._runs.pop()
            self._runs[-1] = np.sort(np.concatenate([self._runs[-1], last]), kind="stable")
        return new
