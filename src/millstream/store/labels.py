"""What few have labels is found by their index; the planner cannot know whether few do, so it is looked up."""

from collections.abc import Mapping, Sequence

from millstream.store.connections import Database
from millstream.store.tables.columns import LABELLED, TENANT_LABELS

LABELLED_MOST = 2_000
"""Rows whose labels are looked up by their index."""
BY_LABELS = ("enable_indexscan", "enable_seqscan")
"""What is switched off, so that the labels' index is used."""
SQL: Mapping[str, str] = {
    table: f"""SELECT id::text FROM {table} WHERE {LABELLED}
AND {TENANT_LABELS} @> jsonb_set('{{}}'::jsonb, ARRAY[$1::text], $2::text::jsonb)
LIMIT {LABELLED_MOST + 1}"""  # noqa: S608  # our names
    for table in ("run", "task")
}


async def labelled(database: Database, table: str, tenant: str, labels: str) -> Sequence[str] | None:
    """Ids of a tenant's rows with these labels (a JSON object as text), in no order; None where too many have them:
    then they are soon met on the way. Labels of other tenants do not count."""
    async with database.transaction() as connection:
        for name in BY_LABELS:
            await connection.execute(f"SET LOCAL {name} = off")
        rows = await connection.fetch(SQL[table], tenant, labels)
    return None if len(rows) > LABELLED_MOST else [row["id"] for row in rows]
