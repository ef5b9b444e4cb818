"""Workers and what they serve."""

from sqlalchemy import Boolean, Column, Index, SmallInteger, Table, Text, Uuid, text

from millstream.store.tables.columns import HOT, metadata, micros, number, string, strings

worker = Table(
    "worker",
    metadata,
    Column("lane", Uuid, primary_key=True),
    Column("session", Uuid, primary_key=True),
    string("tenant"),
    string("worker_id"),
    string("name"),
    strings("kinds"),
    micros("connected_us"),
    # What follows is said of itself by a worker whose server is of this version, which is never without slots. Servers
    # of the version before read this table beside `lane`: no column may have the name of one there.
    strings("served"),
    strings("queues"),
    number("slots"),
    number("used"),
    micros("heard_us"),
    Column("draining", Boolean, nullable=False, server_default=text("false")),
    Index("worker_tenant", "tenant"),
    # Signs of life change no index.
    postgresql_with={"fillfactor": "50", **HOT},
)

worker_left = Table(
    "worker_left",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("worker_id", Text, primary_key=True),
    string("name"),
    string("host"),
    strings("kinds"),
    strings("served"),
    strings("queues"),
    number("slots"),
    micros("connected_us"),
    micros("heard_us"),
    micros("left_us"),
)

# What workers say of their kinds; who serves them stands with the workers.
served_kind = Table(
    "served_kind",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("category", SmallInteger, primary_key=True, autoincrement=False),
    Column("version", Text, primary_key=True),
    string("description"),
    string("input_schema"),
    string("output_schema"),
    micros("updated_us"),
)
