"""log levels that were set while servers run"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "log_level",
        sa.Column("logger", sa.Text(), nullable=False),
        sa.Column("level", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("until_us", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.PrimaryKeyConstraint("logger"),
    )


def downgrade() -> None:
    op.drop_table("log_level")
