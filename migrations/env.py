"""Alembic's entry: run the migrations in the transaction that store/migrations.py opened."""

from alembic import context

from millstream.store.migrations import VERSION_TABLE
from millstream.store.tables.all import metadata

connection = context.config.attributes.get("connection")
if connection is None:
    raise SystemExit("run migrations with `millstream migrate`: it takes the lock that replicas wait for")

context.configure(connection=connection, target_metadata=metadata, version_table=VERSION_TABLE)
with context.begin_transaction():
    context.run_migrations()
