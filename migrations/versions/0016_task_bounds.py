"""task bounds: lines in which tasks wait for their turn, dead letters, and the indexes of lists"""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

_EMPTY = sa.text("''")
_ZERO = sa.text("0")
_INDEXES = {
    "task_running": (["tenant", "concurrency_key"], "status = 3 AND concurrency_key <> ''"),
    "task_line": (
        ["tenant", "waits_for", "status", "queue", "kind", "urgency", "run_at_us", "id"],
        "waits_for <> ''",
    ),
    "task_in_line": (["tenant", "queue"], "status = 0"),
    "task_line_start_by": (["start_by_us"], "status = 0 AND start_by_us > 0"),
    "task_delayed": (["tenant", "queue", "run_at_us"], "status = 1"),
    "task_dead": (["tenant", "finished_us", "id"], "status = 5 AND NOT dropped"),
}


def upgrade() -> None:
    for name in ("bounds", "concurrency_key", "waits_for"):
        op.add_column("task", sa.Column(name, sa.Text(), server_default=_EMPTY, nullable=False))
    op.add_column("task", sa.Column("dropped", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    for name, (columns, where) in _INDEXES.items():
        op.create_index(name, "task", columns, postgresql_where=sa.text(where))
    op.create_index(
        "task_labels",
        "task",
        [sa.text("(labels::jsonb)")],
        postgresql_using="gin",
        postgresql_where=sa.text("labels <> '' AND labels NOT LIKE '%\\\\u0000%'"),
        postgresql_with={"gin_pending_list_limit": "256"},
    )
    op.create_table(
        "line",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("period_us", sa.BigInteger(), server_default=_ZERO, nullable=False),
        sa.Column("starts", sa.Text(), server_default=_EMPTY, nullable=False),
        sa.Column("until_us", sa.BigInteger(), server_default=_ZERO, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "name"),
        postgresql_with={"autovacuum_vacuum_scale_factor": "0.02", "autovacuum_vacuum_threshold": "2000"},
    )
    op.create_index("line_until", "line", ["until_us"])


def downgrade() -> None:
    # What waits in a line, an older server would never look at.
    op.execute("UPDATE task SET status = 2 WHERE status = 0 AND waits_for <> ''")
    op.drop_table("line")
    op.drop_index("task_labels", "task")
    for name in reversed(_INDEXES):
        op.drop_index(name, "task")
    for name in ("dropped", "waits_for", "concurrency_key", "bounds"):
        op.drop_column("task", name)
