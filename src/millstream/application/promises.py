"""Promises: making, settling, awaiting and reading them."""

import asyncio
import json
from dataclasses import replace
from typing import Protocol

from millstream.application.engine.commands import CancelTask
from millstream.application.engine.engine import Engine
from millstream.application.engine.promise_commands import AwaitPromise, CreatePromise, SettlePromise
from millstream.application.engine.queue import Replayed
from millstream.application.ids import new_id
from millstream.application.paging import (
    Page,
    PageRequest,
    decode_token,
    encode_token,
    fitting,
    page_info,
    text_bytes,
    token_id,
    token_of,
)
from millstream.application.runs import claim_of
from millstream.application.views.idempotency import Key
from millstream.application.views.promises import PromiseQuery, PromiseRef, PromiseView
from millstream.domain.batch import KeyClaim
from millstream.domain.errors import Conflict, NotFound, TimedOut
from millstream.domain.principals import Principal
from millstream.domain.promises import REJECTED, NewPromise, PromiseState, Rejection, Resolution, state_of
from millstream.domain.runs import Task, TaskStatus
from millstream.domain.struct_wire import decode_value


class PromiseReads(Protocol):
    """What is read of promises; see store.promises and store.runs."""

    async def promise(self, tenant: str, promise_id: str) -> Task | None: ...
    async def promise_of_key(self, tenant: str, key: str) -> Task | None: ...
    async def promises(self, tenant: str, query: PromiseQuery, after_id: str, skip: int, limit: int) -> list[Task]: ...
    async def count_promises(self, tenant: str, query: PromiseQuery) -> tuple[int, bool]: ...
    async def output(self, found: Task) -> bytes: ...


class Promises:
    """The use cases of promises.

    Args:
        key_ttl_us: How long an idempotency key holds, microseconds.
    """

    def __init__(self, engine: Engine, reads: PromiseReads, key_ttl_us: int) -> None:
        self._engine = engine
        self._reads = reads
        self._key_ttl_us = key_ttl_us

    async def create(self, principal: Principal, new: NewPromise, key: Key | None) -> PromiseView:
        """Make a promise. Raises Conflict where an open one has its key, IdempotencyConflict, RateLimited."""
        task_id = new_id()
        command = CreatePromise(
            run_id=new_id(),
            new_run=True,
            locked=bool(new.key),
            key=self._claim(principal, key, task_id),
            size_bytes=500 + len(new.input),
            promise_keys=[(principal.tenant, new.key)] if new.key else [],
            tenant=principal.tenant,
            by=principal.name,
            new=new,
            task_id=task_id,
        )
        return await self._answer(principal, await self._engine.submit(command))

    async def get(self, principal: Principal, ref: PromiseRef) -> PromiseView:
        """A promise with its value. Raises NotFound."""
        return await self._view(await self._find(principal, ref))

    async def settle(
        self, principal: Principal, ref: PromiseRef, outcome: Resolution | Rejection, key: Key | None
    ) -> PromiseView:
        """Resolve or reject a promise; the same again changes nothing.

        Raises NotFound, Conflict, IdempotencyConflict.
        """
        found = await self._find(principal, ref)
        size = len(outcome.value) if isinstance(outcome, Resolution) else len(outcome.message)
        command = SettlePromise(
            task_ids=(found.id,),
            key=self._claim(principal, key, found.id),
            size_bytes=400 + size,
            tenant=principal.tenant,
            by=principal.name,
            outcome=outcome,
        )
        try:
            settled = await self._engine.submit(command)
        except Conflict:
            # Whoever lost the answer asks again, maybe through another server and without a key.
            view = await self.get(principal, PromiseRef(found.id))
            if _is_outcome(view, outcome):
                return view
            raise
        return await self._answer(principal, settled)

    async def cancel(self, principal: Principal, ref: PromiseRef, reason: str, key: Key | None) -> PromiseView:
        """Cancel a promise. Raises NotFound, Conflict, IdempotencyConflict."""
        found = await self._find(principal, ref)
        command = CancelTask(
            task_ids=(found.id,), locked=True, key=self._claim(principal, key, found.id), tenant=principal.tenant,
            reason=reason, by=principal.name,
        )  # fmt: skip
        try:
            return await self._answer(principal, await self._engine.submit(command))
        except Conflict:
            found = await self._find(principal, PromiseRef(found.id))
            raise Conflict(f"promise {found.id} is {state_of(found).name} already") from None

    async def wait(self, principal: Principal, ref: PromiseRef, timeout_s: float, fail_on_timeout: bool) -> PromiseView:
        """Wait until a promise is settled, or the time has passed. Raises NotFound; TimedOut where wanted."""
        engine = self._engine
        deadline = asyncio.get_running_loop().time() + timeout_s
        found = await self._find(principal, ref)
        if found.open and timeout_s > 0:
            with engine.waiters.wait(found.id) as ended:
                command = AwaitPromise(
                    task_ids=(found.id,), locked=True, tenant=principal.tenant, waiter=engine.lane_id
                )
                if (await engine.submit(command)).open:
                    left = deadline - asyncio.get_running_loop().time()
                    await asyncio.wait([ended], timeout=max(left, 0))
            found = await self._find(principal, PromiseRef(found.id))
        if found.open and fail_on_timeout:
            raise TimedOut(f"promise {found.id} was not settled within {timeout_s:g} s; it stays open")
        return await self._view(found)

    async def list(self, principal: Principal, query: PromiseQuery, request: PageRequest) -> Page[Task]:
        """Promises newest first. Raises ValidationFailed."""
        request.check()
        after = decode_token(request.page_token, token_of("promises"), token_id)[1] if request.page_token else ""
        found = await self._reads.promises(principal.tenant, query, after, request.skip, request.size)
        page = fitting(found, request.size, _size_bytes)
        token = encode_token("promises", page[-1].id) if len(found) > len(page) else ""
        total = None if request.page_token is not None else await self._reads.count_promises(principal.tenant, query)
        return Page(page, page_info(request, total, token))

    def _claim(self, principal: Principal, key: Key | None, task_id: str) -> KeyClaim | None:
        return claim_of(principal, key, [task_id], self._engine.clock.now_us() + self._key_ttl_us)

    async def _find(self, principal: Principal, ref: PromiseRef) -> Task:
        if ref.id:
            found = await self._reads.promise(principal.tenant, ref.id)
        else:
            found = await self._reads.promise_of_key(principal.tenant, ref.key)
        if found is None:
            raise NotFound(f"there is no promise {ref.id}" if ref.id else f"there is no promise of the key {ref.key!r}")
        return found

    async def _view(self, found: Task) -> PromiseView:
        return PromiseView(found, await self._reads.output(found) if found.status is TaskStatus.COMPLETED else b"")

    async def _answer(self, principal: Principal, outcome: Task | Replayed) -> PromiseView:
        """A promise as a command left it, or as it stands where the command had been done before."""
        if isinstance(outcome, Replayed):
            view = await self.get(principal, PromiseRef(json.loads(outcome.claim.response)[0]))
            return replace(view, replayed=True)
        return await self._view(outcome)


def _is_outcome(view: PromiseView, outcome: Resolution | Rejection) -> bool:
    """Whether the promise was settled in this very way."""
    state = state_of(view.task)
    if isinstance(outcome, Resolution):
        return state is PromiseState.RESOLVED and _json(view.value) == _json(outcome.value)
    told = (view.task.error_code, view.task.error_message)
    return state is PromiseState.REJECTED and told == (outcome.code or REJECTED, outcome.message)


def _json(value: bytes) -> object:
    return decode_value(value) if value else None


def _size_bytes(task: Task) -> int:
    return 400 + text_bytes(task.labels, task.error_message, task.promise_key)
