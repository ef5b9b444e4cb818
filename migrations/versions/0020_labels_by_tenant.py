"""labels by tenant: what other tenants label is not in the way"""

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ("run", "task"):
        op.create_index(
            f"{table}_tenant_labels",
            table,
            [sa.literal_column("(jsonb_set('{}'::jsonb, ARRAY[tenant], labels::jsonb))").label("by_tenant")],
            postgresql_using="gin",
            postgresql_ops={"by_tenant": "jsonb_path_ops"},
            postgresql_where=sa.text("labels <> '' AND labels NOT LIKE '%\\\\u0000%'"),
            postgresql_with={"gin_pending_list_limit": "256"},
        )


def downgrade() -> None:
    for table in ("task", "run"):
        op.drop_index(f"{table}_tenant_labels", table)
