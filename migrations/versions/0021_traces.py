"""the trace that runs and tasks belong to"""

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ("run", "task"):
        op.add_column(table, sa.Column("trace", sa.Text(), server_default=sa.text("''"), nullable=False))


def downgrade() -> None:
    for table in ("run", "task"):
        op.drop_column(table, "trace")
