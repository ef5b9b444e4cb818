"""the key of lines in the order in which those of a run are read"""

from alembic import op

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None

_KEY = "task_log_pkey"


def upgrade() -> None:
    """Servers of the release before find lines by all columns of the key, or by the index of tasks: either order does
    for them."""
    op.drop_constraint(_KEY, "task_log", type_="primary")
    op.create_primary_key(_KEY, "task_log", ["run_id", "seq", "day"])


def downgrade() -> None:
    op.drop_constraint(_KEY, "task_log", type_="primary")
    op.create_primary_key(_KEY, "task_log", ["day", "run_id", "seq"])
