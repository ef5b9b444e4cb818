"""Workflows written as code, and the journal of their runs."""

from sqlalchemy import Column, Integer, Table, Text, Uuid

from millstream.store.tables.columns import metadata, micros, number, octets, small, string

# What the code of runs asked for and recorded, by number; and, by the negative of an event's number, the value that
# goes with it.
journal = Table(
    "journal",
    metadata,
    Column("day", Integer, primary_key=True, autoincrement=False),
    Column("run_id", Uuid, primary_key=True),
    Column("n", Integer, primary_key=True, autoincrement=False),
    number("after_seq"),
    small("kind"),
    string("name"),
    octets("value"),
    string("error_code"),
    string("error_message"),
)

# Code-first workflows that workers have registered, each version by itself.
code_workflow = Table(
    "code_workflow",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("version", Text, primary_key=True),
    string("description"),
    string("input_schema"),
    string("output_schema"),
    micros("created_us"),
)
