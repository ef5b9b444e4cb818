"""Agents."""

from sqlalchemy import Column, Index, Table, Text, Uuid, text

from millstream.store.tables.columns import metadata, micros, number, string

agent = Table(
    "agent",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("id", Uuid, nullable=False),
    string("spec"),
    number("version"),
    micros("created_us"),
    micros("updated_us"),
    string("protocol"),
    string("url"),
    Index("agent_id", "tenant", "id", unique=True),
    Index("agent_called", "tenant", "name", postgresql_where=text("protocol <> ''")),
)

# Apart from the living, so that nothing matches a deleted agent by mistake, servers of the version before included.
agent_deleted = Table(
    "agent_deleted",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("id", Uuid, primary_key=True),
    string("name"),
    string("spec"),
    number("version"),
    micros("created_us"),
    micros("updated_us"),
    micros("deleted_us"),
    string("protocol"),
    string("url"),
    Index("agent_deleted_called", "deleted_us", postgresql_where=text("protocol <> ''")),
)
