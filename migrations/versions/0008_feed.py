"""feed: which artifacts a batch stored, and when, for those who watch"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("commit_batch", sa.Column("at_us", sa.BigInteger(), server_default=sa.text("0"), nullable=False))
    op.add_column(
        "commit_batch", sa.Column("artifacts", sa.LargeBinary(), server_default=sa.text("''::bytea"), nullable=False)
    )
    # Ids hardly compress, and to try takes time on the hot path.
    op.execute("ALTER TABLE commit_batch ALTER COLUMN artifacts SET STORAGE EXTERNAL")


def downgrade() -> None:
    op.drop_column("commit_batch", "artifacts")
    op.drop_column("commit_batch", "at_us")
