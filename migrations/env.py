"""Alembic's entry: run the migrations in the transaction that store/migrations.py opened."""

from alembic import context

from millstream.store.migrations import VERSION_TABLE
from millstream.store.tables.all import metadata
from millstream.store.tables.task_logs import PARTITION

connection = context.config.attributes.get("connection")
if connection is None:
    raise SystemExit("run migrations with `millstream migrate`: it takes the lock that replicas wait for")


def _ours(_: object, name: str | None, kind: str, reflected: bool, __: object) -> bool:
    """Whether to compare it: the servers make and drop the partitions of a table themselves."""
    return not (reflected and kind in ("table", "index") and PARTITION(name or ""))


context.configure(connection=connection, target_metadata=metadata, version_table=VERSION_TABLE, include_object=_ours)
with context.begin_transaction():
    context.run_migrations()
