"""large payloads outside the hot tables"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_EMPTY = sa.text("''")
_ZERO = sa.text("0")


def upgrade() -> None:
    op.add_column(
        "artifact", sa.Column("payload_digest", sa.LargeBinary(), server_default=sa.text("''::bytea"), nullable=False)
    )
    op.add_column("artifact", sa.Column("payload_bytes", sa.BigInteger(), server_default=_ZERO, nullable=False))
    op.create_index(
        "artifact_payload",
        "artifact",
        ["tenant", "payload_digest"],
        postgresql_where=sa.text("payload_digest <> ''::bytea"),
    )
    op.create_table(
        "payload",
        sa.Column("tenant", sa.Text(), primary_key=True),
        sa.Column("sha256", sa.LargeBinary(), primary_key=True),
        sa.Column("blob", sa.Uuid(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), server_default=_ZERO, nullable=False),
        sa.Column("media_type", sa.Text(), server_default=_EMPTY, nullable=False),
        sa.Column("created_us", sa.BigInteger(), server_default=_ZERO, nullable=False),
        sa.Column("touched_us", sa.BigInteger(), server_default=_ZERO, nullable=False),
    )
    op.create_index("payload_touched", "payload", ["touched_us"])
    op.create_table(
        "payload_holder",
        sa.Column("tenant", sa.Text(), primary_key=True),
        sa.Column("sha256", sa.LargeBinary(), primary_key=True),
        sa.Column("principal", sa.Text(), primary_key=True),
    )
    op.create_table(
        "payload_upload",
        sa.Column("blob", sa.Uuid(), primary_key=True),
        sa.Column("tenant", sa.Text(), server_default=_EMPTY, nullable=False),
        sa.Column("touched_us", sa.BigInteger(), server_default=_ZERO, nullable=False),
    )
    op.create_index("payload_upload_touched", "payload_upload", ["touched_us"])
    op.create_table(
        "payload_chunk",
        sa.Column("blob", sa.Uuid(), primary_key=True),
        sa.Column("n", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("bytes", sa.LargeBinary(), nullable=False),
    )
    # Most of what is large is compressed already: not tried again with each chunk.
    op.execute("ALTER TABLE payload_chunk ALTER COLUMN bytes SET STORAGE EXTERNAL")


def downgrade() -> None:
    op.drop_table("payload_chunk")
    op.drop_table("payload_upload")
    op.drop_table("payload_holder")
    op.drop_table("payload")
    op.drop_index("artifact_payload", "artifact")
    op.drop_column("artifact", "payload_bytes")
    op.drop_column("artifact", "payload_digest")
