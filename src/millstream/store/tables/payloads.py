"""Large payloads."""

from sqlalchemy import Column, Index, Integer, LargeBinary, Table, Text, Uuid

from millstream.store.tables.columns import metadata, micros, string

# A large payload, by its tenant and content: nobody learns from it what another tenant holds.
payload = Table(
    "payload",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("sha256", LargeBinary, primary_key=True),
    Column("blob", Uuid, nullable=False),
    micros("size_bytes"),
    string("media_type"),
    micros("created_us"),
    # When it was last uploaded, about to be referred to, or found to be: it goes only a good while after.
    micros("touched_us"),
    Index("payload_touched", "touched_us"),
)

# Who uploaded a payload: such a principal may read it though no artifact refers to it.
payload_holder = Table(
    "payload_holder",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("sha256", LargeBinary, primary_key=True),
    Column("principal", Text, primary_key=True),
)

# Chunks that no payload owns: of an upload in progress, or (touched_us = 0) left for the sweep.
payload_upload = Table(
    "payload_upload",
    metadata,
    Column("blob", Uuid, primary_key=True),
    string("tenant"),
    micros("touched_us"),
    Index("payload_upload_touched", "touched_us"),
)

payload_chunk = Table(
    "payload_chunk",
    metadata,
    Column("blob", Uuid, primary_key=True),
    Column("n", Integer, primary_key=True, autoincrement=False),
    Column("bytes", LargeBinary, nullable=False),
)
