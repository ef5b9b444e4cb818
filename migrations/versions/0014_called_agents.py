"""agents that the servers call themselves: their protocol and where they are"""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

_TABLES = ("agent", "agent_deleted")


def upgrade() -> None:
    for table in _TABLES:
        for name in ("protocol", "url"):
            op.add_column(table, sa.Column(name, sa.Text(), server_default=sa.text("''"), nullable=False))
    called = sa.text("protocol <> ''")
    op.create_index("agent_called", "agent", ["tenant", "name"], unique=False, postgresql_where=called)
    op.create_index("agent_deleted_called", "agent_deleted", ["deleted_us"], unique=False, postgresql_where=called)


def downgrade() -> None:
    op.drop_index("agent_deleted_called", table_name="agent_deleted")
    op.drop_index("agent_called", table_name="agent")
    for table in _TABLES:
        for name in ("url", "protocol"):
            op.drop_column(table, name)
