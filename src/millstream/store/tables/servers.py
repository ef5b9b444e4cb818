"""The servers, what they serve and have committed, and how they log."""

from sqlalchemy import BigInteger, Column, Table, Text, Uuid

from millstream.store.tables.columns import metadata, micros, octets, string

lane = Table(
    "lane",
    metadata,
    Column("id", Uuid, primary_key=True),
    string("server"),
    micros("started_us"),
    micros("seen_us"),
)

interest = Table(
    "interest",
    metadata,
    Column("lane", Uuid, primary_key=True),
    Column("tenant", Text, primary_key=True),
    Column("queue", Text, primary_key=True),
    Column("kind", Text, primary_key=True),
)

commit_batch = Table(
    "commit_batch",
    metadata,
    Column("lane", Uuid, primary_key=True),
    Column("n", BigInteger, primary_key=True, autoincrement=False),
    micros("at_us"),
    octets("artifacts"),
)

# A level that the servers log from, for a logger ("": all), until a time (0: for ever).
log_level = Table(
    "log_level",
    metadata,
    Column("logger", Text, primary_key=True),
    string("level"),
    micros("until_us"),
)
