"""The statements of the hot path.

A batch is written by ONE statement: an insert or update per table that it touches, all over arrays, with its fences.
The text depends on which tables are touched, so an idle table costs nothing; each of the few texts is prepared once.
None contains the predicate of a partial index, and rows are only ever found by their primary key, from the array's
side, so no plan can flip. A column with one value in all rows travels once (`coalesce(array's, the one)`): of a
new task's thirty columns three differ from row to row, which halved the time on both sides.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from millstream.domain.artifacts import Artifact
from millstream.domain.batch import Batch, KeyClaim
from millstream.domain.gates import Buffer
from millstream.domain.runs import Attempt, Run, Task
from millstream.store.columns import blobs, flags, lists, names, numbers, texts, uuids
from millstream.store.policies import bounds_text, parts_text, policy_text, visibility_text

Encoder = Callable[[Any], str]

_EACH = frozenset({"id", "run_id", "task_id", "artifact_id", "parent_id", "parent_task", "rerun_of", "key"})
"""Columns that always travel as arrays: they tell how many rows there are, and may be NULL."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a bulk write: its name, its type in SQL, how its values are encoded (None: as bytes), whether an
    update sets it, and whether it mostly has its default in new rows."""

    name: str
    type: str
    encode: Encoder | None
    mutable: bool = False
    rare: bool = False


def _columns(spec: str, kinds: Mapping[str, tuple[str, Encoder | None]]) -> tuple[Column, ...]:
    """Columns of words "name:kind", where "!" behind the kind marks a mutable one, and "?" a rare one."""
    found = []
    for line in spec.split():
        name, kind = line.split(":")
        sql, encode = kinds[kind.rstrip("!?")]
        found.append(Column(name, sql, encode, "!" in kind, "?" in kind))
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
    last_seq:int! open_tasks:int! task_count:int! failed_tasks:int!? artifact_count:int! cancel_by_us:us!?
    keep_until_us:us!? labels:text? error_code:name!? error_message:text!? waiters:name! open_gates:int!?
    parents:text? workflow:name? workflow_version:name? plan:name!? redone:int!? due_us:us!? parent_id:uuid?
    parent_task:uuid? paused_us:us!? timeout_us:us? deadline_us:us!? rerun_of:uuid?
    queue:name? priority:small? trace:text?""",
    _KINDS,
)
TASK = _columns(
    """id:uuid run_id:uuid tenant:name kind:name queue:name created_us:us day:int status:small! urgency:small
    run_at_us:us! start_by_us:us!? attempt:int! tries:int!? started_us:us! finished_us:us!? lease_until_us:us!
    deadline_us:us! beat_by_us:us!? owner:name! worker_id:name! worker_name:name! delivered:bool!? cancelling:bool!?
    depth:small limited:bool? agent:name artifact_ids:text input:bytes policy:name? labels:text? error_code:name!?
    error_message:text!? step:int? item:int? promise_key:text? held_us:us!? bounds:name? concurrency_key:name?
    waits_for:name!? dropped:bool!? trace:text?""",
    _KINDS,
)
RUN_PAYLOAD = _columns("day:int run_id:uuid what:small value:bytes", _KINDS)
JOURNAL = _columns(
    """day:int run_id:uuid n:int after_seq:int kind:small name:text value:bytes error_code:name? error_message:text?""",
    _KINDS,
)
ARTIFACT = _columns(
    """tenant:name id:uuid run_id:uuid seq:int type:name version:int payload:bytes produced_by:name
    visibility_kind:name visibility:name? tags:list? partition_key:text? created_us:us published_by:name
    payload_digest:bytes? payload_bytes:us?""",
    _KINDS,
)
EVENT = _columns(
    "day:int run_id:uuid seq:int type:small at_us:us task_id:uuid artifact_id:uuid attempt:int data:name", _KINDS
)
ATTEMPT = _columns(
    """day:int task_id:uuid number:int status:small started_us:us finished_us:us worker_name:name error_code:name?
    error_message:text? output:bytes""",
    _KINDS,
)
BUFFER = _columns(
    """id:uuid tenant:name agent:name sub:name run_id:uuid key:text collects:bool opened_us:us! expires_us:us!
    arrived:int! waiting:int! parts:text!""",
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
        run.open_gates, ",".join(run.parents), run.workflow, run.workflow_version, run.plan, run.redone, run.due_us,
        run.parent_id, run.parent_task, run.paused_us, run.timeout_us, run.deadline_us, run.rerun_of, run.queue,
        run.priority, run.trace, run.stored_us,
    )  # fmt: skip


def _task_row(task: Task) -> tuple[Any, ...]:
    return (
        task.id, task.run_id, task.tenant, task.kind, task.queue, task.created_us, task.day, int(task.status),
        -task.priority, task.run_at_us, task.start_by_us, task.attempt, task.tries, task.started_us,
        task.finished_us, task.lease_until_us, task.deadline_us, task.beat_by_us, task.owner, task.worker_id,
        task.worker_name, task.delivered, task.cancelling, task.depth, task.limited, task.agent,
        ",".join(task.artifact_ids), task.input, policy_text(task.retry, task.timeouts), task.labels,
        task.error_code, task.error_message, task.step, task.item, task.promise_key, task.held_us,
        bounds_text(task.bounds), task.bounds.concurrency_key, task.waits_for, task.dropped,
        task.trace,
    )  # fmt: skip


def _artifact_row(artifact: Artifact) -> tuple[Any, ...]:
    return (
        artifact.tenant, artifact.id, artifact.run_id, artifact.seq, artifact.type, artifact.version,
        artifact.payload, artifact.produced_by, artifact.visibility.kind, visibility_text(artifact.visibility),
        artifact.tags, artifact.partition_key, artifact.created_us, artifact.published_by, artifact.payload_digest,
        artifact.payload_bytes,
    )  # fmt: skip


def _attempt_row(attempt: Attempt) -> tuple[Any, ...]:
    return (
        attempt.day, attempt.task_id, attempt.number, int(attempt.status), attempt.started_us, attempt.finished_us,
        attempt.worker_name, attempt.error_code, attempt.error_message, attempt.output,
    )  # fmt: skip


def _buffer_row(buffer: Buffer) -> tuple[Any, ...]:
    return (
        buffer.id, buffer.tenant, buffer.agent, buffer.sub, buffer.run_id, buffer.key, buffer.collects,
        buffer.opened_us, buffer.expires_us, buffer.arrived, len(buffer.parts), parts_text(buffer.parts),
    )  # fmt: skip


def _key_row(claim: KeyClaim, now_us: int) -> tuple[Any, ...]:
    return (*claim.id, claim.fingerprint, claim.response, now_us, claim.expires_us)


_TABLES: dict[str, tuple[Column, ...]] = {
    "run": RUN,
    "task": TASK,
    "run_payload": RUN_PAYLOAD,
    "journal": JOURNAL,
    "artifact": ARTIFACT,
    "event": EVENT,
    "attempt": ATTEMPT,
    "buffer": BUFFER,
    "idempotency": KEY,
}
STORED = Column("stored_us", "int8", numbers)
"""What a run's updated_us must be for an update: the numbers of events refuse an outdated copy, but where there is none
to record (a waiter, a cancellation asked for) only this does. It stands last in a run's row."""
UPDATES = {
    "run update": ("run", (RUN[0], *(column for column in RUN if column.mutable), STORED)),
    "task update": ("task", (TASK[0], *(column for column in TASK if column.mutable))),
    "buffer update": ("buffer", (BUFFER[0], *(column for column in BUFFER if column.mutable))),
}
DELETES = {"buffer delete": ("buffer", (BUFFER[0],))}
TOUCH = "payload touch"
"""A payload outside that an artifact of the batch refers to: as it is touched in the same statement, the sweep never
takes what was just referred to, and one that is gone already fails the batch."""
_TOUCH = _columns("tenant:name key:text touched_us:us", _KINDS)
FENCED = {TOUCH: "payload_touches"} | {
    name: f"{table}_{'deletes' if name in DELETES else 'updates'}" for name, (table, _) in (UPDATES | DELETES).items()
}
"""What must find each of its rows, with the name of its part of the statement."""
_PLAIN = {
    f"{table} plain": (table, tuple(column for column in columns if not column.rare))
    for table, columns in _TABLES.items()
    if any(column.rare for column in columns)
}
"""Inserts that leave out the columns which mostly have their default."""
_PROGRESS = """, progress = CASE WHEN task.attempt = {0} THEN task.progress ELSE 0 END,
progress_message = CASE WHEN task.attempt = {0} THEN task.progress_message ELSE '' END"""
"""Progress is the attempt's own; it comes by another way, so it is only ever taken back here."""
BATCH_ROW = """batch_row AS (INSERT INTO commit_batch (lane, n, artifacts, at_us) VALUES ($1::text::uuid, $2::int8,
$3::bytea, (extract(epoch FROM clock_timestamp()) * 1000000)::int8))"""
"""The batch's own row. Its time is that of the write, never that of the decision: what is dropped by it was committed
then."""
_SELECTIONS = UPDATES | DELETES | _PLAIN
COLUMNS = _TABLES | {name: columns for name, (_, columns) in _SELECTIONS.items()} | {TOUCH: _TOUCH}
_ROWS = _TABLES | {"run": (*RUN, STORED)}
_PLACES = {name: [_ROWS[table].index(column) for column in columns] for name, (table, columns) in _SELECTIONS.items()}
_PLACES["run"] = [*range(len(RUN))]
_RARE = {table: [place for place, column in enumerate(_TABLES[table]) if column.rare] for table, _ in _PLAIN.values()}


def rows_of(batch: Batch) -> dict[str, list[tuple[Any, ...]]]:
    """The rows a batch writes, by table; runs and tasks in the order of their ids, so that locks are too."""
    made: dict[bool, list[tuple[Any, ...]]] = {True: [], False: []}
    for run_id, run in sorted(batch.dirty_runs.items()):
        made[run_id in batch.new_runs].append(_run_row(run))
    tasks: dict[bool, list[tuple[Any, ...]]] = {True: [], False: []}
    for task_id, task in sorted(batch.dirty_tasks.items()):
        tasks[task_id in batch.new_tasks].append(_task_row(task))
    return {
        "run": made[True],
        "run update": made[False],
        "task": tasks[True],
        "task update": tasks[False],
        "run_payload": batch.payloads,
        "journal": batch.journal,
        "artifact": [_artifact_row(item) for item in batch.artifacts],
        "event": [*batch.events],
        "attempt": [_attempt_row(item) for item in batch.attempts],
        **_buffer_rows(batch),
        "idempotency": [_key_row(item, batch.now_us) for item in batch.claims.values()],
        TOUCH: _touched(batch),
    }


def _touched(batch: Batch) -> list[tuple[Any, ...]]:
    """Payloads outside that the batch's artifacts refer to, in one order on every server."""
    referred = {(item.tenant, item.payload_digest.hex()) for item in batch.artifacts if item.payload_digest}
    return [(*each, batch.now_us) for each in sorted(referred)] if referred else []


def _buffer_rows(batch: Batch) -> dict[str, list[tuple[Any, ...]]]:
    found: dict[str, list[tuple[Any, ...]]] = {"buffer": [], "buffer update": [], "buffer delete": []}
    for _, buffer in sorted(batch.dirty_buffers.items()):
        if buffer.parts:
            found["buffer update" if buffer.stored else "buffer"].append(_buffer_row(buffer))
        elif buffer.stored:
            found["buffer delete"].append(_buffer_row(buffer))
    return found


def _sources(columns: Sequence[Column], first: int) -> tuple[list[str], list[str], list[str], int]:
    """Arrays, their aliases and the expressions of the columns, from parameter `first`; and the number after."""
    arrays, aliases, values, n = [], [], [], first
    for column in columns:
        name = column.name
        if column.encode is None:
            arrays += [f"${n + 1}::text::int4[]", f"${n + 3}::text::int4[]"]
            aliases += [f"{name}_at", f"{name}_n"]
            at, size = f"coalesce(u.{name}_at, ${n + 2}::text::int4)", f"coalesce(u.{name}_n, ${n + 4}::text::int4)"
            values.append(f"substring(${n}::bytea from {at} for {size})")
            n += 5
        elif name in _EACH:
            arrays.append(f"${n}::text::{column.type}[]")
            aliases.append(name)
            values.append(f"u.{name}")
            n += 1
        else:
            arrays.append(f"${n}::text::{column.type}[]")
            aliases.append(name)
            value = f"coalesce(u.{name}, ${n + 1}::text::{column.type})"
            values.append(f"{value}::text[]" if column.encode is lists else value)
            n += 2
    return arrays, aliases, values, n


def _part(name: str, first: int) -> tuple[str, int]:
    """The write of one table over arrays from parameter `first`, and the number after its last."""
    columns = COLUMNS[name]
    arrays, aliases, values, n = _sources(columns, first)
    source = f"unnest({', '.join(arrays)}) u({', '.join(aliases)})"
    if name == TOUCH:
        return touch_sql(values, f" FROM {source}"), n
    if name in UPDATES:
        table = UPDATES[name][0]
        return f"{table}_updates AS ({update_sql(table, columns, values, f' FROM {source}')})", n
    if name in DELETES:
        table = DELETES[name][0]
        return f"{table}_deletes AS (DELETE FROM {table} USING {source} WHERE {table}.id = u.id RETURNING 1)", n  # noqa: S608
    listed = ", ".join(column.name for column in columns)
    table = name.removesuffix(" plain")
    sql = f"INSERT INTO {table} ({listed}) SELECT {', '.join(values)} FROM {source}"  # noqa: S608  # our names only
    return f"{table}_rows AS ({sql})", n


def update_sql(table: str, columns: Sequence[Column], values: Sequence[str], source: str) -> str:
    """An update of rows by their ids, to values that are SQL expressions; with the fence of outdated copies."""
    value_of = {column.name: value for column, value in zip(columns, values, strict=True)}
    sets = ", ".join(f"{column.name} = {value_of[column.name]}" for column in columns[1:] if column is not STORED)
    fence = ""
    if table == "task":
        sets += _PROGRESS.format(value_of["attempt"])
    elif table == "run":
        fence = f" AND run.updated_us = {value_of['stored_us']}"
    return f"UPDATE {table} SET {sets}{source} WHERE {table}.id = {value_of['id']}{fence} RETURNING 1"  # noqa: S608


def touch_sql(values: Sequence[str], source: str) -> str:
    """Touches payloads, to values that are SQL expressions: tenant, digest in hexadecimal, time."""
    tenant, digest, touched_us = values
    latest = f"greatest(payload.touched_us, {touched_us})"
    found = f"payload.tenant = {tenant} AND payload.sha256 = decode({digest}, 'hex')"
    return f"payload_touches AS (UPDATE payload SET touched_us = {latest}{source} WHERE {found} RETURNING 1)"  # noqa: S608


def fences(names_written: Sequence[str], n: int, fenced: bool) -> str:
    """A last column that divides by zero where an update missed a row or a registry moved, from parameter n."""
    checks = []
    for name in names_written:
        if name in FENCED:
            checks.append(f"(SELECT count(*) FROM {FENCED[name]}) = ${n}::int8")  # noqa: S608  # our names
            n += 1
    if fenced:
        checks.append(
            f"(SELECT count(*) FROM registry r WHERE (r.tenant, r.version) IN "  # noqa: S608  # numbers only
            f"(SELECT * FROM unnest(${n}::text::text[], ${n + 1}::text::int8[]))) = ${n + 2}::int8"
        )
    return f", 1 / (CASE WHEN {' AND '.join(checks)} THEN 1 ELSE 0 END)" if checks else ""


@functools.lru_cache(256)
def write_sql(tables: tuple[str, ...], fenced: bool) -> str:
    """The one statement that writes a batch touching these tables.

    Parameters: the lane, the batch's number and its artifacts (see store.feed); those of each table in order; the
    number of rows of each update; then, when fenced, tenants and registry versions as array literals and their count.
    Fails with a division by zero where a fence does not hold. Returns the database's time in microseconds.
    """
    parts, n = [BATCH_ROW], 4
    for table in tables:
        part, n = _part(table, n)
        parts.append(part)
    fence = fences(tables, n, fenced)
    return f"WITH {', '.join(parts)} SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::int8{fence}"  # noqa: S608


def updates(rows: Mapping[str, Sequence[tuple[Any, ...]]]) -> list[int]:
    """How many rows each update or delete must find."""
    return [len(found) for name, found in rows.items() if name in FENCED]


def plain_of(name: str, columns: Sequence[Sequence[Any]]) -> str:
    """The table's plain insert, where all rows have the defaults in its rare columns; else the table itself."""
    if name in _RARE and not any(any(columns[place]) for place in _RARE[name]):
        return f"{name} plain"
    return name


def selected(name: str, values: Sequence[Any]) -> Sequence[Any]:
    """Of a whole row's values, or columns, those that are written."""
    places = _PLACES.get(name)
    return values if places is None else [values[place] for place in places]


def encode(name: str, rows: Sequence[tuple[Any, ...]]) -> tuple[str, list[Any]]:
    """How one table's rows are written (its plain insert where that will do), and their parameters."""
    found: list[Any] = []
    columns: Sequence[Any] = list(zip(*rows, strict=True))
    name = plain_of(name, columns)
    columns = selected(name, columns)
    for column, values in zip(COLUMNS[name], columns, strict=True):
        if column.encode is None:
            found += _encode_bytes(values)
        elif column.name in _EACH:
            found.append(column.encode(values))
        elif values.count(values[0]) == len(values):
            found += ("{}", _one(column, values[0]))
        else:
            found += (column.encode(values), None)
    return name, found


def _one(column: Column, value: Any) -> str:
    """A single value as text."""
    if column.encode is lists:
        return texts(value)
    if column.encode is flags:
        return "t" if value else "f"
    return str(value)


def _encode_bytes(values: Sequence[bytes]) -> tuple[bytes, str, str | None, str, str | None]:
    if values.count(values[0]) == len(values):
        return values[0], "{}", "1", "{}", str(len(values[0]))
    blob, offsets, lengths = blobs(values)
    return blob, offsets, None, lengths, None
