"""workers: what they say of themselves, those that went, and the kinds that they serve"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def _text(name: str) -> "sa.Column[str]":
    return sa.Column(name, sa.Text(), server_default=sa.text("''"), nullable=False)


def _texts(name: str) -> "sa.Column[list[str]]":
    return sa.Column(name, postgresql.ARRAY(sa.Text()), server_default=sa.text("'{}'"), nullable=False)


def _int(name: str) -> "sa.Column[int]":
    return sa.Column(name, sa.Integer(), server_default=sa.text("0"), nullable=False)


def _us(name: str) -> "sa.Column[int]":
    return sa.Column(name, sa.BigInteger(), server_default=sa.text("0"), nullable=False)


def upgrade() -> None:
    for column in (_texts("served"), _texts("queues"), _int("slots"), _int("used"), _us("heard_us")):
        op.add_column("worker", column)
    op.add_column("worker", sa.Column("draining", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.execute(
        "ALTER TABLE worker SET "
        "(fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000)"
    )
    op.create_table(
        "worker_left",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("worker_id", sa.Text(), nullable=False),
        _text("name"),
        _text("host"),
        _texts("kinds"),
        _texts("served"),
        _texts("queues"),
        _int("slots"),
        _us("connected_us"),
        _us("heard_us"),
        _us("left_us"),
        sa.PrimaryKeyConstraint("tenant", "worker_id"),
    )
    op.create_table(
        "served_kind",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("category", sa.SmallInteger(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        _text("description"),
        _text("input_schema"),
        _text("output_schema"),
        _us("updated_us"),
        sa.PrimaryKeyConstraint("tenant", "name", "category", "version"),
    )


def downgrade() -> None:
    op.drop_table("served_kind")
    op.drop_table("worker_left")
    op.execute("ALTER TABLE worker RESET (fillfactor, autovacuum_vacuum_scale_factor, autovacuum_vacuum_threshold)")
    for name in ("draining", "heard_us", "used", "slots", "queues", "served"):
        op.drop_column("worker", name)
