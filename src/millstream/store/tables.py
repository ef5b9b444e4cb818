"""The tables.

Times are bigint microseconds (`*_us`), 0 meaning "not yet": exact, cheap to send in arrays, and the same on every
PostgreSQL-like database. Ids are UUIDs made by servers or callers; there are no sequences, triggers or
foreign keys (history must be droppable by day, and a key check per row would double the cost of a write).
Rows that retention drops by time lead their keys with `day`, the day of their run's creation.
"""

from collections.abc import Sequence

from sqlalchemy import (
    REAL,
    BigInteger,
    Boolean,
    Column,
    Computed,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY

metadata = MetaData()

_EMPTY = text("''")
_ZERO = text("0")
_BYTES = text("''::bytea")
LABELLED = "labels <> '' AND labels NOT LIKE '%\\\\u0000%'"
"""There are labels, and jsonb can hold them."""
TROUBLE = "CASE WHEN status IN (2, 4, 5) THEN status ELSE 0 END"
_HOT = {
    # Hot tables die fast: without these, dead rows pile up between two vacuums, as Hatchet and DBOS found.
    "autovacuum_vacuum_scale_factor": "0.02",
    "autovacuum_vacuum_threshold": "2000",
}


def _text(name: str) -> Column[str]:
    return Column(name, Text, nullable=False, server_default=_EMPTY)


def _int(name: str) -> Column[int]:
    return Column(name, Integer, nullable=False, server_default=_ZERO)


def _us(name: str) -> Column[int]:
    return Column(name, BigInteger, nullable=False, server_default=_ZERO)


def _small(name: str) -> Column[int]:
    return Column(name, SmallInteger, nullable=False, server_default=_ZERO)


def _texts(name: str) -> Column[Sequence[str]]:
    return Column(name, ARRAY(Text), nullable=False, server_default=text("'{}'"))


def _bytes(name: str) -> Column[bytes]:
    return Column(name, LargeBinary, nullable=False, server_default=_BYTES)


run = Table(
    "run",
    metadata,
    Column("id", Uuid, primary_key=True),
    _text("tenant"),
    _small("kind"),
    _small("status"),
    _us("created_us"),
    _text("created_by"),
    _us("updated_us"),
    _us("finished_us"),
    _int("last_seq"),
    _int("open_tasks"),
    _int("task_count"),
    _int("failed_tasks"),
    _int("artifact_count"),
    _us("cancel_by_us"),
    _us("keep_until_us"),
    _text("labels"),
    _text("error_code"),
    _text("error_message"),
    _text("waiters"),
    _int("open_gates"),
    _text("parents"),
    _text("workflow"),
    _text("workflow_version"),
    _text("plan"),
    _int("redone"),
    _us("due_us"),
    Column("parent_id", Uuid),
    Column("parent_task", Uuid),
    _us("paused_us"),
    _us("timeout_us"),
    _us("deadline_us"),
    Column("rerun_of", Uuid),
    _text("queue"),
    _small("priority"),
    # Of those few that are being cancelled, failed or were cancelled, their status, by which they are listed. Most runs
    # just complete: an index over the status itself would cost each of them its last cheap update.
    Column("trouble", SmallInteger, Computed(TROUBLE, persisted=True)),
    Index("run_deadline", "deadline_us", postgresql_where=text("deadline_us > 0")),
    Index("run_trouble", "tenant", "trouble", "created_us", "id", postgresql_where=text("trouble > 0")),
    Index("run_workflow", "tenant", "workflow", "created_us", "id", postgresql_where=text("workflow <> ''")),
    Index(
        "run_labels",
        text("(labels::jsonb)"),
        postgresql_using="gin",
        postgresql_where=text(LABELLED),
        postgresql_with={"gin_pending_list_limit": "256"},
    ),
    Index("run_due", "due_us", postgresql_where=text("due_us > 0")),
    Index("run_parent", "parent_id", "id", postgresql_where=text("parent_id IS NOT NULL")),
    Index("run_tenant", "tenant", "created_us", "id"),
    Index("run_created", "created_us"),
    Index("run_cancel", "cancel_by_us", postgresql_where=text("cancel_by_us > 0")),
    # Of those few that a gate of the tenant began; a run names its parents once, so its updates touch no index.
    Index(
        "run_parents",
        text("string_to_array(parents, ',')"),
        postgresql_using="gin",
        postgresql_where=text("parents <> ''"),
    ),
    # Half of each page is free, so that a run's updates stay on it and touch no index: 100 % of them, 48 % at 70.
    postgresql_with={"fillfactor": "45", **_HOT},
)

task = Table(
    "task",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("run_id", Uuid, nullable=False),
    _text("tenant"),
    _text("kind"),
    _text("queue"),
    _us("created_us"),
    _int("day"),
    _small("status"),
    _small("urgency"),
    _us("run_at_us"),
    _us("start_by_us"),
    _int("attempt"),
    _int("tries"),
    _us("started_us"),
    _us("finished_us"),
    _us("lease_until_us"),
    _us("deadline_us"),
    _us("beat_by_us"),
    _text("owner"),
    _text("worker_id"),
    _text("worker_name"),
    Column("delivered", Boolean, nullable=False, server_default=text("false")),
    Column("cancelling", Boolean, nullable=False, server_default=text("false")),
    _small("depth"),
    Column("limited", Boolean, nullable=False, server_default=text("false")),
    _text("agent"),
    _text("artifact_ids"),
    _bytes("input"),
    _text("policy"),
    _text("labels"),
    _text("error_code"),
    _text("error_message"),
    Column("progress", REAL, nullable=False, server_default=_ZERO),
    _text("progress_message"),
    _int("step"),
    _int("item"),
    _text("promise_key"),
    _us("held_us"),
    # How many run at once, and start in a while, of those with its keys; the first of them for its index.
    _text("bounds"),
    _text("concurrency_key"),
    _text("waits_for"),
    Column("dropped", Boolean, nullable=False, server_default=text("false")),
    Index("task_run", "run_id", "id"),
    Index("task_tenant", "tenant", "id"),
    # The tenant's turn leads the key: a dispatcher that serves several tenants asks each in turn.
    Index("task_ready", "tenant", "queue", "kind", "urgency", "run_at_us", "id", postgresql_where=text("status = 2")),
    Index("task_scheduled", "run_at_us", postgresql_where=text("status = 1")),
    Index("task_lease", "lease_until_us", postgresql_where=text("status = 3")),
    Index("task_start_by", "start_by_us", postgresql_where=text("status = 2 AND start_by_us > 0")),
    Index("task_promise", "tenant", "id", postgresql_where=text("queue = '~promise'")),
    # All open ones have ended at 0: there is room for one of a key.
    Index(
        "task_promise_key",
        "tenant",
        "promise_key",
        "finished_us",
        unique=True,
        postgresql_where=text("promise_key <> ''"),
    ),
    Index("task_retrying", "tenant", "id", postgresql_where=text("tries > 0 AND finished_us = 0")),
    Index("task_limited", "tenant", "kind", postgresql_where=text("status = 3 AND limited")),
    Index(
        "task_running",
        "tenant",
        "concurrency_key",
        postgresql_where=text("status = 3 AND concurrency_key <> ''"),
    ),
    # Those that wait for their turn, by line (status 0), and those whose turn it is (status 2).
    Index(
        "task_line",
        *("tenant", "waits_for", "status", "queue", "kind", "urgency", "run_at_us", "id"),
        postgresql_where=text("waits_for <> ''"),
    ),
    Index("task_in_line", "tenant", "queue", postgresql_where=text("status = 0")),
    Index("task_line_start_by", "start_by_us", postgresql_where=text("status = 0 AND start_by_us > 0")),
    Index("task_delayed", "tenant", "queue", "run_at_us", postgresql_where=text("status = 1")),
    Index("task_dead", "tenant", "finished_us", "id", postgresql_where=text("status = 5 AND NOT dropped")),
    Index(
        "task_labels",
        text("(labels::jsonb)"),
        postgresql_using="gin",
        postgresql_where=text(LABELLED),
        postgresql_with={"gin_pending_list_limit": "256"},
    ),
    postgresql_with=_HOT,
)

# What a run was given (1) and answers (2), beside its hot row.
run_payload = Table(
    "run_payload",
    metadata,
    Column("day", Integer, primary_key=True, autoincrement=False),
    Column("run_id", Uuid, primary_key=True),
    Column("what", SmallInteger, primary_key=True, autoincrement=False),
    _bytes("value"),
)

# What the code of runs asked for and recorded, by number; and, by the negative of an event's number, the value that
# goes with it.
journal = Table(
    "journal",
    metadata,
    Column("day", Integer, primary_key=True, autoincrement=False),
    Column("run_id", Uuid, primary_key=True),
    Column("n", Integer, primary_key=True, autoincrement=False),
    _int("after_seq"),
    _small("kind"),
    _text("name"),
    _bytes("value"),
    _text("error_code"),
    _text("error_message"),
)

# Code-first workflows that workers have registered, each version by itself.
code_workflow = Table(
    "code_workflow",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("version", Text, primary_key=True),
    _text("description"),
    _text("input_schema"),
    _text("output_schema"),
    _us("created_us"),
)

attempt = Table(
    "attempt",
    metadata,
    Column("day", Integer, primary_key=True, autoincrement=False),
    Column("task_id", Uuid, primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    _small("status"),
    _us("started_us"),
    _us("finished_us"),
    _text("worker_name"),
    _text("error_code"),
    _text("error_message"),
    _bytes("output"),
)

event = Table(
    "event",
    metadata,
    Column("day", Integer, primary_key=True, autoincrement=False),
    Column("run_id", Uuid, primary_key=True),
    Column("seq", Integer, primary_key=True, autoincrement=False),
    _small("type"),
    _us("at_us"),
    Column("task_id", Uuid),
    Column("artifact_id", Uuid),
    _int("attempt"),
    _text("data"),
)

artifact = Table(
    "artifact",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("id", Uuid, primary_key=True),
    Column("run_id", Uuid, nullable=False),
    _int("seq"),
    _text("type"),
    _int("version"),
    _bytes("payload"),
    _text("produced_by"),
    _text("visibility_kind"),
    _text("visibility"),
    _texts("tags"),
    _text("partition_key"),
    _us("created_us"),
    _text("published_by"),
    # Of a payload that lives outside: its SHA-256 (empty for one that stands in the row) and its size.
    _bytes("payload_digest"),
    _us("payload_bytes"),
    Index("artifact_payload", "tenant", "payload_digest", postgresql_where=text("payload_digest <> ''::bytea")),
    Index("artifact_run", "run_id", "seq"),
    # Lists go down the ids from the newest, whatever they ask for; what most artifacts share (made by a client,
    # public, without tags) is found soon on that way and stands in no index of its own.
    Index("artifact_kind", "tenant", "type", "id"),
    Index("artifact_maker", "tenant", "produced_by", "id", postgresql_where=text("produced_by <> 'external'")),
    Index("artifact_hidden", "tenant", "visibility_kind", "id", postgresql_where=text("visibility_kind <> 'Public'")),
    # A search also reads what is not sorted in yet: 256 kB of that at most.
    Index(
        "artifact_tags",
        "tags",
        postgresql_using="gin",
        postgresql_where=text("tags <> '{}'"),
        postgresql_with={"gin_pending_list_limit": "256"},
    ),
)

buffer = Table(
    "buffer",
    metadata,
    Column("id", Uuid, primary_key=True),
    _text("tenant"),
    _text("agent"),
    _text("sub"),
    Column("run_id", Uuid),
    _text("key"),
    Column("collects", Boolean, nullable=False, server_default=text("false")),
    _us("opened_us"),
    _us("expires_us"),
    _int("arrived"),
    _int("waiting"),
    _text("parts"),
    Index("buffer_expires", "expires_us"),
    Index("buffer_agent", "tenant", "agent", "expires_us"),
    Index("buffer_run", "run_id"),
    # A part more changes neither key: half of each page is free for it.
    postgresql_with={"fillfactor": "50", **_HOT},
)

# A line in which tasks wait for their turn: locked by whoever starts some of them.
line = Table(
    "line",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    _us("period_us"),
    _text("starts"),
    # It is swept after this: what runs is counted from the tasks, and nothing of its starts matters any more.
    _us("until_us"),
    Index("line_until", "until_us"),
    postgresql_with=_HOT,
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("principal", Text, primary_key=True),
    Column("rpc", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    _bytes("fingerprint"),
    _text("response"),
    _us("created_us"),
    _us("expires_us"),
    Index("idempotency_expires", "expires_us"),
)

commit_batch = Table(
    "commit_batch",
    metadata,
    Column("lane", Uuid, primary_key=True),
    Column("n", BigInteger, primary_key=True, autoincrement=False),
    _us("at_us"),
    _bytes("artifacts"),
)

lane = Table(
    "lane",
    metadata,
    Column("id", Uuid, primary_key=True),
    _text("server"),
    _us("started_us"),
    _us("seen_us"),
)

interest = Table(
    "interest",
    metadata,
    Column("lane", Uuid, primary_key=True),
    Column("tenant", Text, primary_key=True),
    Column("queue", Text, primary_key=True),
    Column("kind", Text, primary_key=True),
)

registry = Table(
    "registry",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("version", BigInteger, nullable=False),
)

agent = Table(
    "agent",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("id", Uuid, nullable=False),
    _text("spec"),
    _int("version"),
    _us("created_us"),
    _us("updated_us"),
    _text("protocol"),
    _text("url"),
    Index("agent_id", "tenant", "id", unique=True),
    Index("agent_called", "tenant", "name", postgresql_where=text("protocol <> ''")),
)

# Apart from the living, so that nothing matches a deleted agent by mistake, servers of the version before included.
agent_deleted = Table(
    "agent_deleted",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("id", Uuid, primary_key=True),
    _text("name"),
    _text("spec"),
    _int("version"),
    _us("created_us"),
    _us("updated_us"),
    _us("deleted_us"),
    _text("protocol"),
    _text("url"),
    Index("agent_deleted_called", "deleted_us", postgresql_where=text("protocol <> ''")),
)

tenant = Table(
    "tenant",
    metadata,
    Column("slug", Text, primary_key=True),
    Column("id", Uuid, nullable=False),
    _text("name"),
    _text("labels"),
    _us("created_us"),
    _text("created_by"),
)

# A dispatch key whose tasks wait; "" stands for any queue, or any kind.
pause = Table(
    "pause",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("queue", Text, primary_key=True),
    Column("kind", Text, primary_key=True),
    _us("paused_us"),
    _text("paused_by"),
    _text("reason"),
)

# A level that the servers log from, for a logger ("": all), until a time (0: for ever).
log_level = Table(
    "log_level",
    metadata,
    Column("logger", Text, primary_key=True),
    _text("level"),
    _us("until_us"),
)

worker = Table(
    "worker",
    metadata,
    Column("lane", Uuid, primary_key=True),
    Column("session", Uuid, primary_key=True),
    _text("tenant"),
    _text("worker_id"),
    _text("name"),
    _texts("kinds"),
    _us("connected_us"),
    # What follows is said of itself by a worker whose server is of this version, which is never without slots. Servers
    # of the version before read this table beside `lane`: no column may have the name of one there.
    _texts("served"),
    _texts("queues"),
    _int("slots"),
    _int("used"),
    _us("heard_us"),
    Column("draining", Boolean, nullable=False, server_default=text("false")),
    Index("worker_tenant", "tenant"),
    # Signs of life change no index.
    postgresql_with={"fillfactor": "50", **_HOT},
)

worker_left = Table(
    "worker_left",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("worker_id", Text, primary_key=True),
    _text("name"),
    _text("host"),
    _texts("kinds"),
    _texts("served"),
    _texts("queues"),
    _int("slots"),
    _us("connected_us"),
    _us("heard_us"),
    _us("left_us"),
)

# What workers say of their kinds; who serves them stands with the workers.
served_kind = Table(
    "served_kind",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("category", SmallInteger, primary_key=True, autoincrement=False),
    Column("version", Text, primary_key=True),
    _text("description"),
    _text("input_schema"),
    _text("output_schema"),
    _us("updated_us"),
)

artifact_type = Table(
    "artifact_type",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    _text("schema"),
    _text("description"),
    _us("created_us"),
    _text("options"),
)

# A deleted one stays: its versions are what runs of it follow, and their numbers are never given again.
workflow = Table(
    "workflow",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("id", Uuid, nullable=False),
    _int("version"),
    _text("description"),
    _us("created_us"),
    _text("created_by"),
    _us("updated_us"),
    _us("deleted_us"),
    Index("workflow_id", "tenant", "id", unique=True),
    Index("workflow_created", "tenant", "created_us", "name"),
    Index("workflow_updated", "tenant", "updated_us", "name"),
)

workflow_version = Table(
    "workflow_version",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("workflow_id", Uuid, nullable=False),
    _text("document"),
    _us("created_us"),
    _text("created_by"),
)

# A large payload, by its tenant and content: nobody learns from it what another tenant holds.
payload = Table(
    "payload",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("sha256", LargeBinary, primary_key=True),
    Column("blob", Uuid, nullable=False),
    _us("size_bytes"),
    _text("media_type"),
    _us("created_us"),
    # When it was last uploaded, about to be referred to, or found to be: it goes only a good while after.
    _us("touched_us"),
    Index("payload_touched", "touched_us"),
)

# Who uploaded a payload: such a principal may read it though no artifact refers to it.
payload_holder = Table(
    "payload_holder",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("sha256", LargeBinary, primary_key=True),
    Column("principal", Text, primary_key=True),
)

# Chunks that no payload owns: of an upload in progress, or (touched_us = 0) left for the sweep.
payload_upload = Table(
    "payload_upload",
    metadata,
    Column("blob", Uuid, primary_key=True),
    _text("tenant"),
    _us("touched_us"),
    Index("payload_upload_touched", "touched_us"),
)

payload_chunk = Table(
    "payload_chunk",
    metadata,
    Column("blob", Uuid, primary_key=True),
    Column("n", Integer, primary_key=True, autoincrement=False),
    Column("bytes", LargeBinary, nullable=False),
)
