"""first tables"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "agent",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("spec", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("version", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("created_us", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("updated_us", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "name"),
    )
    op.create_index("agent_id", "agent", ["tenant", "id"], unique=True)
    op.create_table(
        "artifact",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("seq", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("type", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("version", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("payload", sa.LargeBinary(), server_default=sa.text("''::bytea"), nullable=False),
        sa.Column("produced_by", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("visibility_kind", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("visibility", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("tags", postgresql.ARRAY(sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("partition_key", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("created_us", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "id"),
    )
    op.create_index("artifact_run", "artifact", ["run_id", "seq"], unique=False)
    op.create_table(
        "artifact_type",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("schema", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("description", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("created_us", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "name", "version"),
    )
    op.create_table(
        "attempt",
        sa.Column("day", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("task_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("status", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("started_us", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("finished_us", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("worker_name", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("error_code", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("error_message", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("output", sa.LargeBinary(), server_default=sa.text("''::bytea"), nullable=False),
        sa.PrimaryKeyConstraint("day", "task_id", "number"),
    )
    op.create_table(
        "commit_batch",
        sa.Column("lane", sa.Uuid(), nullable=False),
        sa.Column("n", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("lane", "n"),
    )
    op.create_table(
        "event",
        sa.Column("day", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("seq", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("type", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("at_us", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("task_id", sa.Uuid(), nullable=True),
        sa.Column("artifact_id", sa.Uuid(), nullable=True),
        sa.Column("attempt", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("data", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.PrimaryKeyConstraint("day", "run_id", "seq"),
    )
    op.create_table(
        "idempotency",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("principal", sa.Text(), nullable=False),
        sa.Column("rpc", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(), server_default=sa.text("''::bytea"), nullable=False),
        sa.Column("response", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("created_us", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("expires_us", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "principal", "rpc", "key"),
    )
    op.create_index("idempotency_expires", "idempotency", ["expires_us"], unique=False)
    op.create_table(
        "interest",
        sa.Column("lane", sa.Uuid(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("lane", "tenant", "queue", "kind"),
    )
    op.create_table(
        "lane",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("server", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("started_us", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("seen_us", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "registry",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant"),
    )
    op.create_table(
        "run",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("tenant", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("kind", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("status", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("created_us", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("created_by", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("updated_us", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("finished_us", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("last_seq", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("open_tasks", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("task_count", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("failed_tasks", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("artifact_count", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("cancel_by_us", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("keep_until_us", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("labels", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("error_code", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("error_message", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("waiters", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        postgresql_with={
            "fillfactor": "45",
            "autovacuum_vacuum_scale_factor": "0.02",
            "autovacuum_vacuum_threshold": "2000",
        },
    )
    op.create_index("run_cancel", "run", ["cancel_by_us"], unique=False, postgresql_where=sa.text("cancel_by_us > 0"))
    op.create_index("run_created", "run", ["created_us"], unique=False)
    op.create_index("run_tenant", "run", ["tenant", "created_us", "id"], unique=False)
    op.create_table(
        "task",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("tenant", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("kind", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("queue", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("created_us", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("day", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("status", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("urgency", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("run_at_us", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("start_by_us", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("attempt", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("tries", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("started_us", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("finished_us", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("lease_until_us", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("deadline_us", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("beat_by_us", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("owner", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("worker_id", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("worker_name", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("delivered", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("cancelling", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("depth", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("limited", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("agent", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("artifact_ids", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("input", sa.LargeBinary(), server_default=sa.text("''::bytea"), nullable=False),
        sa.Column("policy", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("labels", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("error_code", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("error_message", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("progress", sa.REAL(), server_default=sa.text("0"), nullable=False),
        sa.Column("progress_message", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        postgresql_with={"autovacuum_vacuum_scale_factor": "0.02", "autovacuum_vacuum_threshold": "2000"},
    )
    op.create_index("task_lease", "task", ["lease_until_us"], unique=False, postgresql_where=sa.text("status = 3"))
    op.create_index(
        "task_limited", "task", ["tenant", "kind"], unique=False, postgresql_where=sa.text("status = 3 AND limited")
    )
    op.create_index(
        "task_ready",
        "task",
        ["tenant", "queue", "kind", "urgency", "run_at_us", "id"],
        unique=False,
        postgresql_where=sa.text("status = 2"),
    )
    op.create_index("task_run", "task", ["run_id", "id"], unique=False)
    op.create_index("task_scheduled", "task", ["run_at_us"], unique=False, postgresql_where=sa.text("status = 1"))
    op.create_index(
        "task_start_by",
        "task",
        ["start_by_us"],
        unique=False,
        postgresql_where=sa.text("status = 2 AND start_by_us > 0"),
    )
    op.create_index("task_tenant", "task", ["tenant", "id"], unique=False)


def downgrade() -> None:
    op.drop_index("task_tenant", table_name="task")
    op.drop_index("task_start_by", table_name="task", postgresql_where=sa.text("status = 2 AND start_by_us > 0"))
    op.drop_index("task_scheduled", table_name="task", postgresql_where=sa.text("status = 1"))
    op.drop_index("task_run", table_name="task")
    op.drop_index("task_ready", table_name="task", postgresql_where=sa.text("status = 2"))
    op.drop_index("task_limited", table_name="task", postgresql_where=sa.text("status = 3 AND limited"))
    op.drop_index("task_lease", table_name="task", postgresql_where=sa.text("status = 3"))
    op.drop_table("task")
    op.drop_index("run_tenant", table_name="run")
    op.drop_index("run_created", table_name="run")
    op.drop_index("run_cancel", table_name="run", postgresql_where=sa.text("cancel_by_us > 0"))
    op.drop_table("run")
    op.drop_table("registry")
    op.drop_table("lane")
    op.drop_table("interest")
    op.drop_index("idempotency_expires", table_name="idempotency")
    op.drop_table("idempotency")
    op.drop_table("event")
    op.drop_table("commit_batch")
    op.drop_table("attempt")
    op.drop_table("artifact_type")
    op.drop_index("artifact_run", table_name="artifact")
    op.drop_table("artifact")
    op.drop_index("agent_id", table_name="agent")
    op.drop_table("agent")
