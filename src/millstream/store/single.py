"""The statement of a small batch, which is most batches while few callers are about.

Arrays, their casts and the choice between an array's value and a constant cost PostgreSQL about 3 us a column, however
few the rows: 0.4 ms a statement, four times in a cascade. With at most one row a table (events apart) plain
parameters do, in their binary form. The rows written are the same.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from millstream.store.columns import lists, uuids
from millstream.store.hot import (
    BATCH_ROW,
    COLUMNS,
    DELETES,
    TOUCH,
    UPDATES,
    Column,
    fences,
    plain_of,
    selected,
    touch_sql,
    update_sql,
)

EVENTS_MOST = 8


def fits(rows: Mapping[str, Sequence[tuple[Any, ...]]]) -> bool:
    """Whether a batch is small enough."""
    return all(len(found) == 1 or (name == "event" and len(found) <= EVENTS_MOST) for name, found in rows.items())


def parameters_of(rows: Mapping[str, Sequence[tuple[Any, ...]]]) -> tuple[tuple[tuple[str, int], ...], list[Any]]:
    """The shape of a small batch (tables and their numbers of rows) and its parameters."""
    shape, parameters = [], []
    for name, found in rows.items():
        written = plain_of(name, list(zip(*found, strict=True)))
        shape.append((written, len(found)))
        for row in found:
            values = selected(written, row)
            parameters += [_value(column, value) for column, value in zip(COLUMNS[written], values, strict=True)]
    return tuple(shape), parameters


def _value(column: Column, value: Any) -> Any:
    return value or None if column.encode is uuids else value


def _type(column: Column) -> str:
    return "text[]" if column.encode is lists else column.type


@functools.lru_cache(512)
def write_sql(shape: tuple[tuple[str, int], ...], fenced: bool) -> str:
    """The statement of a small batch; its fences and result are those of hot.write_sql."""
    parts, n = [BATCH_ROW], 4
    for name, count in shape:
        part, n = _part(name, count, n)
        parts.append(part)
    fence = fences([name for name, _ in shape], n, fenced)
    return f"WITH {', '.join(parts)} SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::int8{fence}"  # noqa: S608


def _part(name: str, count: int, first: int) -> tuple[str, int]:
    """The write of one table from parameter `first`, and the number after its last."""
    columns = COLUMNS[name]
    n = first
    tuples = []
    for _ in range(count):
        values = [f"${n + place}::{_type(column)}" for place, column in enumerate(columns)]
        tuples.append(values)
        n += len(columns)
    if name == TOUCH:
        return touch_sql(tuples[0], ""), n
    if name in DELETES:
        table = DELETES[name][0]
        return f"{table}_deletes AS (DELETE FROM {table} WHERE id = ${first}::uuid RETURNING 1)", n  # noqa: S608
    if name not in UPDATES:
        table = name.removesuffix(" plain")
        listed = ", ".join(column.name for column in columns)
        written = ", ".join(f"({', '.join(values)})" for values in tuples)
        return f"{table}_rows AS (INSERT INTO {table} ({listed}) VALUES {written})", n  # noqa: S608  # our names only
    table = UPDATES[name][0]
    return f"{table}_updates AS ({update_sql(table, columns, tuples[0], '')})", n
