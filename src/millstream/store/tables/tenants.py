"""Tenants, the state of their registries and the keys of their calls."""

from sqlalchemy import BigInteger, Column, Index, Table, Text, Uuid

from millstream.store.tables.columns import metadata, micros, octets, string

tenant = Table(
    "tenant",
    metadata,
    Column("slug", Text, primary_key=True),
    Column("id", Uuid, nullable=False),
    string("name"),
    string("labels"),
    micros("created_us"),
    string("created_by"),
)

registry = Table(
    "registry",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("version", BigInteger, nullable=False),
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("principal", Text, primary_key=True),
    Column("rpc", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    octets("fingerprint"),
    string("response"),
    micros("created_us"),
    micros("expires_us"),
    Index("idempotency_expires", "expires_us"),
)
