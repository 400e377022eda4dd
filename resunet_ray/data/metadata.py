"""Metadata: what the user's CSV says about each image."""

from collections.abc import Mapping
from dataclasses import dataclass
from io import StringIO
from typing import Any

import pandas as pd

from resunet_ray.data.names import plain
from resunet_ray.data.texts import read_text
from resunet_ray.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """What the user's metadata says about one image; None where it says nothing."""

    mpp: float | None = None
    """Microns per pixel."""
    modality: str | None = None
    group: str | None = None
    """Images of one group stay in one split."""


def read_metadata(uri: str | None, *, group_column: str | None) -> dict[str, Metadata]:
    """Read what a CSV says about each image, by image id.

    Args:
        uri: the CSV, with a column `id`; None: there is none.
        group_column: name of the column with the images' groups.

    Raises:
        InputError: the file is not a CSV, has no column `id`, or has an mpp that is not positive.
    """
    if uri is None:
        return {}
    try:
        frame = pd.read_csv(StringIO(read_text(uri)), dtype={"id": str})
    except ValueError as error:
        raise InputError(f"{uri} is not a CSV: {error}") from None
    if "id" not in frame:
        raise InputError(
            f"{uri} has the columns {', '.join(frame.columns)}: "
            "expected a column `id` with the images' names"
        )
    if "mpp" in frame:
        numbers = pd.to_numeric(frame["mpp"], errors="coerce")
        wrong = frame[frame["mpp"].notna() & ~(numbers > 0)]
        if len(wrong):
            raise InputError(
                f"{uri} gives {wrong['id'].iloc[0]} the mpp {wrong['mpp'].iloc[0]!r}: "
                "expected a positive number of microns per pixel"
            )
        frame["mpp"] = numbers
    return {
        plain(str(row["id"])): _to_metadata(row, group_column=group_column)
        for row in frame.to_dict("records")
    }


def _to_metadata(row: Mapping[Any, Any], *, group_column: str | None) -> Metadata:
    modality, group = (
        str(row[column]) if column in row and pd.notna(row[column]) else None
        for column in ("modality", group_column)
    )
    mpp = row.get("mpp")
    return Metadata(mpp=None if pd.isna(mpp) else mpp, modality=modality, group=group)


def require_known(
    metadata: Mapping[str, Metadata], names: list[str], *, source: str | None
) -> None:
    """Refuse metadata that names none of the images: most likely its ids have file suffixes.

    Raises:
        InputError: it names none.
    """
    if metadata and not metadata.keys() & set(names):
        raise InputError(
            f"{source} names none of the images: its first id is {next(iter(metadata))!r}, "
            f"the first image's is {names[0]!r}. Expected file names without suffix"
        )
