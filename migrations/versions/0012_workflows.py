"""workflows: definitions in versions"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_EMPTY = sa.text("''")
_ZERO = sa.text("0")


def upgrade() -> None:
    op.create_table(
        "workflow",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.Integer(), server_default=_ZERO, nullable=False),
        sa.Column("description", sa.Text(), server_default=_EMPTY, nullable=False),
        sa.Column("created_us", sa.BigInteger(), server_default=_ZERO, nullable=False),
        sa.Column("created_by", sa.Text(), server_default=_EMPTY, nullable=False),
        sa.Column("updated_us", sa.BigInteger(), server_default=_ZERO, nullable=False),
        sa.Column("deleted_us", sa.BigInteger(), server_default=_ZERO, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "name"),
    )
    op.create_index("workflow_id", "workflow", ["tenant", "id"], unique=True)
    op.create_index("workflow_created", "workflow", ["tenant", "created_us", "name"])
    op.create_index("workflow_updated", "workflow", ["tenant", "updated_us", "name"])
    op.create_table(
        "workflow_version",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("workflow_id", sa.Uuid(), nullable=False),
        sa.Column("document", sa.Text(), server_default=_EMPTY, nullable=False),
        sa.Column("created_us", sa.BigInteger(), server_default=_ZERO, nullable=False),
        sa.Column("created_by", sa.Text(), server_default=_EMPTY, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "name", "version"),
    )


def downgrade() -> None:
    op.drop_table("workflow_version")
    op.drop_table("workflow")
