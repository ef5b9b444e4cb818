"""the queue and urgency of a run's tasks that name none"""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("run", sa.Column("queue", sa.Text(), server_default=sa.text("''"), nullable=False))
    op.add_column("run", sa.Column("priority", sa.SmallInteger(), server_default=sa.text("0"), nullable=False))


def downgrade() -> None:
    op.drop_column("run", "priority")
    op.drop_column("run", "queue")
