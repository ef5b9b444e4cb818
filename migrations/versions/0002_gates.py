"""gates: what waits in them, and the runs that they begin"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("run", sa.Column("open_gates", sa.Integer(), server_default=sa.text("0"), nullable=False))
    op.add_column("run", sa.Column("parents", sa.Text(), server_default=sa.text("''"), nullable=False))
    op.create_table(
        "buffer",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("tenant", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("agent", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("sub", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("run_id", sa.Uuid(), nullable=True),
        sa.Column("key", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("collects", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("opened_us", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("expires_us", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("arrived", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("waiting", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("parts", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        postgresql_with={
            "fillfactor": "50",
            "autovacuum_vacuum_scale_factor": "0.02",
            "autovacuum_vacuum_threshold": "2000",
        },
    )
    op.create_index("buffer_agent", "buffer", ["tenant", "agent", "expires_us"], unique=False)
    op.create_index("buffer_expires", "buffer", ["expires_us"], unique=False)
    op.create_index("buffer_run", "buffer", ["run_id"], unique=False)


def downgrade() -> None:
    op.drop_table("buffer")
    op.drop_column("run", "parents")
    op.drop_column("run", "open_gates")
