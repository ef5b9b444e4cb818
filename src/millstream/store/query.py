"""Cold queries: SQLAlchemy Core statements run on asyncpg."""

import json
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Select, Text, cast, func, select
from sqlalchemy.dialects.postgresql import asyncpg as dialect
from sqlalchemy.sql.elements import KeyedColumnElement

from millstream.application.paging import EXACT_TOTAL
from millstream.store.connections import Database, Record

_DIALECT = dialect.dialect()  # type: ignore[no-untyped-call]  # SQLAlchemy leaves its dialects untyped

_LAST_MS = (1 << 48) - 1


def compiled(statement: Select[Any]) -> tuple[str, list[Any]]:
    """The statement's text and its arguments in order."""
    made = statement.compile(dialect=_DIALECT, compile_kwargs={"render_postcompile": True})
    return str(made), [made.params[name] for name in made.positiontup or ()]


async def fetch(database: Database, statement: Select[Any]) -> list[Record]:
    """All rows of a statement."""
    text, arguments = compiled(statement)
    return list(await database.fetch(text, *arguments))


def text_id(column: KeyedColumnElement[Any]) -> ColumnElement[str]:
    """A UUID column as text, under its own name."""
    return cast(column, Text).label(column.key)


def uid(value: str) -> UUID:
    """A UUID argument."""
    return UUID(value)


def first_id(at_us: int) -> str:
    """The first UUIDv7 of a millisecond."""
    at_ms = f"{min(max(at_us, 0) // 1000, _LAST_MS):012x}"
    return f"{at_ms[:8]}-{at_ms[8:]}-7000-8000-000000000000"


async def count(database: Database, statement: Select[Any]) -> tuple[int, bool]:
    """How many rows a statement has, and whether that is an estimate: counting stops a step beyond EXACT_TOTAL, and
    then the planner's own estimate is given."""
    inner = statement.order_by(None).limit(EXACT_TOTAL + 1).subquery()
    text, arguments = compiled(select(func.count()).select_from(inner))
    found = int(await database.fetchval(text, *arguments))
    if found <= EXACT_TOTAL:
        return found, False
    # Of the rows themselves: below an aggregate that runs in parallel, the plan tells only each worker's part.
    return max(await estimated(database, statement), found), True


async def estimated(database: Database, statement: Select[Any]) -> int:
    """The planner's own estimate of how many rows a statement has."""
    text, arguments = compiled(statement.order_by(None))
    plan = await database.fetchval(f"EXPLAIN (FORMAT JSON) {text}", *arguments)
    return int(json.loads(plan)[0]["Plan"]["Plan Rows"])
