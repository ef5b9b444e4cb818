"""The checker: holds what the database has against what the clients were told.

To be run after the dust has settled, on the rows of the runs made since the scenario began. What it proves:

- every acknowledged write is there exactly once, under the ids of its answer, and its idempotency key points at it;
- a write without an answer is there once or not at all, a refused one not at all;
- every cascade finished, with exactly the artifacts that its orders set off: an effect once, though the execution is
  at least once;
- a run's events are numbered 1, 2, 3, ... and agree with its rows and counters;
- attempts are numbered upwards, each began once, and the last one alone completed the task;
- no execution was made twice under one fence;
- runs of workflows came to what they must; see flows.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
from tests.crash.flows import WORKFLOWS
from tests.crash.flows import judge as judge_flows
from tests.crash.history import Op, Stored

from millstream.domain.runs import AttemptStatus, EventType, RunStatus, TaskStatus
from millstream.domain.struct_wire import decode_struct, decode_value

CHAIN = ("Order", "Payment", "Shipment", "Notification")
_NUMBERS = """SELECT r.id::text, r.last_seq, count(e.seq) AS found, count(DISTINCT e.seq) AS numbers,
coalesce(min(e.seq), 0) AS first, coalesce(max(e.seq), 0) AS last
FROM run r LEFT JOIN event e ON e.run_id = r.id WHERE r.created_us >= $1
GROUP BY r.id HAVING count(e.seq) <> r.last_seq OR count(DISTINCT e.seq) <> r.last_seq
OR min(e.seq) <> 1 OR max(e.seq) <> r.last_seq"""
_OPEN_RUNS = """SELECT id::text, status, open_tasks, last_seq FROM run
WHERE created_us >= $1 AND (finished_us = 0 OR open_tasks <> 0 OR (status <> $2 AND kind <= 2))"""
_OPEN_TASKS = """SELECT t.id::text, t.kind, t.status, t.attempt, t.owner, t.error_code FROM task t
JOIN run r ON r.id = t.run_id
WHERE r.created_us >= $1 AND (t.finished_us = 0 OR t.owner <> '' OR (t.status <> $2 AND r.kind <= 2))"""
_COUNTERS = """SELECT r.id::text, r.task_count, r.failed_tasks, r.artifact_count,
(SELECT count(*) FROM task t WHERE t.run_id = r.id) AS tasks,
(SELECT count(*) FROM task t WHERE t.run_id = r.id AND t.status = 5) AS failed,
(SELECT count(*) FROM artifact a WHERE a.run_id = r.id) AS artifacts FROM run r WHERE r.created_us >= $1"""
_EVENTS = """SELECT r.id::text, r.task_count, r.artifact_count,
count(*) FILTER (WHERE e.type = $2) AS created, count(*) FILTER (WHERE e.type = $3) AS published,
count(*) FILTER (WHERE e.type = $4) AS completed,
count(DISTINCT e.task_id) FILTER (WHERE e.type = $4) AS completed_tasks,
count(*) FILTER (WHERE e.type = $5) - count(*) FILTER (WHERE e.type = $6) AS ends,
(array_agg(e.type ORDER BY e.seq))[1] AS first, (array_agg(e.type ORDER BY e.seq DESC))[1] AS last
FROM run r JOIN event e ON e.run_id = r.id WHERE r.created_us >= $1 AND r.kind <= 2 GROUP BY r.id"""
_MISPLACED = """SELECT a.id::text FROM artifact a JOIN run r ON r.id = a.run_id
LEFT JOIN event e ON e.run_id = a.run_id AND e.seq = a.seq AND e.artifact_id = a.id
WHERE r.created_us >= $1 AND e.seq IS NULL"""
_STARTS = """SELECT t.id::text, t.attempt, array_agg(e.attempt ORDER BY e.seq) AS starts FROM task t
JOIN run r ON r.id = t.run_id JOIN event e ON e.run_id = t.run_id AND e.task_id = t.id AND e.type = $2
WHERE r.created_us >= $1 GROUP BY t.id"""
_ATTEMPTS = """SELECT t.id::text, t.attempt, array_agg(a.number ORDER BY a.started_us, a.number) AS numbers,
array_agg(a.number) FILTER (WHERE a.status = $2) AS completed FROM task t
JOIN run r ON r.id = t.run_id JOIN attempt a ON a.task_id = t.id
WHERE r.created_us >= $1 AND t.id <> t.run_id AND t.status <> 5 GROUP BY t.id"""
_ARTIFACTS = """SELECT a.id::text, a.run_id::text, a.type, a.payload FROM artifact a JOIN run r ON r.id = a.run_id
WHERE r.created_us >= $1"""
_ECHOES = """SELECT t.id::text, t.run_id::text, t.input, a.output FROM task t JOIN run r ON r.id = t.run_id
LEFT JOIN attempt a ON a.task_id = t.id AND a.number = t.attempt
WHERE r.created_us >= $1 AND t.kind = 'crash.echo'"""
_KEYS = "SELECT key, response FROM idempotency WHERE created_us >= $1"
_COMPLETED = """SELECT t.id::text, t.attempt FROM task t JOIN run r ON r.id = t.run_id
WHERE r.created_us >= $1 AND t.status = $2 AND t.id <> t.run_id AND t.queue NOT LIKE '~%'"""
_TASK_IDS = "SELECT t.id::text FROM task t JOIN run r ON r.id = t.run_id WHERE r.created_us >= $1"


@dataclass(slots=True)
class Verdict:
    """What is wrong, in words, by kind. `re_executed`: tasks that ran more than once, which they may."""

    losses: list[str] = field(default_factory=list)
    duplicates: list[str] = field(default_factory=list)
    gaps: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    operations: int = 0
    acknowledged: int = 0
    unknown: int = 0
    refused: int = 0
    runs: int = 0
    events: int = 0
    executions: int = 0
    re_executed: int = 0

    @property
    def faults(self) -> list[str]:
        """All that is wrong."""
        named = ("losses", "duplicates", "gaps", "unfinished", "others")
        return [f"{name}: {text}" for name in named for text in getattr(self, name)]


async def now_us(url: str) -> int:
    """The database's time, as rows have it."""
    connection = await asyncpg.connect(url)
    try:
        return int(await connection.fetchval("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::int8"))
    finally:
        await connection.close()


async def check(url: str, ops: list[Op], executions: Path | None, since_us: int = 0) -> Verdict:
    """Judge what is stored of the runs made since then."""
    connection = await asyncpg.connect(url)
    try:
        # One snapshot for all of it.
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            return await judge(connection, ops, executions, since_us)
    finally:
        await connection.close()


async def judge(
    connection: asyncpg.Connection[Any], ops: list[Op], executions: Path | None, since_us: int = 0
) -> Verdict:
    """The same in a transaction of the caller's, and so with what that has changed."""
    return await _Checker(connection, ops, executions, since_us).run()


class _Checker:
    def __init__(
        self, connection: asyncpg.Connection[Any], ops: list[Op], executions: Path | None, since_us: int
    ) -> None:
        self._connection = connection
        self._ops = ops
        self._executions = executions
        self._since_us = since_us
        self._verdict = Verdict(operations=len(ops))

    async def run(self) -> Verdict:
        await self._runs()
        await self._events()
        await self._attempts()
        artifacts = await self._orders()
        tasks = await self._echoes()
        flows = await judge_flows(self._connection, self._ops, self._since_us)
        for name in ("losses", "duplicates", "unfinished", "others"):
            getattr(self._verdict, name).extend(getattr(flows, name))
        for op in self._ops:
            if op.kind in WORKFLOWS:
                self._told(op, op.orders[0])
        await self._keys(artifacts, tasks | flows.runs)
        await self._executed()
        return self._verdict

    async def _rows(self, statement: str, *arguments: object) -> list[asyncpg.Record]:
        return list(await self._connection.fetch(statement, self._since_us, *arguments))

    async def _runs(self) -> None:
        verdict = self._verdict
        for row in await self._rows(_OPEN_RUNS, RunStatus.COMPLETED):
            status = RunStatus(row["status"]).name
            verdict.unfinished.append(f"run {row['id']} is {status} with {row['open_tasks']} open tasks")
        for row in await self._rows(_OPEN_TASKS, TaskStatus.COMPLETED):
            status = TaskStatus(row["status"]).name
            verdict.unfinished.append(
                f"task {row['id']} ({row['kind']}) is {status} in attempt {row['attempt']} {row['error_code']}"
            )
        for row in await self._rows(_COUNTERS):
            verdict.runs += 1
            counted = (row["task_count"], row["failed_tasks"], row["artifact_count"])
            found = (row["tasks"], row["failed"], row["artifacts"])
            if counted != found:
                verdict.others.append(f"run {row['id']} counts (tasks, failed, artifacts) {counted}, has {found}")

    async def _events(self) -> None:
        verdict = self._verdict
        for row in await self._rows(_NUMBERS):
            text = (
                f"run {row['id']}: last_seq {row['last_seq']}, {row['found']} events, {row['first']} to {row['last']}"
            )
            doubled = row["numbers"] < row["found"]
            (verdict.duplicates if doubled else verdict.gaps).append(text)
        kinds = (
            EventType.TASK_CREATED, EventType.ARTIFACT_PUBLISHED, EventType.TASK_COMPLETED, EventType.RUN_COMPLETED,
            EventType.RUN_REOPENED,
        )  # fmt: skip
        for row in await self._rows(_EVENTS, *kinds):
            told = (row["created"], row["published"], row["completed"], row["completed_tasks"], row["ends"])
            due = (row["task_count"], row["artifact_count"], row["task_count"], row["task_count"], 1)
            if told != due:
                verdict.others.append(
                    f"run {row['id']}: events (created, published, completed, distinct, ends) {told}, rows say {due}"
                )
            if (row["first"], row["last"]) != (EventType.RUN_CREATED, EventType.RUN_COMPLETED):
                names = EventType(row["first"]).name, EventType(row["last"]).name
                verdict.others.append(f"run {row['id']} begins and ends with {names}")
        for row in await self._rows(_MISPLACED):
            verdict.others.append(f"artifact {row['id']} has no event of its number")
        verdict.events = await self._connection.fetchval(
            "SELECT coalesce(sum(last_seq), 0) FROM run WHERE created_us >= $1", self._since_us
        )

    async def _attempts(self) -> None:
        verdict = self._verdict
        for row in await self._rows(_STARTS, EventType.TASK_STARTED):
            if row["starts"] != list(range(1, row["attempt"] + 1)):
                verdict.others.append(f"task {row['id']} began attempts {row['starts']}, is in {row['attempt']}")
        for row in await self._rows(_ATTEMPTS, AttemptStatus.COMPLETED):
            if row["numbers"] != sorted(set(row["numbers"])) or row["numbers"][-1] > row["attempt"]:
                verdict.others.append(f"task {row['id']} has attempts {row['numbers']}, is in {row['attempt']}")
            if row["completed"] != [row["attempt"]]:
                verdict.others.append(f"task {row['id']} was completed by attempts {row['completed']}")

    async def _orders(self) -> set[str]:
        verdict = self._verdict
        found: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
        of_run: dict[str, set[str]] = defaultdict(set)
        for row in await self._rows(_ARTIFACTS):
            order = str(decode_struct(row["payload"])["order_id"])
            found[order].append((row["type"], row["id"], row["run_id"]))
            of_run[row["run_id"]].add(row["id"])
        for op in self._ops:
            if op.kind != "task" and op.kind not in WORKFLOWS:
                for order in op.orders:
                    self._order(op, order, found.pop(order, []))
                if op.cascade and set(op.cascade) != of_run[op.stored[0].run]:
                    verdict.others.append(f"the answer of {op.kind} {op.orders[0]} is not what its cascade has")
        for order in found:
            verdict.others.append(f"order {order} is stored, and nobody sent it")
        return set().union(*of_run.values())

    def _order(self, op: Op, order: str, found: list[tuple[str, str, str]]) -> None:
        verdict = self._verdict
        told = self._told(op, order)
        inputs = [(artifact_id, run) for kind, artifact_id, run in found if kind == "Order"]
        if len(inputs) > 1:
            verdict.duplicates.append(f"order {order} ({op.kind}, {op.outcome}) was stored {len(inputs)} times")
        elif told is not None and inputs != [(told.id, told.run)]:
            verdict.losses.append(f"order {order} ({op.kind} by {op.door}): told {told}, stored {inputs}")
        elif op.outcome == "fail" and inputs:
            verdict.others.append(f"order {order} was refused ({op.error}) and stored")
        if not inputs:
            return
        if len({run for _, _, run in found}) > 1 or (op.run and found[0][2] != op.run):
            verdict.others.append(f"order {order} is spread over cascades {found}")
        counts = Counter(kind for kind, _, _ in found)
        for kind in CHAIN[1:]:
            if counts[kind] > 1:
                verdict.duplicates.append(f"order {order} has {counts[kind]} of {kind}")
            elif counts[kind] < 1:
                verdict.unfinished.append(f"order {order} has no {kind}")

    def _told(self, op: Op, order: str) -> Stored | None:
        """What the caller was told of it; what was told before the last try counts too."""
        verdict = self._verdict
        told = next((each for each in op.stored if each.order == order), None)
        if told is not None:
            verdict.acknowledged += 1
        elif op.outcome == "fail":
            verdict.refused += 1
        else:
            verdict.unknown += 1
        return told

    async def _echoes(self) -> set[str]:
        verdict = self._verdict
        found: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for row in await self._rows(_ECHOES):
            value = decode_value(row["input"])
            found[str(value["key"]) if isinstance(value, dict) else "?"].append((row["id"], row["run_id"]))
            if row["output"] is None or decode_value(row["output"]) != value:
                verdict.others.append(f"task {row['id']} has another output than its input")
        for op in self._ops:
            if op.kind != "task":
                continue
            order = op.orders[0]
            told, stored = self._told(op, order), found.pop(order, [])
            if len(stored) > 1:
                verdict.duplicates.append(f"task {order} was made {len(stored)} times")
            elif told is not None and stored != [(told.id, told.run)]:
                verdict.losses.append(f"task {order}: told {told}, stored {stored}")
            elif op.outcome == "fail" and stored:
                verdict.others.append(f"task {order} was refused ({op.error}) and stored")
        for order in found:
            verdict.others.append(f"task {order} is stored, and nobody sent it")
        return {row["id"] for row in await self._rows(_TASK_IDS)}

    async def _keys(self, artifacts: set[str], tasks: set[str]) -> None:
        verdict = self._verdict
        points: dict[str, str] = {}
        for row in await self._rows(_KEYS):
            made = json.loads(row["response"])
            if not made:
                continue  # of a whole batch, whose items have keys of their own
            points[row["key"]] = target = made[0]
            if target not in artifacts and target not in tasks:
                verdict.losses.append(f"the key {row['key']} points at {target}, which is not there")
        for op in self._ops:
            for told in op.stored:
                if points.get(f"key-{told.order}") != told.id:
                    verdict.losses.append(f"the key of {told.order} points at {points.get(f'key-{told.order}')}")

    async def _executed(self) -> None:
        if self._executions is None or not self._executions.exists():
            return
        verdict = self._verdict
        made: Counter[tuple[str, int]] = Counter()
        attempts: dict[str, set[int]] = defaultdict(set)
        for line in self._executions.read_text().splitlines():
            fields = json.loads(line)
            made[fields["task"], fields["attempt"]] += 1
            attempts[fields["task"]].add(fields["attempt"])
        for (task, attempt), count in made.items():
            if count > 1:
                verdict.others.append(f"attempt {attempt} of task {task} ran {count} times")
        for row in await self._rows(_COMPLETED, TaskStatus.COMPLETED):
            if row["attempt"] not in attempts[row["id"]]:
                verdict.others.append(f"task {row['id']} was completed by attempt {row['attempt']}, which never ran")
        mine = {row["id"] for row in await self._rows(_TASK_IDS)}
        verdict.executions = sum(count for (task, _), count in made.items() if task in mine)
        verdict.re_executed = sum(len(attempts[task]) > 1 for task in mine)
