"""Lists of runs, each page of which costs the same however many runs there are.

A page goes down one index: that of a workflow, of the children of a run, of the few runs that failed or were cancelled,
or of all runs of a tenant. What the index does not tell is asked of each run on the way, of SCAN_MOST runs at most; a
page that ends there says where to go on. Labels have an index of their own, without an order: where few runs have them,
it tells these; where many do, they are soon met on the way. Which it is, is looked up: the planner cannot know.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Select,
    Text,
    Uuid,
    and_,
    any_,
    bindparam,
    case,
    cast,
    func,
    literal,
    literal_column,
    or_,
    select,
    tuple_,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.sql.expression import FromClause, union_all

from millstream.application.views.runs import FoundRuns, RunQuery
from millstream.domain.runs import Run, RunStatus
from millstream.store.connections import Database, Record
from millstream.store.labels import labelled
from millstream.store.query import count, estimated, fetch, text_id, uid
from millstream.store.rows import RUN_COLUMNS, run_of
from millstream.store.tables.columns import LABELLED
from millstream.store.tables.runs import run

SCAN_MOST = 10_000
"""Runs that a page looks at beyond those that it passes over."""
SORT_MOST = 10_000
"""Runs that are sorted by when something last happened in them: no index has that, as it changes with every event."""
TROUBLED = frozenset({RunStatus.CANCELLING, RunStatus.FAILED, RunStatus.CANCELLED})
"""Statuses by which runs are indexed."""
_IDS = ("id", "parent_id", "parent_task", "rerun_of")
_ID_PART = re.compile(r"[0-9a-f-]{1,36}").fullmatch
_WHOLE_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}[0-9a-f-]{0,23}").fullmatch
"""A UUID, or its beginning by which its time is known to the millisecond."""
_BY_IDS = f"SELECT {RUN_COLUMNS} FROM run WHERE id = ANY($2::text[]::uuid[]) AND tenant = $1"  # noqa: S608

Query = Select[Any]
Place = tuple[int, str]
Ids = Sequence[str] | None


class RunLists:
    """Lists of runs."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def runs(self, tenant: str, query: RunQuery, after: Place | None, skip: int, limit: int) -> FoundRuns:
        """A page of runs; fewer than `limit` also where too few of those that it looked at match."""
        query, ids = await self._looked_up(tenant, query)
        statement = page_of(tenant, query, after, skip, limit, ids)
        found = [_run(row) for row in await fetch(self._database, statement)]
        if len(found) > limit:
            found = found[:limit]
            last = found[-1]
            return FoundRuns(found, (last.updated_us if query.by_updated else last.created_us, last.id))
        if query.by_updated or not _asks_on_the_way(query):
            return FoundRuns(found, None)
        end = end_of(tenant, query, after, skip, ids)
        rows = await fetch(self._database, end)
        return FoundRuns(found, (rows[0]["created_us"], rows[0]["id"]) if rows else None)

    async def count_runs(self, tenant: str, query: RunQuery) -> tuple[int, bool]:
        """How many match, and whether that is an estimate. Of those sorted by updates, how many are."""
        query, ids = await self._looked_up(tenant, query)
        if not _asks_on_the_way(query) and not query.by_updated:
            return await count(self._database, _indexed(tenant, query, ids))
        most = SORT_MOST if query.by_updated else SCAN_MOST
        seen = _ordered(tenant, query, None, most, ids).subquery()
        matching = func.count().filter(_matches(seen, query))
        counts: list[ColumnElement[Any]] = [matching.label("n"), func.count().label("seen")]
        row = (await fetch(self._database, select(*counts).select_from(seen)))[0]
        if query.by_updated or row["seen"] < most:
            return row["n"], False
        whole = await estimated(self._database, _indexed(tenant, query, ids))
        return max(row["n"], whole * row["n"] // most), True

    async def _looked_up(self, tenant: str, query: RunQuery) -> tuple[RunQuery, list[str] | None]:
        """The query without labels that few runs have, and the ids of these; None where many do."""
        labels = dict(query.labels)
        if not labels:
            return query, None
        if len(labels) < len(set(query.labels)):
            # One label with two values.
            return replace(query, labels=()), []
        ids = await labelled(self._database, "run", tenant, json.dumps(labels, ensure_ascii=False))
        return (query, None) if ids is None else (replace(query, labels=()), [*ids])

    async def runs_by_ids(self, tenant: str, ids: list[str]) -> dict[str, Run]:
        """Runs of a tenant by id."""
        return {found.id: found for found in map(run_of, await self._database.fetch(_BY_IDS, tenant, ids))}


def _run(row: Record) -> Run:
    return run_of({name: value for name, value in row.items() if name != "uuid"})


def page_of(tenant: str, query: RunQuery, after: Place | None, skip: int, limit: int, ids: Ids = None) -> Query:
    """The statement of a page, and one run more. `ids`: those that it is among."""
    if query.by_updated:
        seen = _ordered(tenant, query, None, SORT_MOST, ids).subquery()
        return _sorted(seen, query, after).offset(skip).limit(limit + 1)
    if not _asks_on_the_way(query):
        return _ordered(tenant, query, after, None, ids).offset(skip).limit(limit + 1)
    seen = _ordered(tenant, query, after, skip + SCAN_MOST, ids).subquery()
    found = select(*seen.c).where(_matches(seen, query)).order_by(*_order(seen, query))
    return found.offset(skip).limit(limit + 1)


def end_of(tenant: str, query: RunQuery, after: Place | None, skip: int, ids: Ids = None) -> Query:
    """The statement for the last run that a page looks at, if there are as many."""
    seen = _ordered(tenant, query, after, skip + SCAN_MOST, ids).subquery()
    last: Query = select(seen.c.created_us, seen.c.id)
    return last.offset(skip + SCAN_MOST - 1).limit(1)


def _sorted(seen: FromClause, query: RunQuery, after: Place | None) -> Query:
    keys = (seen.c.updated_us, seen.c.id)
    found = select(*seen.c).where(_matches(seen, query))
    if after is not None:
        place = tuple_(literal(after[0], BigInteger), literal(after[1], Text))
        found = found.where(tuple_(*keys) > place if query.ascending else tuple_(*keys) < place)
    return found.order_by(*(each if query.ascending else each.desc() for each in keys))


def _order(table: FromClause, query: RunQuery) -> list[ColumnElement[Any]]:
    keys: list[ColumnElement[Any]] = [table.c.created_us, table.c.uuid if "uuid" in table.c else table.c.id]
    return keys if query.ascending and not query.by_updated else [each.desc() for each in keys]


def _columns() -> list[ColumnElement[Any]]:
    listed = [text_id(each) if each.key in _IDS else each for each in run.c if each.key != "trouble"]
    # Its text sorts alike, but not for the planner, which would sort anew what an index has in order.
    return [*listed, run.c.id.label("uuid")]


def _ordered(tenant: str, query: RunQuery, after: Place | None, most: int | None, ids: Ids = None) -> Query:
    """The runs that an index leads to, in their order, from a place on."""

    def from_place(found: Query) -> Query:
        if after is not None and not query.by_updated:
            key = tuple_(run.c.created_us, run.c.id)
            place = tuple_(literal(after[0], BigInteger), literal(uid(after[1]), Uuid))
            found = found.where(key > place if query.ascending else key < place)
        return found.order_by(*_order(run, query)).limit(most)

    found = _narrowed(tenant, query, ids)
    statuses = _by_trouble(query)
    if not statuses or ids is not None:
        return from_place(found.where(run.c.trouble.in_([int(each) for each in statuses])) if statuses else found)
    # Each status has its own stretch of the index: their beginnings, merged.
    indexed = found.where(run.c.trouble > literal_column("0"))
    parts = [from_place(indexed.where(run.c.trouble == int(each))) for each in statuses]
    if len(parts) == 1:
        return parts[0]
    merged = union_all(*(select(each.subquery()) for each in parts)).subquery()
    return select(*merged.c).order_by(*_order(merged, query)).limit(most)


def _narrowed(tenant: str, query: RunQuery, ids: Ids) -> Query:
    """What an index can tell."""
    found = select(*_columns()).where(run.c.tenant == tenant)
    if query.created_after_us:
        found = found.where(run.c.created_us >= query.created_after_us)
    if query.created_before_us:
        found = found.where(run.c.created_us < query.created_before_us)
    if query.parent_id:
        found = found.where(run.c.parent_id == uid(query.parent_id), run.c.parent_id.is_not(None))
    if query.workflow:
        found = found.where(run.c.workflow == query.workflow, run.c.workflow != literal_column("''"))
    if ids is not None:
        found = found.where(run.c.id == any_(bindparam(None, [uid(each) for each in ids], type_=ARRAY(Uuid))))
    if query.text and _WHOLE_ID(query.text):
        first, last = (uid((query.text.replace("-", "") + fill * 32)[:32]) for fill in "0f")
        found = found.where(run.c.id >= first, run.c.id <= last)
    return found


def _indexed(tenant: str, query: RunQuery, ids: Ids) -> Query:
    """All runs that an index leads to."""
    found, statuses = _narrowed(tenant, query, ids), _by_trouble(query)
    if not statuses:
        return found
    return found.where(run.c.trouble.in_([int(each) for each in statuses]), run.c.trouble > literal_column("0"))


def _by_trouble(query: RunQuery) -> list[RunStatus]:
    """The statuses to go by, where all that are asked for are indexed and nothing narrower is."""
    narrower = query.parent_id or query.workflow
    return sorted(set(query.statuses)) if not narrower and TROUBLED.issuperset(query.statuses) else []


def _asks_on_the_way(query: RunQuery) -> bool:
    asked = (query.statuses and not _by_trouble(query)) or query.kind is not None or query.text or query.labels
    return bool(asked or _picks_workflows(query))


def _picks_workflows(query: RunQuery) -> bool:
    return query.of_workflows and not query.workflow


def _matches(table: FromClause, query: RunQuery) -> ColumnElement[bool]:
    """What is asked of each run on the way."""
    asked: list[ColumnElement[bool]] = [literal_column("true")]
    if query.statuses and not _by_trouble(query):
        asked.append(table.c.status.in_([int(each) for each in query.statuses]))
    if query.kind is not None:
        asked.append(table.c.kind == int(query.kind))
    if _picks_workflows(query):
        asked.append(table.c.workflow != "")
    if query.labels:
        labels = cast(json.dumps(dict(query.labels), ensure_ascii=False), JSONB)
        asked.append(_labels(table).contains(labels))
    if query.text and not _WHOLE_ID(query.text):
        asked.append(_mentions(table, query.text))
    return and_(*asked)


def _labels(table: FromClause) -> ColumnElement[Any]:
    return cast(case((literal_column(LABELLED), table.c.labels), else_=literal("{}")), JSONB)


def _mentions(table: FromClause, text: str) -> ColumnElement[bool]:
    def has(value: ColumnElement[Any]) -> ColumnElement[bool]:
        return func.strpos(func.lower(value), text) > 0

    values = func.jsonb_each_text(_labels(table)).table_valued("key", "value").render_derived(name="label")
    labels = select(literal(1)).select_from(values).where(has(values.c.value)).correlate(table).exists()
    found = [has(table.c.workflow), has(table.c.error_message), and_(table.c.labels != "", labels)]
    if _ID_PART(text):
        found.append(cast(table.c.id, Text).like(text + "%"))
    return or_(*found)
