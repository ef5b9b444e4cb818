"""graph runs: what a run follows, where it stands, who began it, what it was given and answers"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_EMPTY = sa.text("''")
_ZERO = sa.text("0")


def upgrade() -> None:
    for name in ("workflow", "workflow_version", "plan"):
        op.add_column("run", sa.Column(name, sa.Text(), server_default=_EMPTY, nullable=False))
    op.add_column("run", sa.Column("redone", sa.Integer(), server_default=_ZERO, nullable=False))
    op.add_column("run", sa.Column("due_us", sa.BigInteger(), server_default=_ZERO, nullable=False))
    for name in ("parent_id", "parent_task"):
        op.add_column("run", sa.Column(name, sa.Uuid()))
    op.create_index("run_due", "run", ["due_us"], postgresql_where=sa.text("due_us > 0"))
    op.create_index("run_parent", "run", ["parent_id", "id"], postgresql_where=sa.text("parent_id IS NOT NULL"))
    for name in ("step", "item"):
        op.add_column("task", sa.Column(name, sa.Integer(), server_default=_ZERO, nullable=False))
    op.create_table(
        "run_payload",
        sa.Column("day", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("what", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("value", sa.LargeBinary(), server_default=sa.text("''::bytea"), nullable=False),
        sa.PrimaryKeyConstraint("day", "run_id", "what"),
    )


def downgrade() -> None:
    op.drop_table("run_payload")
    for name in ("item", "step"):
        op.drop_column("task", name)
    op.drop_index("run_parent", "run")
    op.drop_index("run_due", "run")
    for name in ("parent_task", "parent_id", "due_us", "redone", "plan", "workflow_version", "workflow"):
        op.drop_column("run", name)
