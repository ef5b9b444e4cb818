"""gate runs: found by the cascades whose artifacts opened their gates"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(
        "run_parents",
        "run",
        [sa.text("string_to_array(parents, ',')")],
        unique=False,
        postgresql_using="gin",
        postgresql_where=sa.text("parents <> ''"),
    )


def downgrade() -> None:
    op.drop_index("run_parents", table_name="run")
