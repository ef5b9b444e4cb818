"""Artifacts whose payload is kept outside: those published with a reference, and those too large for the hot tables."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from millstream.application.catalog import Catalog, Catalogs
from millstream.application.payloads import Payloads
from millstream.application.turns import Turns
from millstream.application.views.leases import LeaseRef
from millstream.application.views.payloads import STRUCT_TYPE, StoredPayload
from millstream.domain.agents import Activation
from millstream.domain.artifacts import PUBLIC, Artifact, NewArtifact, Visibility, foreign_tenant
from millstream.domain.errors import MillstreamError, NotFound, ValidationFailed
from millstream.domain.principals import Principal
from millstream.domain.struct_wire import Json, decode_struct

JSON_TYPE = "application/json"
MAX_DEPTH = 30
"""Containers in containers at most, as in payloads that come within a request."""
MOVING_MOST = 4
"""Payloads that are looked at, or moved outside, at once: more would take the database from all others."""

QUICK_BYTES = 64 * 1024
"""Payloads up to this size are decoded at once; that takes 3 ms."""
WAITING_BYTES = 64 * 1024 * 1024
"""Of payloads that wait for that; then RATE_LIMITED."""


class Referring:
    """Examines artifacts, and has the payloads of large ones moved outside before they are stored.

    Args:
        large_bytes: Payloads over this size (in wire form) are moved outside.
        max_read_bytes: JSON outside up to this size is checked as if it stood in the artifact.
    """

    def __init__(self, catalogs: Catalogs, payloads: Payloads, large_bytes: int, max_read_bytes: int) -> None:
        self._catalogs = catalogs
        self._payloads = payloads
        self._large_bytes = large_bytes
        self._max_read_bytes = max_read_bytes
        self._turns = Turns(MOVING_MOST, WAITING_BYTES)

    async def examine(
        self,
        principal: Principal,
        catalog: Catalog,
        new: NewArtifact,
        producer: str,
        prefix: str = "",
        lease: LeaseRef | None = None,
    ) -> tuple[int, Sequence[Activation], NewArtifact]:
        """As Catalogs.examine; and the artifact as it is to be stored. `prefix` stands before the fields of the
        artifact, `lease` is of the task that publishes it. Raises NotFound also where the caller may not read the
        payload that it refers to, and RateLimited."""
        field = f"{prefix}payload"
        if new.visibility is not PUBLIC:
            _check_tenant(new.visibility, principal.tenant, f"{prefix}visibility")
        if not new.payload_digest and len(new.payload) <= self._large_bytes:
            return *await self._catalogs.examine(catalog, new, producer, field), new
        # What was worked for is never refused: the task would fail.
        async with self._turns.turn(principal.tenant, len(new.payload), refuse=lease is None):
            if new.payload_digest:
                new = await self._looked_at(principal, new, f"{prefix}payload_ref", lease)
            version, activations = await self._catalogs.examine(catalog, new, producer, field)
            if not new.payload_digest:
                return version, activations, await self._moved(principal, new)
        return version, activations, replace(new, payload=b"", content=None)

    async def payload_of(self, artifact: Artifact) -> bytes:
        """The payload of an artifact that came within a request and was moved outside; else that in its row."""
        if not artifact.payload_digest:
            return artifact.payload
        found = await self._payloads.find(artifact.tenant, artifact.payload_digest)
        if found is None or found.media_type != STRUCT_TYPE:
            return artifact.payload
        return await self._read(found)

    async def object_of(self, artifact: Artifact, most_bytes: int) -> dict[str, Json] | None:
        """The JSON object that an artifact holds, wherever that is kept; None where it is none, or larger."""
        payload = artifact.payload
        if artifact.payload_digest:
            found = await self._payloads.find(artifact.tenant, artifact.payload_digest)
            if found is None or found.size_bytes > most_bytes:
                return None
            if found.media_type != STRUCT_TYPE:
                return await self._json_of(found)
            payload = await self._read(found)
        if len(payload) <= QUICK_BYTES:
            return decode_struct(payload)
        return await asyncio.to_thread(decode_struct, payload)

    async def _json_of(self, found: StoredPayload) -> dict[str, Json] | None:
        if not _is_json(found.media_type):
            return None
        try:
            return await asyncio.to_thread(_parsed, await self._read(found))
        except ValueError:
            return None

    async def _looked_at(
        self, principal: Principal, new: NewArtifact, field: str, lease: LeaseRef | None
    ) -> NewArtifact:
        """With the size of its payload, and what that holds where it is small enough to be looked at."""
        if new.payload:
            raise ValidationFailed.of(field, "cannot be together with payload; leave one of them out")
        try:
            found = await self._payloads.get(principal, new.payload_digest, lease)
        except NotFound as error:
            raise _at(error, field) from None
        new = replace(new, payload_bytes=found.size_bytes)
        if found.size_bytes > self._max_read_bytes:
            return new
        if found.media_type == STRUCT_TYPE:
            return replace(new, payload=await self._read(found))
        return replace(new, content=await self._content(found, field)) if _is_json(found.media_type) else new

    async def _content(self, found: StoredPayload, field: str) -> dict[str, Json]:
        try:
            return await asyncio.to_thread(_parsed, await self._read(found))
        except ValueError as error:
            raise ValidationFailed.of(
                field, f"the content says that it is {found.media_type}, but {error}; mend it, or its Content-Type"
            ) from None

    async def _read(self, found: StoredPayload) -> bytes:
        return b"".join([chunk async for chunk in self._payloads.read(found)])

    async def _moved(self, principal: Principal, new: NewArtifact) -> NewArtifact:
        # As it is: to make JSON of a megabyte would take 180 ms of the processor, to store it takes 2.
        digest = await self._payloads.keep(principal.tenant, new.payload, STRUCT_TYPE)
        return replace(new, payload=b"", payload_digest=digest, payload_bytes=len(new.payload))


def referred(tenant: str, artifacts: Sequence[NewArtifact]) -> tuple[tuple[str, bytes], ...]:
    """The payloads outside that artifacts refer to, as a command names them."""
    return tuple([(tenant, each.payload_digest) for each in artifacts if each.payload_digest])


def _at(error: MillstreamError, field: str) -> NotFound:
    return NotFound(f"{field}: {error.message}", ValidationFailed.of(field, error.message, "NOT_FOUND").details)


def _check_tenant(visibility: Visibility, tenant: str, field: str) -> None:
    """Raise ValidationFailed where a visibility could have no effect but to hide the artifact from everyone."""
    path = foreign_tenant(visibility, tenant)
    if path:
        raise ValidationFailed.of(
            f"{field}.{path}",
            f"must be {tenant!r}, the tenant that publishes: artifacts go to no other; leave it out, or name agents",
        )


def _is_json(media_type: str) -> bool:
    kind = media_type.partition(";")[0].strip().lower()
    return kind == JSON_TYPE or (kind.startswith("application/") and kind.endswith("+json"))


def _parsed(data: bytes) -> dict[str, Json]:
    """The object that JSON in UTF-8 holds. Raises ValueError with what is wrong, for people."""
    try:
        value = json.loads(data.decode(), parse_constant=_refused)
    except UnicodeDecodeError:
        raise ValueError("is no UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"is no JSON at character {error.pos}") from None
    except RecursionError:
        raise ValueError(f"is nested deeper than {MAX_DEPTH} levels") from None
    if not isinstance(value, dict):
        raise ValueError("is no object")  # noqa: TRY004 (one error)
    _check_depth(value)
    return value


def _refused(name: str) -> Any:
    raise ValueError(f"has {name}, which JSON has not")


def _check_depth(value: Json) -> None:
    level: list[Json] = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for each in level
            for inner in (each.values() if isinstance(each, dict) else each if isinstance(each, list) else ())
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise ValueError(f"is nested deeper than {MAX_DEPTH} levels")
