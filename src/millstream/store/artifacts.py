"""Reading artifacts."""

import asyncio
from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Select,
    String,
    Text,
    Uuid,
    and_,
    any_,
    bindparam,
    case,
    cast,
    false,
    func,
    literal,
    literal_column,
    or_,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.sql.elements import ColumnElement

from millstream.application.paging import EXACT_TOTAL, PAGE_BYTES
from millstream.application.ports import TooSlow
from millstream.application.views.artifacts import ArtifactQuery, Consumption, Summary
from millstream.domain.artifacts import EXTERNAL, Artifact, Reader, size_bytes
from millstream.store.columns import uuids
from millstream.store.connections import Database
from millstream.store.query import compiled, count, fetch, first_id, text_id, uid
from millstream.store.rows import ARTIFACT_COLUMNS, artifact_of
from millstream.store.tables.artifacts import artifact
from millstream.store.tables.tasks import task

_COLUMNS = (
    text_id(artifact.c.id),
    artifact.c.tenant,
    text_id(artifact.c.run_id),
    artifact.c.seq,
    artifact.c.type,
    artifact.c.version,
    artifact.c.payload,
    artifact.c.produced_by,
    artifact.c.visibility,
    artifact.c.tags,
    artifact.c.partition_key,
    artifact.c.created_us,
    artifact.c.published_by,
    artifact.c.payload_digest,
    artifact.c.payload_bytes,
)
COLUMNS_WITHOUT_PAYLOAD: tuple[Any, ...] = (
    *(column for column in _COLUMNS if column.key != "payload"),
    literal_column("''::bytea").label("payload"),
    artifact.c.id.label("uuid"),
)
_BY_IDS = f"SELECT {ARTIFACT_COLUMNS} FROM artifact WHERE tenant = $1 AND id = ANY($2::text[]::uuid[])"  # noqa: S608
_OF_RUN = f"""SELECT {ARTIFACT_COLUMNS} FROM artifact WHERE run_id = $1::text::uuid AND seq > $2
ORDER BY seq LIMIT $3"""  # noqa: S608
_BEGUN_BY = """SELECT id::text FROM run WHERE parents <> '' AND string_to_array(parents, ',') && $2::text::text[]
AND tenant = $1 ORDER BY created_us LIMIT 10000"""
TAGS_COUNTED = 100
SUMMARY_S = 10.0
"""Seconds that a summary may take: it looks at every artifact that matches."""
SUMMARIES_AT_ONCE = 1
"""More wait for their turn, within the same time: else they could take all connections from other reads."""
_GROUPS = (
    func.grouping(artifact.c.type, artifact.c.produced_by, artifact.c.visibility_kind, artifact.c.tags).label("which"),
    artifact.c.type,
    artifact.c.produced_by,
    artifact.c.visibility_kind,
    artifact.c.tags,
)
_SPAN = (
    func.coalesce(func.min(artifact.c.created_us), 0).label("first"),
    func.coalesce(func.max(artifact.c.created_us), 0).label("last"),
)
_ALL = 0b1111
"""GROUPING() sets the bit of each column that a group is not by."""
_BY_TAGS = 0b1110
_BY = (0b0111, 0b1011, 0b1101, _BY_TAGS)
_SUMMED = f"""SELECT which, coalesce(type, produced_by, visibility_kind, '') AS name, n, first, last
FROM groups WHERE which <> {_BY_TAGS}
UNION ALL (SELECT {_BY_TAGS}, tag, sum(n)::int8, 0, 0 FROM groups, unnest(tags) tag WHERE which = {_BY_TAGS}
GROUP BY tag ORDER BY sum(n) DESC, tag LIMIT {TAGS_COUNTED})"""  # noqa: S608  (numbers of this module)
_CLOCKS_APART_US = 3_600_000_000
"""Ids have the time of a server, created_us that of the database: a span of time is looked up among ids an hour around
it, so that a list of one day does not pass over all the days since."""
_JSONB = JSONB


class ArtifactReads:
    """Reads of artifacts, each bounded in rows and in bytes."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._summing = asyncio.Semaphore(SUMMARIES_AT_ONCE)

    async def by_ids(self, tenant: str, ids: list[str]) -> dict[str, Artifact]:
        """Artifacts of a tenant by id."""
        rows = await self._database.fetch(_BY_IDS, tenant, ids)
        return {found.id: found for found in map(artifact_of, rows)}

    async def of_run(self, run_id: str, after_seq: int, limit: int) -> tuple[list[Artifact], bool]:
        """Artifacts of a cascade in the order they were stored, and whether there are more."""
        rows = await self._database.fetch(_OF_RUN, run_id, after_seq, limit + 1)
        return _cut([artifact_of(row) for row in rows], limit)

    async def seen_of_run(
        self, tenant: str, query: ArtifactQuery, reader: Reader | None, now_us: int, after_seq: int, limit: int
    ) -> tuple[list[Artifact], bool]:
        """Artifacts of one cascade that match, in the order they were stored, and whether there are more."""
        statement = _matching(tenant, query, reader, now_us).where(artifact.c.seq > after_seq).order_by(artifact.c.seq)
        rows = await fetch(self._database, statement.limit(limit + 1))
        return _cut([artifact_of(row) for row in rows], limit)

    async def seen(self, tenant: str, ids: Sequence[str], reader: Reader, now_us: int) -> set[str]:
        """Those of the artifacts that a reader may see."""
        statement = select(text_id(artifact.c.id)).where(
            artifact.c.tenant == tenant, artifact.c.id == any_(_uuids(ids)), visible_to(reader, now_us)
        )
        return {row["id"] for row in await fetch(self._database, statement)}

    async def seen_tasks(self, tenant: str, task_ids: Sequence[str], reader: Reader, now_us: int) -> set[str]:
        """Those of the tasks that were given nothing which a reader may not see; what is gone it may not."""
        ids = cast(func.string_to_array(task.c.artifact_ids, ","), ARRAY(Uuid))
        given = func.unnest(ids).table_valued("id").render_derived(name="given")
        visible = (
            select(literal(1))
            .where(artifact.c.tenant == tenant, artifact.c.id == given.c.id, visible_to(reader, now_us))
            .correlate(given)
            .exists()
        )
        hidden = select(literal(1)).select_from(given).where(~visible).correlate(task).exists()
        statement = select(text_id(task.c.id)).where(
            task.c.tenant == tenant, task.c.id == any_(_uuids(task_ids)), ~hidden
        )
        return {row["id"] for row in await fetch(self._database, statement)}

    async def seen_in_runs(self, tenant: str, run_ids: Sequence[str], reader: Reader, now_us: int) -> dict[str, int]:
        """How many artifacts of each run a reader may see, counted up to EXACT_TOTAL."""
        wanted = func.unnest(_uuids(run_ids)).table_valued("run").render_derived(name="wanted")
        inner = (
            select(literal(1))
            .where(artifact.c.tenant == tenant, artifact.c.run_id == wanted.c.run, visible_to(reader, now_us))
            .correlate(wanted)
            .limit(EXACT_TOTAL)
            .subquery()
        )
        counted = select(func.count()).select_from(inner).scalar_subquery()
        rows = await fetch(self._database, select(cast(wanted.c.run, Text).label("id"), counted.label("n")))
        return {row["id"]: row["n"] for row in rows}

    async def page(
        self,
        tenant: str,
        query: ArtifactQuery,
        reader: Reader | None,
        now_us: int,
        after_id: str,
        skip: int,
        limit: int,
    ) -> tuple[list[Artifact], bool]:
        """Artifacts newest first, and whether there are more. reader None sees all."""
        statement = _matching(tenant, query, reader, now_us).order_by(artifact.c.id.desc())
        if after_id:
            statement = statement.where(artifact.c.id < uid(after_id))
        rows = await fetch(self._database, statement.offset(skip).limit(limit + 1))
        return _cut([artifact_of(row) for row in rows], limit)

    async def count(self, tenant: str, query: ArtifactQuery, reader: Reader | None, now_us: int) -> tuple[int, bool]:
        """How many match, and whether that is an estimate."""
        return await count(self._database, _matching(tenant, query, reader, now_us))

    async def summary(self, tenant: str, query: ArtifactQuery, reader: Reader | None, now_us: int) -> Summary:
        """Counts by type, producer, visibility and tag, of one moment: one statement that passes over the artifacts
        once. Raises TooSlow after SUMMARY_S, the wait for its turn included."""
        groups = (
            _matching(tenant, query, reader, now_us)
            .with_only_columns(*_GROUPS, func.count().label("n"), *_SPAN)
            .group_by(text("GROUPING SETS ((), (artifact.type), (produced_by), (visibility_kind), (tags))"))
        )
        statement, arguments = compiled(groups)
        until = asyncio.get_running_loop().time() + SUMMARY_S
        try:
            async with asyncio.timeout_at(until):
                await self._summing.acquire()
        except TimeoutError as error:
            raise TooSlow from error
        try:
            left = until - asyncio.get_running_loop().time()
            rows = await self._database.fetch_within(left, f"WITH groups AS ({statement}) {_SUMMED}", *arguments)
        finally:
            self._summing.release()
        counts: dict[int, dict[str, int]] = {}
        for row in rows:
            counts.setdefault(row["which"], {})[row["name"]] = row["n"]
        whole = next(row for row in rows if row["which"] == _ALL)
        by_type, by_producer, by_visibility, tags = (counts.get(which, {}) for which in _BY)
        return Summary(whole["n"], by_type, by_producer, by_visibility, tags, whole["first"], whole["last"])

    async def consumptions(self, tenant: str, artifacts: list[Artifact]) -> dict[str, list[Consumption]]:
        """Who took these artifacts up, by artifact: the agents' tasks that started with them, in their cascade or in
        one that a gate of the tenant began with them."""
        ids = {found.run_id for found in artifacts}
        runs = [uid(run_id) for run_id in (*ids, *await self._begun_by(tenant, sorted(ids)))]
        wanted = {found.id for found in artifacts}
        rows = await fetch(
            self._database,
            select(task.c.artifact_ids, task.c.agent, text_id(task.c.run_id), task.c.started_us)
            .where(task.c.run_id.in_(runs), task.c.tenant == tenant, task.c.started_us > 0, task.c.agent != "")
            .order_by(task.c.id),
        )
        found: dict[str, list[Consumption]] = {}
        for row in rows:
            for artifact_id in row["artifact_ids"].split(","):
                if artifact_id in wanted:
                    taken = Consumption(artifact_id, row["agent"], row["run_id"], row["started_us"])
                    found.setdefault(artifact_id, []).append(taken)
        return found

    async def _begun_by(self, tenant: str, run_ids: list[str]) -> list[str]:
        """Runs that gates of the tenant began with artifacts of these."""
        return [row["id"] for row in await self._database.fetch(_BEGUN_BY, tenant, uuids(run_ids))]


def _uuids(ids: Sequence[str]) -> ColumnElement[Any]:
    return bindparam(None, [uid(each) for each in ids], type_=ARRAY(Uuid))


def _cut(found: list[Artifact], limit: int) -> tuple[list[Artifact], bool]:
    """At most `limit` artifacts and PAGE_BYTES of them, at least one; and whether there are more."""
    size = 0
    for n, item in enumerate(found[:limit]):
        size += size_bytes(item)
        if n and size > PAGE_BYTES:
            return found[:n], True
    return found[:limit], len(found) > limit


def _matching(tenant: str, query: ArtifactQuery, reader: Reader | None, now_us: int) -> Select[Any]:
    found = select(*_COLUMNS).where(artifact.c.tenant == tenant)
    if query.type:
        found = found.where(artifact.c.type == query.type)
    if query.produced_by:
        found = found.where(artifact.c.produced_by == query.produced_by)
        if query.produced_by != EXTERNAL:
            # Said in so many words, as the index of the rarer producers says it.
            found = found.where(artifact.c.produced_by != literal_column(f"'{EXTERNAL}'"))
    if query.correlation_id:
        found = found.where(artifact.c.run_id == uid(query.correlation_id))
    if query.tag:
        found = found.where(
            artifact.c.tags.contains(bindparam(None, [query.tag], type_=ARRAY(Text))),
            artifact.c.tags != literal_column("'{}'"),
        )
    if query.from_us:
        found = found.where(
            artifact.c.created_us >= query.from_us, artifact.c.id >= uid(first_id(query.from_us - _CLOCKS_APART_US))
        )
    if query.to_us:
        found = found.where(
            artifact.c.created_us < query.to_us, artifact.c.id < uid(first_id(query.to_us + _CLOCKS_APART_US))
        )
    if query.visibility:
        found = found.where(artifact.c.visibility_kind == query.visibility)
        if query.visibility != "Public":
            found = found.where(artifact.c.visibility_kind != literal_column("'Public'"))
    if reader is not None:
        found = found.where(visible_to(reader, now_us))
    return found


def visible_to(reader: Reader, now_us: int) -> ColumnElement[bool]:
    """domain.artifacts.visible in SQL."""
    spec = _spec(artifact.c.visibility)
    then = func.jsonb_path_query_first(spec, text("""'strict $.** ? (@.kind != "After")'"""), type_=_JSONB)
    return or_(
        artifact.c.produced_by == reader.agent if reader.agent not in ("", EXTERNAL) else false(),
        artifact.c.published_by == reader.name if reader.name else false(),
        _settled_for(reader, artifact.c.visibility_kind, spec),
        and_(
            artifact.c.visibility_kind == "After",
            artifact.c.created_us + hidden_us(artifact.c.visibility) <= now_us,
            _settled_for(reader, func.coalesce(then["kind"].astext, "Public"), then),
        ),
    )


def hidden_us(visibility: ColumnElement[str]) -> ColumnElement[Any]:
    """domain.artifacts.delay_us in SQL: an After, then another After, ..., then what stays: the sum of their times."""
    ttl_us = func.jsonb_path_query(_spec(visibility), text("'strict $.**.ttl_us'"), type_=_JSONB).column_valued(
        "ttl_us"
    )
    return select(func.sum(cast(ttl_us, BigInteger))).scalar_subquery()


def _spec(visibility: ColumnElement[str]) -> ColumnElement[Any]:
    return cast(case((visibility == "", literal("{}")), else_=visibility), _JSONB)


def _settled_for(reader: Reader, kind: ColumnElement[str], spec: ColumnElement[Any]) -> ColumnElement[bool]:
    labels = bindparam(None, sorted(reader.labels), type_=ARRAY(String))
    private = spec["agents"].contains(cast(func.to_jsonb(cast(literal(reader.agent), Text)), _JSONB))
    return or_(
        kind == "Public",
        and_(kind == "Private", private if reader.agent else false()),
        and_(kind == "Labelled", spec["required_labels"].contained_by(cast(func.to_jsonb(labels), _JSONB))),
        and_(kind == "Tenant", or_(spec["tenant_id"].astext == "", spec["tenant_id"].astext == reader.tenant)),
    )
