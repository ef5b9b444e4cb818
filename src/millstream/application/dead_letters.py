"""Dead letters: tasks that failed finally are listed, tried again, or dropped."""

import json
from collections.abc import Sequence
from typing import Protocol

from millstream.application.engine.commands import ClaimKey, Command, Refuse
from millstream.application.engine.dead_letters import DropTask, RetryTask
from millstream.application.engine.engine import Engine
from millstream.application.engine.queue import Replayed
from millstream.application.paging import (
    EXACT_TOTAL,
    Page,
    PageRequest,
    decode_token,
    encode_token,
    fitting,
    page_info,
    token_id,
    token_number,
    token_of,
)
from millstream.application.publishing import item_key
from millstream.application.runs import claim_of, task_bytes
from millstream.application.sight import Sight, SightReads
from millstream.application.views.dead_letters import BulkDone, BulkWanted, DeadLetterQuery
from millstream.application.views.idempotency import Key
from millstream.domain.errors import Conflict, MillstreamError, ValidationFailed
from millstream.domain.principals import Principal
from millstream.domain.runs import Task

BULK_MOST = 1000
"""Tasks that one call retries or drops."""


class DeadLetterReads(SightReads, Protocol):
    """Reads dead letters; see store.dead_letters."""

    async def dead_letters(
        self, tenant: str, query: DeadLetterQuery, after: tuple[int, str] | None, skip: int, limit: int
    ) -> list[Task]: ...
    async def dead_ids(self, tenant: str, query: DeadLetterQuery, limit: int) -> list[str]: ...
    async def count_dead(self, tenant: str, query: DeadLetterQuery) -> tuple[int, bool]: ...
    async def bereft(self, tenant: str, task_ids: Sequence[str]) -> set[str]: ...


class DeadLetters:
    """The use cases of dead letters.

    Args:
        key_ttl_us: How long an idempotency key holds, microseconds.
    """

    def __init__(self, engine: Engine, reads: DeadLetterReads, key_ttl_us: int) -> None:
        self._engine = engine
        self._reads = reads
        self._key_ttl_us = key_ttl_us

    async def retry(self, principal: Principal, wanted: BulkWanted, key: Key | None) -> BulkDone:
        """Try dead letters again, each with an outcome of its own. Raises ValidationFailed, IdempotencyConflict,
        RateLimited."""
        return await self._bulk(principal, wanted, key, RetryTask)

    async def drop(self, principal: Principal, wanted: BulkWanted, key: Key | None) -> BulkDone:
        """Drop dead letters, each with an outcome of its own. Raises ValidationFailed, IdempotencyConflict,
        RateLimited."""
        return await self._bulk(principal, wanted, key, DropTask)

    async def _bulk(
        self, principal: Principal, wanted: BulkWanted, key: Key | None, verb: type[RetryTask | DropTask]
    ) -> BulkDone:
        matched, ids = await self._chosen(principal, wanted)
        if wanted.dry_run:
            return BulkDone(matched, more=matched > BULK_MOST)
        expires_us = self._engine.clock.now_us() + self._key_ttl_us
        claim = claim_of(principal, key, [matched, ids], expires_us)
        if claim is not None:
            # What the key's first call chose: what it was kept from doing is done now, and nothing else.
            first = await self._engine.submit(ClaimKey(key=claim))
            if isinstance(first, Replayed):
                matched, ids = json.loads(first.claim.response)
        commands: list[Command] = []
        bereft = await self._reads.bereft(principal.tenant, ids) if verb is RetryTask and ids else set()
        for index, task_id in enumerate(ids):
            own = claim_of(principal, item_key(key, index), [task_id], expires_us)
            if task_id in bereft:
                error = Conflict(f"an artifact that task {task_id} was given is gone; publish it again instead")
                commands.append(Refuse(key=own, error=error))
                continue
            commands.append(
                verb(
                    task_ids=(task_id,), locked=True, key=own, tenant=principal.tenant, by=principal.name,
                    note=wanted.note,
                )
            )  # fmt: skip
        outcomes = await self._engine.submit_all(commands)
        results = tuple(
            (task_id, outcome if isinstance(outcome, MillstreamError) else None)
            for task_id, outcome in zip(ids, outcomes, strict=True)
        )
        replayed = bool(outcomes) and all(isinstance(outcome, Replayed) for outcome in outcomes)
        return BulkDone(matched, results, matched > len(ids), replayed)

    async def _chosen(self, principal: Principal, wanted: BulkWanted) -> tuple[int, list[str]]:
        """How many dead letters a call is about, and the ids of those that it takes."""
        if (wanted.query is not None) == bool(wanted.task_ids):
            raise ValidationFailed.of("task_ids", "give task_ids, or filter ({} for all), and not both")
        if wanted.query is None:
            ids = [*dict.fromkeys(wanted.task_ids)]
            return len(ids), ids
        ids = await self._reads.dead_ids(principal.tenant, wanted.query, BULK_MOST)
        if len(ids) < BULK_MOST:
            return len(ids), ids
        matched, _ = await self._reads.count_dead(principal.tenant, wanted.query)
        return min(matched, EXACT_TOTAL + 1), ids

    async def list(self, principal: Principal, query: DeadLetterQuery, request: PageRequest) -> Page[Task]:
        """Dead letters, the latest first, which name the artifacts that the caller may see. Raises
        ValidationFailed."""
        request.check()
        after = None
        if request.page_token:
            _, finished_us, task_id = decode_token(request.page_token, token_of("dead letters"), token_number, token_id)
            after = (finished_us, task_id)
        found = await self._reads.dead_letters(principal.tenant, query, after, request.skip, request.size)
        page: Sequence[Task] = fitting(found, request.size, task_bytes)
        token = encode_token("dead letters", page[-1].finished_us, page[-1].id) if len(found) > len(page) else ""
        total = None if request.page_token is not None else await self._reads.count_dead(principal.tenant, query)
        seen = await Sight(self._reads).tasks(principal, [*page], self._engine.clock.now_us())
        return Page(seen, page_info(request, total, token))
