"""What ended lately."""

from sqlalchemy import BigInteger, Column, Index, Table, Text, Uuid

from millstream.store.tables.columns import metadata, number

# A row for each time that a server noted what ended of a tenant; kept for minutes.
throughput = Table(
    "throughput",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("at_us", BigInteger, primary_key=True, autoincrement=False),
    Column("lane", Uuid, primary_key=True),
    number("tasks_completed"),
    number("tasks_failed"),
    number("tasks_retried"),
    number("tasks_cancelled"),
    number("runs_completed"),
    number("runs_failed"),
    number("runs_cancelled"),
    Index("throughput_at", "at_us"),
)
