"""code-first runs: what their code asked for and recorded, and which workflows workers have the code of"""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

_EMPTY = sa.text("''")
_ZERO = sa.text("0")


def upgrade() -> None:
    op.create_table(
        "journal",
        sa.Column("day", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("n", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("after_seq", sa.Integer(), server_default=_ZERO, nullable=False),
        sa.Column("kind", sa.SmallInteger(), server_default=_ZERO, nullable=False),
        sa.Column("name", sa.Text(), server_default=_EMPTY, nullable=False),
        sa.Column("value", sa.LargeBinary(), server_default=sa.text("''::bytea"), nullable=False),
        sa.Column("error_code", sa.Text(), server_default=_EMPTY, nullable=False),
        sa.Column("error_message", sa.Text(), server_default=_EMPTY, nullable=False),
        sa.PrimaryKeyConstraint("day", "run_id", "n"),
    )
    op.create_table(
        "code_workflow",
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("tenant", "name", "version")),
        *(
            sa.Column(name, sa.Text(), server_default=_EMPTY, nullable=False)
            for name in ("description", "input_schema", "output_schema")
        ),
        sa.Column("created_us", sa.BigInteger(), server_default=_ZERO, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "name", "version"),
    )


def downgrade() -> None:
    op.drop_table("code_workflow")
    op.drop_table("journal")
