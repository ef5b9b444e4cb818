"""throughput: what ended lately, as each server counts it"""

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None

_COUNTS = (
    "tasks_completed",
    "tasks_failed",
    "tasks_retried",
    "tasks_cancelled",
    "runs_completed",
    "runs_failed",
    "runs_cancelled",
)


def upgrade() -> None:
    op.create_table(
        "throughput",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("at_us", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("lane", sa.Uuid(), nullable=False),
        *(sa.Column(name, sa.Integer(), server_default=sa.text("0"), nullable=False) for name in _COUNTS),
        sa.PrimaryKeyConstraint("tenant", "at_us", "lane"),
    )
    op.create_index("throughput_at", "throughput", ["at_us"])


def downgrade() -> None:
    op.drop_table("throughput")
