"""Columns of many rows as few, cheap statement parameters.

asyncpg checks every element of an array argument, which cost more than all of PostgreSQL's work on a batch. So a column
travels as one text, the array's literal, which PostgreSQL casts; and bytes travel as one blob, which it cuts by
offset and length. Measured on 500 rows: 0.14 us a value instead of 0.77.
"""

from collections.abc import Iterable, Sequence

_QUOTED: dict[str, str] = {"": '""'}
_QUOTED_MOST = 20_000
_QUOTED_CHARS = 200


def numbers(values: Iterable[int | float]) -> str:
    """Array literal of numbers."""
    return "{" + ",".join(map(str, values)) + "}"


def flags(values: Iterable[bool]) -> str:
    """Array literal of booleans."""
    return "{" + ",".join(["t" if value else "f" for value in values]) + "}"


def uuids(values: Iterable[str]) -> str:
    """Array literal of UUIDs; "" is NULL."""
    return "{" + ",".join([value or "NULL" for value in values]) + "}"


def quote(value: str) -> str:
    """A text as an element of an array literal."""
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def texts(values: Iterable[str]) -> str:
    """Array literal of texts that differ from row to row."""
    return "{" + ",".join([quote(value) if value else '""' for value in values]) + "}"


def names(values: Iterable[str]) -> str:
    """Array literal of texts that recur from row to row, such as kinds and tenants."""
    found = _QUOTED
    parts = []
    for value in values:
        quoted = found.get(value)
        if quoted is None:
            quoted = quote(value)
            if len(found) > _QUOTED_MOST:
                found.clear()
                found[""] = '""'
            if len(value) <= _QUOTED_CHARS:
                found[value] = quoted
        parts.append(quoted)
    return "{" + ",".join(parts) + "}"


def lists(values: Iterable[Sequence[str]]) -> str:
    """Array literal whose elements are array literals of texts, to be cast one by one."""
    return "{" + ",".join([quote(texts(value)) if value else '"{}"' for value in values]) + "}"


def blobs(values: Sequence[bytes]) -> tuple[bytes, str, str]:
    """All bytes as one, with the array literals of their offsets (from 1) and lengths."""
    offsets, offset = [], 1
    for value in values:
        offsets.append(offset)
        offset += len(value)
    return b"".join(values), numbers(offsets), numbers(map(len, values))
