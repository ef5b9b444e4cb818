"""Artifacts, their types, and the gates that they wait in."""

from sqlalchemy import Boolean, Column, Index, Integer, Table, Text, Uuid, text

from millstream.store.tables.columns import HOT, metadata, micros, number, octets, string, strings

artifact = Table(
    "artifact",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("id", Uuid, primary_key=True),
    Column("run_id", Uuid, nullable=False),
    number("seq"),
    string("type"),
    number("version"),
    octets("payload"),
    string("produced_by"),
    string("visibility_kind"),
    string("visibility"),
    strings("tags"),
    string("partition_key"),
    micros("created_us"),
    string("published_by"),
    # Of a payload that lives outside: its SHA-256 (empty for one that stands in the row) and its size.
    octets("payload_digest"),
    micros("payload_bytes"),
    Index("artifact_payload", "tenant", "payload_digest", postgresql_where=text("payload_digest <> ''::bytea")),
    Index("artifact_run", "run_id", "seq"),
    # Lists go down the ids from the newest, whatever they ask for; what most artifacts share (made by a client,
    # public, without tags) is found soon on that way and stands in no index of its own.
    Index("artifact_kind", "tenant", "type", "id"),
    Index("artifact_maker", "tenant", "produced_by", "id", postgresql_where=text("produced_by <> 'external'")),
    Index("artifact_hidden", "tenant", "visibility_kind", "id", postgresql_where=text("visibility_kind <> 'Public'")),
    # A search also reads what is not sorted in yet: 256 kB of that at most.
    Index(
        "artifact_tags",
        "tags",
        postgresql_using="gin",
        postgresql_where=text("tags <> '{}'"),
        postgresql_with={"gin_pending_list_limit": "256"},
    ),
)

artifact_type = Table(
    "artifact_type",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    string("schema"),
    string("description"),
    micros("created_us"),
    string("options"),
)

buffer = Table(
    "buffer",
    metadata,
    Column("id", Uuid, primary_key=True),
    string("tenant"),
    string("agent"),
    string("sub"),
    Column("run_id", Uuid),
    string("key"),
    Column("collects", Boolean, nullable=False, server_default=text("false")),
    micros("opened_us"),
    micros("expires_us"),
    number("arrived"),
    number("waiting"),
    string("parts"),
    Index("buffer_expires", "expires_us"),
    Index("buffer_agent", "tenant", "agent", "expires_us"),
    Index("buffer_run", "run_id"),
    # A part more changes neither key: half of each page is free for it.
    postgresql_with={"fillfactor": "50", **HOT},
)
