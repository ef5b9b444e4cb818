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


async def count(database: Database, statement: Select[Any]) -> tuple[int, bool]:
    """How many rows a statement has, and whether that is an estimate: counting stops a step beyond EXACT_TOTAL, and
    then the planner's own estimate is given."""
    bounded = statement.with_only_columns(func.count().label("one"), maintain_column_froms=True).order_by(None)
    inner = statement.order_by(None).limit(EXACT_TOTAL + 1).subquery()
    text, arguments = compiled(select(func.count()).select_from(inner))
    found = int(await database.fetchval(text, *arguments))
    if found <= EXACT_TOTAL:
        return found, False
    text, arguments = compiled(bounded)
    plan = await database.fetchval(f"EXPLAIN (FORMAT JSON) {text}", *arguments)
    rows = _estimate(plan)
    return max(rows, found), True


def _estimate(plan: str) -> int:
    node = json.loads(plan)[0]["Plan"]
    # The aggregate on top has one row; its input is what was to be counted.
    while node.get("Plans") and node["Plan Rows"] <= 1:
        node = node["Plans"][0]
    return int(node["Plan Rows"])
