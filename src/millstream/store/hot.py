"""The statements of the hot path.

A batch is written by ONE statement: an insert (or upsert) per table that it touches, all over arrays, with its fences.
The text depends on which tables are touched, so an idle table costs nothing; each of the few texts is prepared once.
None joins a big table and none contains the predicate of a partial index, so no plan can flip: the conflict
targets are primary keys, and everything else is an insert.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from millstream.domain.artifacts import Artifact
from millstream.domain.batch import Batch, KeyClaim
from millstream.domain.runs import Attempt, Event, Run, Task
from millstream.store.columns import blobs, flags, lists, names, numbers, texts, uuids
from millstream.store.policies import policy_text, visibility_text

Encoder = Callable[[Any], str]


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a bulk insert: its name, its type in SQL, how its values are encoded, and whether an
    upsert of an existing row sets it."""

    name: str
    type: str
    encode: Encoder | None
    mutable: bool = False


def _columns(spec: str, kinds: Mapping[str, tuple[str, Encoder | None]]) -> tuple[Column, ...]:
    """Columns of lines "name kind", where a "!" behind the kind marks a mutable one."""
    found = []
    for line in spec.split():
        name, kind = line.split(":")
        sql, encode = kinds[kind.rstrip("!")]
        found.append(Column(name, sql, encode, kind.endswith("!")))
    return tuple(found)


_KINDS: dict[str, tuple[str, Encoder | None]] = {
    "uuid": ("uuid", uuids),
    "name": ("text", names),
    "text": ("text", texts),
    "list": ("text", lists),
    "int": ("int4", numbers),
    "small": ("int2", numbers),
    "us": ("int8", numbers),
    "real": ("float4", numbers),
    "bool": ("bool", flags),
    "bytes": ("bytea", None),
}

RUN = _columns(
    """id:uuid tenant:name kind:small status:small! created_us:us created_by:name updated_us:us! finished_us:us!
    last_seq:int! open_tasks:int! task_count:int! failed_tasks:int! artifact_count:int! cancel_by_us:us!
    keep_until_us:us! labels:text error_code:name! error_message:text! waiters:name!""",
    _KINDS,
)
TASK = _columns(
    """id:uuid run_id:uuid tenant:name kind:name queue:name created_us:us day:int status:small! urgency:small
    run_at_us:us! start_by_us:us! attempt:int! tries:int! started_us:us! finished_us:us! lease_until_us:us!
    deadline_us:us! beat_by_us:us! owner:name! worker_id:name! worker_name:name! delivered:bool! cancelling:bool!
    depth:small limited:bool agent:name artifact_ids:text input:bytes policy:name labels:text error_code:name!
    error_message:text!""",
    _KINDS,
)
ARTIFACT = _columns(
    """tenant:name id:uuid run_id:uuid seq:int type:name version:int payload:bytes produced_by:name
    visibility_kind:name visibility:name tags:list partition_key:text created_us:us""",
    _KINDS,
)
EVENT = _columns(
    "day:int run_id:uuid seq:int type:small at_us:us task_id:uuid artifact_id:uuid attempt:int data:name", _KINDS
)
ATTEMPT = _columns(
    """day:int task_id:uuid number:int status:small started_us:us finished_us:us worker_name:name error_code:name
    error_message:text output:bytes""",
    _KINDS,
)
KEY = _columns(
    "tenant:name principal:name rpc:name key:text fingerprint:bytes response:text created_us:us expires_us:us", _KINDS
)


def _run_row(run: Run) -> tuple[Any, ...]:
    return (
        run.id, run.tenant, int(run.kind), int(run.status), run.created_us, run.created_by, run.updated_us,
        run.finished_us, run.last_seq, run.open_tasks, run.task_count, run.failed_tasks, run.artifact_count,
        run.cancel_by_us, run.keep_until_us, run.labels, run.error_code, run.error_message, ",".join(run.waiters),
    )  # fmt: skip


def _task_row(task: Task, new: bool) -> tuple[Any, ...]:
    return (
        task.id, task.run_id, task.tenant, task.kind, task.queue, task.created_us, task.day, int(task.status),
        -task.priority, task.run_at_us, task.start_by_us, task.attempt, task.tries, task.started_us,
        task.finished_us, task.lease_until_us, task.deadline_us, task.beat_by_us, task.owner, task.worker_id,
        task.worker_name, task.delivered, task.cancelling, task.depth, task.limited, task.agent,
        ",".join(task.artifact_ids), task.input if new else b"", policy_text(task.retry, task.timeouts), task.labels,
        task.error_code, task.error_message,
    )  # fmt: skip


def _artifact_row(artifact: Artifact) -> tuple[Any, ...]:
    return (
        artifact.tenant, artifact.id, artifact.run_id, artifact.seq, artifact.type, artifact.version,
        artifact.payload, artifact.produced_by, artifact.visibility.kind, visibility_text(artifact.visibility),
        artifact.tags, artifact.partition_key, artifact.created_us,
    )  # fmt: skip


def _event_row(event: Event) -> tuple[Any, ...]:
    return (
        event.day, event.run_id, event.seq, int(event.type), event.at_us, event.task_id, event.artifact_id,
        event.attempt, event.data,
    )  # fmt: skip


def _attempt_row(attempt: Attempt) -> tuple[Any, ...]:
    return (
        attempt.day, attempt.task_id, attempt.number, int(attempt.status), attempt.started_us, attempt.finished_us,
        attempt.worker_name, attempt.error_code, attempt.error_message, attempt.output,
    )  # fmt: skip


def _key_row(claim: KeyClaim, now_us: int) -> tuple[Any, ...]:
    return (*claim.id, claim.fingerprint, claim.response, now_us, claim.expires_us)


def rows_of(batch: Batch) -> dict[str, list[tuple[Any, ...]]]:
    """The rows a batch writes, by table; runs and tasks in the order of their ids, so that locks are too."""
    new = batch.new_tasks
    return {
        "run": [_run_row(run) for _, run in sorted(batch.dirty_runs.items())],
        "task": [_task_row(task, task_id in new) for task_id, task in sorted(batch.dirty_tasks.items())],
        "artifact": [_artifact_row(item) for item in batch.artifacts],
        "event": [_event_row(item) for item in batch.events],
        "attempt": [_attempt_row(item) for item in batch.attempts],
        "idempotency": [_key_row(item, batch.now_us) for item in batch.claims.values()],
    }


_TABLES: dict[str, tuple[Column, ...]] = {
    "run": RUN,
    "task": TASK,
    "artifact": ARTIFACT,
    "event": EVENT,
    "attempt": ATTEMPT,
    "idempotency": KEY,
}
_UPSERTED = {
    # A run made twice at once, by two servers, differs in its creation: the count of written rows then falls short.
    "run": "run.created_us = excluded.created_us",
    "task": "true",
}


def _part(table: str, first: int) -> tuple[str, int]:
    """The insert of one table over arrays from parameter `first`, and the number after its last."""
    columns, sources, selected, n = _TABLES[table], [], [], first
    for column in columns:
        if column.encode is None:
            sources += [
                (f"${n + 1}::text::int4[]", f"{column.name}_at"),
                (f"${n + 2}::text::int4[]", f"{column.name}_n"),
            ]
            selected.append(f"substring(${n}::bytea from u.{column.name}_at for u.{column.name}_n)")
            n += 3
        else:
            sources.append((f"${n}::text::{column.type}[]", column.name))
            selected.append(f"u.{column.name}" + ("::text[]" if column.encode is lists else ""))
            n += 1
    listed = ", ".join(column.name for column in columns)
    arrays, aliases = (", ".join(part) for part in zip(*sources, strict=True))
    sql = f"INSERT INTO {table} ({listed}) SELECT {', '.join(selected)} FROM unnest({arrays}) u({aliases})"  # noqa: S608
    if table in _UPSERTED:
        sets = ", ".join(f"{column.name} = excluded.{column.name}" for column in columns if column.mutable)
        sql += f" ON CONFLICT (id) DO UPDATE SET {sets} WHERE {_UPSERTED[table]}"
    return f"{table}_rows AS ({sql} RETURNING 1)", n


@functools.lru_cache(256)
def write_sql(tables: tuple[str, ...], fenced: bool, counted: bool) -> str:
    """The one statement that writes a batch touching these tables.

    Parameters: the arrays of each table in order; then, when counted, the lane and the batch's number; then the number
    of runs; then, when fenced, tenants and registry versions as array literals and their count. Fails with a
    division by zero where a fence does not hold. Returns the database's time in microseconds.
    """
    parts, n = [], 1
    for table in tables:
        part, n = _part(table, n)
        parts.append(part)
    if counted:
        values = f"VALUES (${n}::text::uuid, ${n + 1}::int8)"
        parts.insert(0, f"batch_row AS (INSERT INTO commit_batch (lane, n) {values})")  # noqa: S608  # numbers only
        n += 2
    checks = []
    if "run" in tables:
        checks.append(f"(SELECT count(*) FROM run_rows) = ${n}::int8")  # noqa: S608  # numbers only
        n += 1
    if fenced:
        checks.append(
            f"(SELECT count(*) FROM registry r WHERE (r.tenant, r.version) IN "  # noqa: S608
            f"(SELECT * FROM unnest(${n}::text::text[], ${n + 1}::text::int8[]))) = ${n + 2}::int8"
        )
    fence = f", 1 / (CASE WHEN {' AND '.join(checks)} THEN 1 ELSE 0 END)" if checks else ""
    return f"WITH {', '.join(parts)} SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::int8{fence}"  # noqa: S608


def encode(table: str, rows: Sequence[tuple[Any, ...]]) -> list[Any]:
    """The parameters of one table's rows."""
    found: list[Any] = []
    for column, values in zip(_TABLES[table], zip(*rows, strict=True), strict=True):
        if column.encode is None:
            found.extend(blobs(values))
        else:
            found.append(column.encode(values))
    return found
