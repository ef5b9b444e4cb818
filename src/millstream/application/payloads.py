"""Large payloads, up and down as streams: neither way holds more than a chunk in memory."""

import asyncio
import contextlib
import hashlib
from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from millstream.application.ids import new_id
from millstream.application.sight import restricted
from millstream.application.views.leases import LeaseRef
from millstream.application.views.payloads import StoredPayload
from millstream.domain.artifacts import Reader
from millstream.domain.errors import Conflict, NotFound, PayloadTooLarge, RateLimited, ValidationFailed
from millstream.domain.principals import Principal

CHUNK_BYTES: Final = 256 * 1024
"""Of all chunks but the last. It is part of the stored form: an offset leads to a chunk by it."""
TRANSFERS_MOST: Final = 64
"""Uploads and downloads that a server serves at once: each holds a few MiB."""
TRANSFERS_OF_TENANT: Final = 32
BUSY_S: Final = 1.0
CHUNKS_AT_ONCE: Final = 3
"""Chunks that are written or read at once: of the few connections to the database most are for everybody else."""


class PayloadStore(Protocol):
    """Where payloads are; see store.payloads."""

    async def begin(self, tenant: str, blob: str, now_us: int) -> None: ...
    async def append(self, tenant: str, blob: str, number: int, chunk: bytes, now_us: int) -> bool: ...
    async def abandon(self, tenant: str, blob: str) -> None: ...
    async def finish(
        self, tenant: str, principal: str, sha256: bytes, found: StoredPayload, now_us: int
    ) -> StoredPayload | None: ...
    async def keep(
        self, tenant: str, sha256: bytes, found: StoredPayload, content: bytes, chunk_bytes: int, now_us: int
    ) -> None: ...
    async def retype(self, tenant: str, sha256: bytes, media_type: str) -> None: ...
    async def find(self, tenant: str, sha256: bytes) -> StoredPayload | None: ...
    async def held(self, tenant: str, sha256: bytes, principal: str) -> bool: ...
    async def seen(self, tenant: str, sha256: bytes, reader: Reader | None, now_us: int) -> bool: ...
    async def leased(self, tenant: str, sha256: bytes, lease: LeaseRef) -> bool: ...
    async def chunk(self, blob: str, number: int) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Expected:
    """What a client says of its content before it sends it; empty and None for nothing."""

    sha256: bytes = b""
    size_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Uploaded:
    """A payload that is stored, and whether the tenant had it before."""

    sha256: bytes
    payload: StoredPayload
    existed: bool


class Payloads:
    """Upload and reading of payloads."""

    def __init__(self, store: PayloadStore, now_us: Callable[[], int], max_bytes: int) -> None:
        self._store = store
        self._now_us = now_us
        self._max_bytes = max_bytes
        self._transfers: Counter[str] = Counter()
        self._chunks_at_once = asyncio.Semaphore(CHUNKS_AT_ONCE)

    @contextlib.contextmanager
    def transfer(self, principal: Principal) -> Iterator[None]:
        """Keeps the place of an upload or download while it lasts. Raises RateLimited where there is none."""
        running = self._transfers
        if running.total() >= TRANSFERS_MOST or running[principal.tenant] >= TRANSFERS_OF_TENANT:
            raise RateLimited("too many payloads are on their way up or down; try again", retry_after_s=BUSY_S)
        running[principal.tenant] += 1
        try:
            yield
        finally:
            running[principal.tenant] -= 1
            if not running[principal.tenant]:
                del running[principal.tenant]

    async def upload(
        self, principal: Principal, content: AsyncIterable[bytes], media_type: str, expected: Expected
    ) -> Uploaded:
        """Store a content; the next piece is asked for only when a full chunk is stored.

        Raises PayloadTooLarge over the limit, ValidationFailed where the content is not what was expected, and
        Conflict where the upload paused for so long that it was given up. All leave the chunks to the sweep.
        """
        self._check_size(expected.size_bytes or 0)
        tenant, blob = principal.tenant, new_id()
        await self._store.begin(tenant, blob, self._now_us())
        try:
            sha256, size = await self._write(tenant, blob, content)
            _check(expected, sha256, size)
            stored = await self._finish(principal, sha256, StoredPayload(blob, size, media_type))
        except BaseException:
            # Also where the caller went: without this, the sweep would wait until the upload is long silent.
            await asyncio.shield(self._store.abandon(tenant, blob))
            raise
        return Uploaded(sha256, stored, stored.blob != blob)

    async def _finish(self, principal: Principal, sha256: bytes, found: StoredPayload) -> StoredPayload:
        stored = await self._store.finish(principal.tenant, principal.name, sha256, found, self._now_us())
        if stored is None:
            raise _given_up()
        return stored

    async def _write(self, tenant: str, blob: str, content: AsyncIterable[bytes]) -> tuple[bytes, int]:
        digest, size, number = hashlib.sha256(), 0, 0
        async for chunk in self._chunks(content):
            size += len(chunk)
            digest.update(chunk)
            async with self._chunks_at_once:
                kept = await self._store.append(tenant, blob, number, chunk, self._now_us())
            if not kept:
                raise _given_up()
            number += 1
        return digest.digest(), size

    async def _chunks(self, content: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
        waiting, size = bytearray(), 0
        async for piece in content:
            size += len(piece)
            self._check_size(size)
            waiting += piece
            while len(waiting) >= CHUNK_BYTES:
                yield bytes(waiting[:CHUNK_BYTES])
                del waiting[:CHUNK_BYTES]
        if waiting:
            yield bytes(waiting)

    def _check_size(self, size: int) -> None:
        if size > self._max_bytes:
            raise PayloadTooLarge(
                f"content: has over {self._max_bytes:,} bytes, the limit of an upload; split it, or ask the operator"
                " to raise max_upload_bytes"
            )

    async def keep(self, tenant: str, content: bytes, media_type: str) -> bytes:
        """Store a content that is at hand, unless the tenant has it, as what it is known to be; its SHA-256."""
        sha256 = (await asyncio.to_thread(hashlib.sha256, content)).digest()
        found = await self._store.find(tenant, sha256)
        if found is None:
            wanted = StoredPayload(new_id(), len(content), media_type)
            await self._store.keep(tenant, sha256, wanted, content, CHUNK_BYTES, self._now_us())
        elif found.media_type != media_type:
            await self._store.retype(tenant, sha256, media_type)
        return sha256

    async def find(self, tenant: str, sha256: bytes) -> StoredPayload | None:
        """A payload, for one of whom it is known that he may read it."""
        return await self._store.find(tenant, sha256)

    async def get(self, principal: Principal, sha256: bytes, lease: LeaseRef | None = None) -> StoredPayload:
        """A payload that the caller may read: its uploader's, or that of an artifact which the caller may see or, by
        its lease, was given. Raises NotFound in the same words for one that there is not and one that it may not
        read."""
        found = await self._store.find(principal.tenant, sha256)
        if found is None or not await self._may_read(principal, sha256, lease):
            raise NotFound(
                f"there is no payload sha256:{sha256.hex()}, or none any longer: upload it, or ask for one that an"
                " artifact you may see refers to"
            )
        return found

    async def _may_read(self, principal: Principal, sha256: bytes, lease: LeaseRef | None) -> bool:
        store, tenant = self._store, principal.tenant
        if "admin" in principal.permissions or await store.held(tenant, sha256, principal.name):
            return True
        if lease is not None and "worker.serve" in principal.permissions and await store.leased(tenant, sha256, lease):
            return True
        return await store.seen(tenant, sha256, restricted(principal), self._now_us())

    async def read(self, found: StoredPayload, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        """A payload's bytes from an offset on, `length` of them at most; a chunk is read when it is asked for. Raises
        ValidationFailed for an offset behind the end."""
        if offset > found.size_bytes:
            raise ValidationFailed.of(
                "offset", f"is behind the payload's end at {found.size_bytes} bytes; give a smaller one", "OUT_OF_RANGE"
            )
        end = found.size_bytes if length is None else min(found.size_bytes, offset + length)
        while offset < end:
            number, skip = divmod(offset, CHUNK_BYTES)
            async with self._chunks_at_once:
                chunk = (await self._store.chunk(found.blob, number))[skip : skip + end - offset]
            offset += len(chunk)
            yield chunk


def _check(expected: Expected, sha256: bytes, size: int) -> None:
    if expected.size_bytes is not None and size != expected.size_bytes:
        raise ValidationFailed.of(
            "size_bytes", f"{expected.size_bytes} bytes were announced, {size} came; send all of it again"
        )
    if expected.sha256 and sha256 != expected.sha256:
        raise ValidationFailed.of(
            "payload_ref", f"the content's is sha256:{sha256.hex()}; send it again, or mend the reference"
        )


def _given_up() -> Conflict:
    return Conflict("the upload paused for too long and was given up; start it again")
