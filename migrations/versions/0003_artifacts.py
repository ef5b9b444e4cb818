"""who published an artifact, and what lists of artifacts are found by"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("artifact", sa.Column("published_by", sa.Text(), server_default=sa.text("''"), nullable=False))
    op.create_index("artifact_kind", "artifact", ["tenant", "type", "id"])
    op.create_index(
        "artifact_maker",
        "artifact",
        ["tenant", "produced_by", "id"],
        postgresql_where=sa.text("produced_by <> 'external'"),
    )
    op.create_index(
        "artifact_hidden",
        "artifact",
        ["tenant", "visibility_kind", "id"],
        postgresql_where=sa.text("visibility_kind <> 'Public'"),
    )
    op.create_index(
        "artifact_tags",
        "artifact",
        ["tags"],
        postgresql_using="gin",
        postgresql_where=sa.text("tags <> '{}'"),
        postgresql_with={"gin_pending_list_limit": "256"},
    )
    op.add_column("artifact_type", sa.Column("options", sa.Text(), server_default=sa.text("''"), nullable=False))


def downgrade() -> None:
    op.drop_column("artifact_type", "options")
    op.drop_index("artifact_tags", "artifact")
    op.drop_index("artifact_hidden", "artifact")
    op.drop_index("artifact_maker", "artifact")
    op.drop_index("artifact_kind", "artifact")
    op.drop_column("artifact", "published_by")
