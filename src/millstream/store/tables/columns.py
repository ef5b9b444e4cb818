"""The tables' metadata, and what their columns have in common.

Times are bigint microseconds (`*_us`), 0 meaning "not yet": exact, cheap to send in arrays, and the same on every
PostgreSQL-like database. Ids are UUIDs made by servers or callers; there are no sequences, triggers or
foreign keys (history must be droppable by day, and a key check per row would double the cost of a write).
Rows that retention drops by time lead their keys with `day`, the day of their run's creation.
"""

from collections.abc import Sequence

from sqlalchemy import (
    BigInteger,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Text,
    literal_column,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY

metadata = MetaData()
"""Holds the tables whose modules are loaded; `tables.all` loads every one."""

ZERO = text("0")
LABELLED = "labels <> '' AND labels NOT LIKE '%\\\\u0000%'"
"""There are labels, and jsonb can hold them."""
TENANT_LABELS = "jsonb_set('{}'::jsonb, ARRAY[tenant], labels::jsonb)"
"""Labels below their tenant's name: each path to a value is one key of an index, so no tenant's are among another's."""
HOT = {
    # Hot tables die fast: without these, dead rows pile up between two vacuums, as Hatchet and DBOS found.
    "autovacuum_vacuum_scale_factor": "0.02",
    "autovacuum_vacuum_threshold": "2000",
}


def by_tenant_labels(name: str) -> Index:
    """An index of a table's labels, tenant by tenant."""
    return Index(
        name,
        literal_column(f"({TENANT_LABELS})").label("by_tenant"),
        postgresql_using="gin",
        postgresql_ops={"by_tenant": "jsonb_path_ops"},
        postgresql_where=text(LABELLED),
        postgresql_with={"gin_pending_list_limit": "256"},
    )


def string(name: str) -> Column[str]:
    """A text, by default ""."""
    return Column(name, Text, nullable=False, server_default=text("''"))


def number(name: str) -> Column[int]:
    """A number of 32 bits, by default 0."""
    return Column(name, Integer, nullable=False, server_default=ZERO)


def micros(name: str) -> Column[int]:
    """A time or a count of 64 bits, by default 0."""
    return Column(name, BigInteger, nullable=False, server_default=ZERO)


def small(name: str) -> Column[int]:
    """A number of 16 bits, by default 0."""
    return Column(name, SmallInteger, nullable=False, server_default=ZERO)


def strings(name: str) -> Column[Sequence[str]]:
    """Texts, by default none."""
    return Column(name, ARRAY(Text), nullable=False, server_default=text("'{}'"))


def octets(name: str) -> Column[bytes]:
    """Bytes, by default none."""
    return Column(name, LargeBinary, nullable=False, server_default=text("''::bytea"))
