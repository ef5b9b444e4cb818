"""What data commands print: tables for people, JSON for machines, errors on stderr."""

import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, TypeAlias, TypeVar

import orjson
from rich.console import Console
from rich.table import Table
from rich.text import Text

from millstream.sdk import Listing, MillstreamError

ItemT = TypeVar("ItemT")

Columns: TypeAlias = Mapping[str, Callable[[Any], object]]
"""Heading -> what stands under it."""

ARTIFACT_COLUMNS: Final[Columns] = {
    "id": lambda a: a.id,
    "type": lambda a: a.type,
    "produced by": lambda a: a.produced_by,
    "created": lambda a: a.created_at,
    "tags": lambda a: a.tags,
    "payload": lambda a: a.payload,
}
_PIPED_WIDTH: Final = 400
"""What is piped is not wrapped: rich would cut it to 80 columns."""
_CELL: Final = 100
"""Longer JSON is cut in tables; `get` and `--json` show all of it."""


def console(*, stderr: bool = False) -> Console:
    """The terminal, or the file or pipe in its place."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, highlight=False, width=None if stream.isatty() else _PIPED_WIDTH)


def print_json(value: object, *, indent: bool = True) -> None:
    """One document; values of the SDK become objects, times RFC 3339 in UTC."""
    options = orjson.OPT_UTC_Z | (orjson.OPT_INDENT_2 if indent else 0)
    sys.stdout.write(orjson.dumps(value, default=_encode, option=options).decode() + "\n")


def _encode(value: object) -> object:
    if isinstance(value, MillstreamError):
        return {
            "code": value.code,
            "message": value.message,
            "correlation_id": value.correlation_id,
            "retryable": value.retryable,
            "details": value.details,
        }
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError


async def print_list(listing: Listing[ItemT], columns: Columns, *, as_json: bool, limit: int, title: str) -> None:
    """A list: as a table, or one JSON document a line as the pages come. `limit` 0: all."""
    shown = _limited(listing, limit)
    if as_json:
        async for item in shown:
            print_json(item, indent=False)
        return
    print_table([item async for item in shown], columns, title=title)


async def _limited(listing: Listing[ItemT], limit: int) -> AsyncIterator[ItemT]:
    count = 0
    async for item in listing:
        yield item
        count += 1
        if count == limit:
            return


def print_table(items: Sequence[object], columns: Columns, *, title: str) -> None:
    """Items as rows; a line that says so where there are none."""
    out = console()
    if not items:
        out.print(Text(f"no {title}"))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in columns:
        # Ids are copied: they are never cut.
        table.add_column(heading, no_wrap=heading == "id", overflow="fold")
    for item in items:
        table.add_row(*(Text(show(value(item))) for value in columns.values()))
    out.print(table)


def print_fields(fields: Mapping[str, object]) -> None:
    """One thing, a line for each field that is set; JSON is indented."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in fields.items():
        if value in (None, "", [], {}, ()):
            continue
        table.add_row(name, Text(_indented(value)))
    console().print(table)


def show(value: object) -> str:
    """The value in a table's cell."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, datetime):
        return value.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping | list):
        text = orjson.dumps(value, default=_encode).decode()
        return text if len(text) <= _CELL else text[: _CELL - 1] + "…"
    if isinstance(value, tuple):
        return ", ".join(map(show, value))
    return str(value)


def _indented(value: object) -> str:
    if isinstance(value, Mapping | list):
        return orjson.dumps(value, default=_encode, option=orjson.OPT_INDENT_2).decode()
    return show(value)


def print_error(error: MillstreamError, headline: str = "") -> None:
    """Code, message (or a headline in their place), the fields at fault and the correlation id, on stderr."""
    err = console(stderr=True)
    err.print(Text("error: ", style="bold red") + Text(headline or str(error)))
    for detail in error.details:
        kind = f" [{detail.code}]" if detail.code else ""
        err.print(Text(f"  {detail.field}: {detail.message}{kind}"))
    if error.correlation_id:
        err.print(Text(f"  correlation id: {error.correlation_id}", style="dim"))
