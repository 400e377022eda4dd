"""Frozen dataclasses from and into Arrow tables, in one place.

A field is a column of the same name. A field that is itself a dataclass stands for the columns of
its own fields; a field that may be None is None if its first column is null.
"""

from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import pyarrow as pa

Record = TypeVar("Record")


def to_table(records: Iterable[Any], schema: pa.Schema) -> pa.Table:
    """Build a table with one row for each record.

    Args:
        records: dataclasses. A column that a record lacks is null; other fields are left out.
        schema: of the table.
    """
    rows = [flatten(record) for record in records]
    columns = [_to_column([row.get(field.name) for row in rows], field.type) for field in schema]
    return pa.table(columns, schema=schema)


def from_table(kind: type[Record], table: pa.Table) -> list[Record]:
    """Build a record from each row. A column that the table lacks counts as null."""
    columns = {name: _from_column(table[name]) for name in table.column_names}
    rows = zip(*columns.values(), strict=True)
    return [_build(kind, dict(zip(columns, values, strict=True))) for values in rows]


def flatten(record: Any) -> dict[str, Any]:
    """The columns of a record and of the records in it."""
    kind: Any = type(record)
    row: dict[str, Any] = {}
    for name, (part, _) in _nested(kind).items():
        value = getattr(record, name)
        if part is None:
            row[name] = value
        elif value is not None:
            row |= flatten(value)
    return row


@cache
def _nested(kind: Any) -> dict[str, tuple[type[Any] | None, bool]]:
    """For each field its dataclass, None if it is a column, and whether the field may be None."""
    hints = get_type_hints(kind)
    found: dict[str, tuple[type[Any] | None, bool]] = {}
    for field in fields(kind):
        hint = hints[field.name]
        choices = get_args(hint) if get_origin(hint) is UnionType else (hint,)
        part = next((choice for choice in choices if is_dataclass(choice)), None)
        found[field.name] = part, type(None) in choices  # type: ignore[assignment]
    return found


def _first_column(kind: Any) -> str:
    name, (part, _) = next(iter(_nested(kind).items()))
    return name if part is None else _first_column(part)


def _build(kind: Any, row: dict[str, Any]) -> Any:
    values: dict[str, Any] = {}
    for name, (part, optional) in _nested(kind).items():
        if part is None:
            values[name] = row.get(name)
        elif not (optional and row.get(_first_column(part)) is None):
            values[name] = _build(part, row)
        else:
            values[name] = None
    return kind(**values)


def _to_column(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Build a column. Lists may be Arrow arrays, whose items never become Python objects."""
    if not pa.types.is_list(kind) or not any(isinstance(value, pa.Array) for value in values):
        return pa.array(values, kind)
    lengths = [0 if value is None else len(value) for value in values]
    offsets, end = [], 0
    for value, length in zip(values, lengths, strict=True):
        offsets.append(None if value is None else end)
        end += length
    items = pa.concat_arrays([value for value in values if value is not None])
    return pa.ListArray.from_arrays(
        pa.array([*offsets, end], pa.int32()), items.cast(kind.value_type)
    )


def _from_column(column: pa.ChunkedArray) -> Iterable[Any]:
    if pa.types.is_list(column.type) and pa.types.is_struct(column.type.value_type):
        return [scalar.values for scalar in column]
    return column.to_pylist()  # type: ignore[no-any-return]
