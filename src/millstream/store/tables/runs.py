"""Runs, and what they were given and answer."""

from sqlalchemy import Column, Computed, Index, Integer, SmallInteger, Table, Uuid, text

from millstream.store.tables.columns import (
    HOT,
    LABELLED,
    by_tenant_labels,
    metadata,
    micros,
    number,
    octets,
    small,
    string,
)

TROUBLE = "CASE WHEN status IN (2, 4, 5) THEN status ELSE 0 END"

run = Table(
    "run",
    metadata,
    Column("id", Uuid, primary_key=True),
    string("tenant"),
    small("kind"),
    small("status"),
    micros("created_us"),
    string("created_by"),
    micros("updated_us"),
    micros("finished_us"),
    number("last_seq"),
    number("open_tasks"),
    number("task_count"),
    number("failed_tasks"),
    number("artifact_count"),
    micros("cancel_by_us"),
    micros("keep_until_us"),
    string("labels"),
    string("error_code"),
    string("error_message"),
    string("waiters"),
    number("open_gates"),
    string("parents"),
    string("workflow"),
    string("workflow_version"),
    string("plan"),
    number("redone"),
    micros("due_us"),
    Column("parent_id", Uuid),
    Column("parent_task", Uuid),
    micros("paused_us"),
    micros("timeout_us"),
    micros("deadline_us"),
    Column("rerun_of", Uuid),
    string("queue"),
    small("priority"),
    # A traceparent, of those few that belong to a trace.
    string("trace"),
    # Of those few that are being cancelled, failed or were cancelled, their status, by which they are listed. Most runs
    # just complete: an index over the status itself would cost each of them its last cheap update.
    Column("trouble", SmallInteger, Computed(TROUBLE, persisted=True)),
    Index("run_deadline", "deadline_us", postgresql_where=text("deadline_us > 0")),
    Index("run_trouble", "tenant", "trouble", "created_us", "id", postgresql_where=text("trouble > 0")),
    Index("run_workflow", "tenant", "workflow", "created_us", "id", postgresql_where=text("workflow <> ''")),
    # The version before looks labels up by this one.
    Index(
        "run_labels",
        text("(labels::jsonb)"),
        postgresql_using="gin",
        postgresql_where=text(LABELLED),
        postgresql_with={"gin_pending_list_limit": "256"},
    ),
    by_tenant_labels("run_tenant_labels"),
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
    postgresql_with={"fillfactor": "45", **HOT},
)

# What a run was given (1) and answers (2), beside its hot row.
run_payload = Table(
    "run_payload",
    metadata,
    Column("day", Integer, primary_key=True, autoincrement=False),
    Column("run_id", Uuid, primary_key=True),
    Column("what", SmallInteger, primary_key=True, autoincrement=False),
    octets("value"),
)

event = Table(
    "event",
    metadata,
    Column("day", Integer, primary_key=True, autoincrement=False),
    Column("run_id", Uuid, primary_key=True),
    Column("seq", Integer, primary_key=True, autoincrement=False),
    small("type"),
    micros("at_us"),
    Column("task_id", Uuid),
    Column("artifact_id", Uuid),
    number("attempt"),
    string("data"),
)
