"""task logs: lines in partitions by day, and where the logs of runs and tasks end"""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

_HOT = {"fillfactor": "50", "autovacuum_vacuum_scale_factor": "0.02", "autovacuum_vacuum_threshold": "2000"}


def _int(name: str, default: str = "0") -> "sa.Column[int]":
    return sa.Column(name, sa.Integer(), server_default=sa.text(default), nullable=False)


def _big(name: str) -> "sa.Column[int]":
    return sa.Column(name, sa.BigInteger(), server_default=sa.text("0"), nullable=False)


def _text(name: str) -> "sa.Column[str]":
    return sa.Column(name, sa.Text(), server_default=sa.text("''"), nullable=False)


def upgrade() -> None:
    op.create_table(
        "task_log",
        sa.Column("day", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("task_id", sa.Uuid(), nullable=False),
        _int("attempt"),
        _int("n"),
        sa.Column("level", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        _big("at_us"),
        _text("logger"),
        _text("message"),
        sa.Column("fields", sa.LargeBinary(), server_default=sa.text("''::bytea"), nullable=False),
        _int("cut"),
        sa.PrimaryKeyConstraint("day", "run_id", "seq"),
        postgresql_partition_by="RANGE (day)",
    )
    op.create_index("task_log_task", "task_log", ["run_id", "task_id", "seq"])
    op.create_table(
        "run_log_end",
        sa.Column("run_id", sa.Uuid(), nullable=False),
        _int("day"),
        _big("last_seq"),
        sa.PrimaryKeyConstraint("run_id"),
        postgresql_with=_HOT,
    )
    op.create_index("run_log_end_day", "run_log_end", ["day"])
    op.create_table(
        "task_log_end",
        sa.Column("task_id", sa.Uuid(), nullable=False),
        sa.Column("run_id", sa.Uuid(), nullable=False),
        _int("day"),
        _int("attempt"),
        _int("last"),
        _int("final", "-1"),
        _int("lines"),
        _big("size_bytes"),
        _int("cut"),
        _int("mark_day"),
        _big("mark_seq"),
        sa.PrimaryKeyConstraint("task_id"),
        postgresql_with=_HOT,
    )
    op.create_index("task_log_end_day", "task_log_end", ["day"])


def downgrade() -> None:
    op.drop_table("task_log_end")
    op.drop_table("run_log_end")
    op.drop_table("task_log")
