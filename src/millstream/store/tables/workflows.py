"""Workflow definitions."""

from sqlalchemy import Column, Index, Integer, Table, Text, Uuid

from millstream.store.tables.columns import metadata, micros, number, string

# A deleted one stays: its versions are what runs of it follow, and their numbers are never given again.
workflow = Table(
    "workflow",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("id", Uuid, nullable=False),
    number("version"),
    string("description"),
    micros("created_us"),
    string("created_by"),
    micros("updated_us"),
    micros("deleted_us"),
    Index("workflow_id", "tenant", "id", unique=True),
    Index("workflow_created", "tenant", "created_us", "name"),
    Index("workflow_updated", "tenant", "updated_us", "name"),
)

workflow_version = Table(
    "workflow_version",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("workflow_id", Uuid, nullable=False),
    string("document"),
    micros("created_us"),
    string("created_by"),
)
