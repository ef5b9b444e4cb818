"""run operations: pauses, time-outs and reruns of runs, and how runs and stuck tasks are found"""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

_ZERO = sa.text("0")
_TROUBLE = "CASE WHEN status IN (2, 4, 5) THEN status ELSE 0 END"


def upgrade() -> None:
    for name in ("paused_us", "timeout_us", "deadline_us"):
        op.add_column("run", sa.Column(name, sa.BigInteger(), server_default=_ZERO, nullable=False))
    op.add_column("run", sa.Column("rerun_of", sa.Uuid()))
    op.add_column("run", sa.Column("trouble", sa.SmallInteger(), sa.Computed(_TROUBLE, persisted=True)))
    op.create_index("run_deadline", "run", ["deadline_us"], postgresql_where=sa.text("deadline_us > 0"))
    op.create_index(
        "run_trouble", "run", ["tenant", "trouble", "created_us", "id"], postgresql_where=sa.text("trouble > 0")
    )
    op.create_index(
        "run_workflow", "run", ["tenant", "workflow", "created_us", "id"], postgresql_where=sa.text("workflow <> ''")
    )
    op.create_index(
        "run_labels",
        "run",
        [sa.text("(labels::jsonb)")],
        postgresql_using="gin",
        postgresql_where=sa.text("labels <> '' AND labels NOT LIKE '%\\\\u0000%'"),
        postgresql_with={"gin_pending_list_limit": "256"},
    )
    op.add_column("task", sa.Column("held_us", sa.BigInteger(), server_default=_ZERO, nullable=False))
    op.create_index(
        "task_retrying", "task", ["tenant", "id"], postgresql_where=sa.text("tries > 0 AND finished_us = 0")
    )


def downgrade() -> None:
    op.drop_index("task_retrying", "task")
    op.drop_column("task", "held_us")
    for name in ("run_labels", "run_workflow", "run_trouble", "run_deadline"):
        op.drop_index(name, "run")
    for name in ("trouble", "rerun_of", "deadline_us", "timeout_us", "paused_us"):
        op.drop_column("run", name)
