"""promises: the key of a promise, unique among the open ones of its tenant"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("task", sa.Column("promise_key", sa.Text(), server_default=sa.text("''"), nullable=False))
    op.create_index(
        "task_promise", "task", ["tenant", "id"], unique=False, postgresql_where=sa.text("queue = '~promise'")
    )
    op.create_index(
        "task_promise_key",
        "task",
        ["tenant", "promise_key", "finished_us"],
        unique=True,
        postgresql_where=sa.text("promise_key <> ''"),
    )


def downgrade() -> None:
    op.drop_index("task_promise_key", table_name="task")
    op.drop_index("task_promise", table_name="task")
    op.drop_column("task", "promise_key")
