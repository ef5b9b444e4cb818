"""Reading runs, their tasks, attempts and events."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Select, cast, literal_column, select
from sqlalchemy.dialects.postgresql import JSONB

from millstream.application.views.runs import OpenChild
from millstream.application.views.steps import ItemCounts, StepEnd
from millstream.application.views.tasks import TaskQuery
from millstream.domain.code import ABANDONED
from millstream.domain.runs import (
    CHILD_QUEUE,
    Attempt,
    Event,
    EventType,
    PayloadKind,
    Run,
    RunKind,
    Task,
    TaskStatus,
)
from millstream.store.columns import uuids
from millstream.store.connections import Database
from millstream.store.labels import labelled
from millstream.store.query import count, fetch, text_id, uid
from millstream.store.rows import (
    ATTEMPT_COLUMNS,
    EVENT_COLUMNS,
    RUN_COLUMNS,
    TASK_COLUMNS,
    attempt_of,
    event_of,
    fraction_of,
    run_of,
    task_of,
)
from millstream.store.tables.columns import LABELLED
from millstream.store.tables.runs import run
from millstream.store.tables.tasks import task

_RUN = f"SELECT {RUN_COLUMNS} FROM run WHERE id = $1::text::uuid AND tenant = $2"  # noqa: S608
_TASK = f"SELECT {TASK_COLUMNS} FROM task WHERE id = $1::text::uuid AND tenant = $2"  # noqa: S608
_EVENTS = f"""SELECT {EVENT_COLUMNS} FROM event WHERE day = $1 AND run_id = $2::text::uuid AND seq > $3::int8
ORDER BY seq LIMIT $4"""  # noqa: S608
_PAYLOAD = "SELECT value FROM run_payload WHERE day = $1 AND run_id = $2::text::uuid AND what = $3"
_BY_ID = f"SELECT {RUN_COLUMNS} FROM run WHERE id = $1::text::uuid"  # noqa: S608
_WAITING_CHILDREN = f"""SELECT {TASK_COLUMNS} FROM task WHERE run_id = $1::text::uuid AND queue = '{CHILD_QUEUE}'
AND status = 2 ORDER BY id LIMIT 1000"""  # noqa: S608
_KNOWN = "SELECT id::text FROM run WHERE id = ANY($1::text[]::uuid[])"
_DUE_OF = """SELECT id::text FROM run WHERE due_us > 0 AND tenant = $1 AND workflow = $2 ORDER BY due_us
LIMIT 100000"""
_OPEN_CHILDREN = f"""SELECT r.id::text AS child, t.id::text AS task, t.tries, t.finished_us > 0 AS ended FROM run r
JOIN task t ON t.id = r.parent_task
WHERE r.parent_id = $1::text::uuid AND r.finished_us = 0 AND t.item <> {ABANDONED} ORDER BY r.id LIMIT 10000"""  # noqa: S608
_GENERATION = """WITH RECURSIVE up(parent, n) AS (SELECT $1::text::uuid, 1 UNION ALL
SELECT run.parent_id, n + 1 FROM up JOIN run ON run.id = up.parent WHERE n < $2) SELECT max(n) FROM up"""
_STEP_TASKS = f"""SELECT DISTINCT ON (step) {TASK_COLUMNS} FROM task
WHERE run_id = $1::text::uuid AND step > 0 AND item = 0 ORDER BY step, task.id DESC"""  # noqa: S608
_ITEMS = """SELECT step, count(*) AS made, count(*) FILTER (WHERE status >= 4) AS ended,
count(*) FILTER (WHERE status >= 5) AS failed FROM task WHERE run_id = $1::text::uuid AND item > 0 GROUP BY step"""
_STEP_ENDS = """SELECT step, item, t.status, output, t.error_code, t.error_message FROM task t
LEFT JOIN attempt a ON a.day = t.day AND a.task_id = t.id AND a.number = t.attempt
WHERE t.run_id = $1::text::uuid AND step > 0 AND t.finished_us > 0 ORDER BY t.id"""
_FIRST_END = """SELECT seq, at_us FROM event WHERE day = $1 AND run_id = $2::text::uuid AND seq > $3
AND type = ANY($4::int2[]) ORDER BY seq LIMIT 1"""
_LIMITS = f"""SELECT {EVENT_COLUMNS} FROM event WHERE day = $1 AND run_id = $2::text::uuid AND type = $3
ORDER BY seq LIMIT 100"""  # noqa: S608
_ATTEMPTS = f"""SELECT {ATTEMPT_COLUMNS} FROM attempt WHERE day = $1 AND task_id = $2::text::uuid AND number > $3::int8
ORDER BY number LIMIT $4"""  # noqa: S608
_OUTPUT = "SELECT output FROM attempt WHERE day = $1 AND task_id = $2::text::uuid AND number = $3"
_FAILED = f"SELECT {TASK_COLUMNS} FROM task WHERE run_id = $1::text::uuid AND status = 5 ORDER BY task.id LIMIT 1000"  # noqa: S608
_FIRST_FAILURE = """SELECT kind, error_code, error_message FROM task WHERE run_id = $1::text::uuid AND status = 5
ORDER BY id LIMIT 1"""
_ENDED = """SELECT id::text FROM run WHERE id = ANY($1::text[]::uuid[]) AND finished_us > 0
UNION ALL SELECT id::text FROM task WHERE id = ANY($1::text[]::uuid[]) AND finished_us > 0"""
# Those that run have an owner: to say it by their status would offer the planner an index over all that run.
_SHARES = """SELECT run_id::text, sum(progress::float8) AS share,
(array_agg(progress_message ORDER BY started_us DESC, id) FILTER (WHERE progress_message <> ''))[1] AS words FROM task
WHERE run_id = ANY($1::text::uuid[]) AND owner <> '' AND item <= 0 AND progress > 0 GROUP BY run_id"""
_ENDINGS = [int(kind) for kind in (EventType.RUN_COMPLETED, EventType.RUN_FAILED, EventType.RUN_CANCELLED)]

_TASK_LIST = tuple(
    text_id(column) if column.key in ("id", "run_id") else column for column in task.c if column.key != "input"
)


class RunReads:
    """Reads of runs and what is in them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def run(self, tenant: str, run_id: str) -> Run | None:
        """A run of a tenant."""
        row = await self._database.fetchrow(_RUN, run_id, tenant)
        return run_of(row) if row else None

    async def ended(self, run_ids: list[str]) -> list[str]:
        """Those of the runs, and of the tasks among them, that have ended."""
        return [row["id"] for row in await self._database.fetch(_ENDED, run_ids)]

    async def run_by_id(self, run_id: str) -> Run | None:
        """A run of any tenant, for the server itself."""
        row = await self._database.fetchrow(_BY_ID, run_id)
        return run_of(row) if row else None

    async def waiting_children(self, parent: Run) -> list[Task]:
        """Tasks of a run that wait for runs of their own, the first 1,000."""
        rows = await self._database.fetch(_WAITING_CHILDREN, parent.id)
        return [task_of(row) for row in rows]

    async def known_runs(self, run_ids: Sequence[str]) -> set[str]:
        """Which of these runs there are."""
        return {row["id"] for row in await self._database.fetch(_KNOWN, list(run_ids))}

    async def generation(self, run: Run, most: int) -> int:
        """How many runs there are from the one that nobody began to this one, both counted; `most` at most."""
        return int(await self._database.fetchval(_GENERATION, run.parent_id, most))

    async def due_of(self, tenant: str, workflow: str) -> list[str]:
        """Runs of a workflow that somebody has to look at, the first 100,000."""
        return [row["id"] for row in await self._database.fetch(_DUE_OF, tenant, workflow)]

    async def open_children(self, parent: Run) -> list[OpenChild]:
        """Open runs that a run has begun and not abandoned, the first 10,000."""
        rows = await self._database.fetch(_OPEN_CHILDREN, parent.id)
        return [OpenChild(row["child"], row["task"], row["tries"], row["ended"]) for row in rows]

    async def step_tasks(self, found: Run) -> dict[int, Task]:
        """The latest task of each step of a graph run, by the step's number from 0; items of maps left out."""
        rows = await self._database.fetch(_STEP_TASKS, found.id)
        return {row["step"] - 1: task_of(row) for row in rows}

    async def item_counts(self, found: Run) -> dict[int, ItemCounts]:
        """How far the maps of a graph run are, by the step's number from 0."""
        rows = await self._database.fetch(_ITEMS, found.id)
        return {row["step"] - 1: ItemCounts(row["made"], row["ended"], row["failed"]) for row in rows}

    async def step_ends(self, found: Run) -> list[StepEnd]:
        """How the tasks of a graph run's steps ended, in the order they were made."""
        return [
            StepEnd(
                row["step"], row["item"], TaskStatus(row["status"]), bytes(row["output"] or b""),
                row["error_code"], row["error_message"],
            )
            for row in await self._database.fetch(_STEP_ENDS, found.id)
        ]  # fmt: skip

    async def payload(self, found: Run, what: PayloadKind) -> bytes:
        """What a run was given or answers, google.protobuf.Value in wire form; empty where there is none."""
        return bytes(await self._database.fetchval(_PAYLOAD, found.day, found.id, int(what)) or b"")

    async def events(self, found: Run, after_seq: int, limit: int) -> list[Event]:
        """Events in order; one more than `limit` where there are more."""
        rows = await self._database.fetch(_EVENTS, found.day, found.id, after_seq, limit + 1)
        return [event_of(row) for row in rows]

    async def first_end(self, found: Run, after_seq: int) -> tuple[int, int] | None:
        """Number and time of the run's first end after an event."""
        row = await self._database.fetchrow(_FIRST_END, found.day, found.id, after_seq, _ENDINGS)
        return (row["seq"], row["at_us"]) if row else None

    async def limits_reached(self, found: Run) -> list[Event]:
        """The CASCADE_LIMIT events of a run, the first 100."""
        rows = await self._database.fetch(_LIMITS, found.day, found.id, int(EventType.CASCADE_LIMIT))
        return [event_of(row) for row in rows]

    async def failed_tasks(self, run_id: str) -> list[Task]:
        """Finally failed tasks of a run, the first 1,000."""
        return [task_of(row) for row in await self._database.fetch(_FAILED, run_id)]

    async def first_failure(self, run_id: str) -> tuple[str, str]:
        """Code and message of a run's first finally failed task, with its kind; empty where there is none."""
        row = await self._database.fetchrow(_FIRST_FAILURE, run_id)
        return (row["error_code"], f"{row['kind']}: {row['error_message']}") if row else ("", "")

    async def running_shares(self, run_ids: Sequence[str]) -> dict[str, tuple[float, str]]:
        """Of the tasks of runs that run, the shares done, summed by run, and what was said of that which began last;
        items of maps left out."""
        rows = await self._database.fetch(_SHARES, uuids(run_ids))
        return {row["run_id"]: (fraction_of(row["share"]), row["words"] or "") for row in rows}

    async def task(self, tenant: str, task_id: str) -> Task | None:
        """A task of a tenant, with its input."""
        row = await self._database.fetchrow(_TASK, task_id, tenant)
        return task_of(row) if row else None

    async def output(self, found: Task) -> bytes:
        """What the latest attempt of a task returned."""
        return bytes(await self._database.fetchval(_OUTPUT, found.day, found.id, found.attempt) or b"")

    async def attempts(self, found: Task, after: int, limit: int) -> list[Attempt]:
        """Ended attempts of a task; one more than `limit` where there are more."""
        rows = await self._database.fetch(_ATTEMPTS, found.day, found.id, after, limit + 1)
        return [attempt_of(row) for row in rows]

    async def tasks(self, tenant: str, query: TaskQuery, after_id: str, skip: int, limit: int) -> list[Task]:
        """Tasks without input, newest first, or of one run in the order they were made; one more than `limit` where
        there are more."""
        upwards = bool(query.run_id) if query.oldest_first is None else query.oldest_first
        statement = (await self._wanted(tenant, query)).order_by(task.c.id if upwards else task.c.id.desc())
        if after_id:
            beyond = task.c.id > uid(after_id) if upwards else task.c.id < uid(after_id)
            statement = statement.where(beyond)
        rows = await fetch(self._database, statement.offset(skip).limit(limit + 1))
        return [task_of({**row, "input": b""}) for row in rows]

    async def count_tasks(self, tenant: str, query: TaskQuery) -> tuple[int, bool]:
        """How many match, and whether that is an estimate."""
        return await count(self._database, await self._wanted(tenant, query))

    async def _wanted(self, tenant: str, query: TaskQuery) -> Select[Any]:
        """Which tasks; those whose labels few have are among these."""
        ids = await labelled(self._database, "task", tenant, query.labels) if query.labels else None
        if ids is None:
            return _tasks(tenant, query)
        return _tasks(tenant, replace(query, labels="")).where(task.c.id.in_([uid(each) for each in ids]))


def _tasks(tenant: str, query: TaskQuery) -> Select[Any]:
    # A code run's own task, which runs its code, is none that it made.
    found = select(*_TASK_LIST).where(task.c.tenant == tenant, task.c.id != task.c.run_id)
    if query.run_id:
        found = found.where(task.c.run_id == uid(query.run_id))
    if query.status is not None:
        wanted = (TaskStatus.PENDING, TaskStatus.IN_LINE) if query.status is TaskStatus.PENDING else (query.status,)
        found = found.where(task.c.status.in_([*map(int, wanted)]))
    if query.statuses:
        found = found.where(task.c.status.in_([*map(int, query.statuses)]))
    if query.standalone:
        own = select(run.c.id).where(run.c.id == task.c.run_id, run.c.kind == int(RunKind.SINGLE))
        found = found.where(task.c.step == 0, task.c.agent == "", own.exists())
    if query.kind:
        found = found.where(task.c.kind == query.kind)
    if query.agent:
        found = found.where(task.c.agent == query.agent)
    if query.worker:
        found = found.where(task.c.worker_name == query.worker)
    if query.labels:
        labels = cast(query.labels, JSONB)
        found = found.where(cast(task.c.labels, JSONB).contains(labels), literal_column(LABELLED))
    if query.queue:
        found = found.where(task.c.queue == query.queue)
    if query.created_after_us:
        found = found.where(task.c.created_us >= query.created_after_us)
    if query.created_before_us:
        found = found.where(task.c.created_us < query.created_before_us)
    return found
