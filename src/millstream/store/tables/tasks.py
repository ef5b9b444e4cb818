"""Tasks, their attempts, and what holds them back."""

from sqlalchemy import REAL, Boolean, Column, Index, Integer, Table, Text, Uuid, text

from millstream.store.tables.columns import (
    HOT,
    LABELLED,
    ZERO,
    by_tenant_labels,
    metadata,
    micros,
    number,
    octets,
    small,
    string,
)

task = Table(
    "task",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("run_id", Uuid, nullable=False),
    string("tenant"),
    string("kind"),
    string("queue"),
    micros("created_us"),
    number("day"),
    small("status"),
    small("urgency"),
    micros("run_at_us"),
    micros("start_by_us"),
    number("attempt"),
    number("tries"),
    micros("started_us"),
    micros("finished_us"),
    micros("lease_until_us"),
    micros("deadline_us"),
    micros("beat_by_us"),
    string("owner"),
    string("worker_id"),
    string("worker_name"),
    Column("delivered", Boolean, nullable=False, server_default=text("false")),
    Column("cancelling", Boolean, nullable=False, server_default=text("false")),
    small("depth"),
    Column("limited", Boolean, nullable=False, server_default=text("false")),
    string("agent"),
    string("artifact_ids"),
    octets("input"),
    string("policy"),
    string("labels"),
    string("error_code"),
    string("error_message"),
    Column("progress", REAL, nullable=False, server_default=ZERO),
    string("progress_message"),
    number("step"),
    number("item"),
    string("promise_key"),
    micros("held_us"),
    # How many run at once, and start in a while, of those with its keys; the first of them for its index.
    string("bounds"),
    string("concurrency_key"),
    string("waits_for"),
    Column("dropped", Boolean, nullable=False, server_default=text("false")),
    string("trace"),
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
    # The version before looks labels up by this one.
    Index(
        "task_labels",
        text("(labels::jsonb)"),
        postgresql_using="gin",
        postgresql_where=text(LABELLED),
        postgresql_with={"gin_pending_list_limit": "256"},
    ),
    by_tenant_labels("task_tenant_labels"),
    postgresql_with=HOT,
)

attempt = Table(
    "attempt",
    metadata,
    Column("day", Integer, primary_key=True, autoincrement=False),
    Column("task_id", Uuid, primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    small("status"),
    micros("started_us"),
    micros("finished_us"),
    string("worker_name"),
    string("error_code"),
    string("error_message"),
    octets("output"),
)

# A line in which tasks wait for their turn: locked by whoever starts some of them.
line = Table(
    "line",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    micros("period_us"),
    string("starts"),
    # It is swept after this: what runs is counted from the tasks, and nothing of its starts matters any more.
    micros("until_us"),
    Index("line_until", "until_us"),
    postgresql_with=HOT,
)

# A dispatch key whose tasks wait; "" stands for any queue, or any kind.
pause = Table(
    "pause",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("queue", Text, primary_key=True),
    Column("kind", Text, primary_key=True),
    micros("paused_us"),
    string("paused_by"),
    string("reason"),
)
