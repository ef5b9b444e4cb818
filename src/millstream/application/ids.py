"""Ids: UUIDv7, time-ordered, made by servers and never by a database sequence."""

import uuid_utils


def new_id() -> str:
    """A new UUIDv7 in canonical form."""
    return str(uuid_utils.uuid7())
