"""Runs: reading and cancelling them."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, Protocol

from millstream.application.engine.commands import CancelRun
from millstream.application.engine.engine import Engine
from millstream.application.engine.queue import Replayed
from millstream.application.paging import (
    Page,
    PageRequest,
    decode_token,
    encode_token,
    fitting,
    page_info,
    text_bytes,
    token_id,
    token_number,
    token_of,
)
from millstream.application.sight import Sight, SightReads
from millstream.application.views.idempotency import Key
from millstream.application.views.runs import FoundRuns, RunQuery, RunView
from millstream.application.views.tasks import TaskQuery
from millstream.application.views.workflows import WorkflowHead
from millstream.domain.batch import KeyClaim
from millstream.domain.errors import NotFound
from millstream.domain.principals import Principal
from millstream.domain.progress import is_worth_asking
from millstream.domain.runs import Attempt, Event, PayloadKind, Run, RunKind, Task

_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}").fullmatch


class RunReads(SightReads, Protocol):
    """What is read of runs and tasks; see store.runs."""

    async def run(self, tenant: str, run_id: str) -> Run | None: ...
    async def runs(
        self, tenant: str, query: RunQuery, after: tuple[int, str] | None, skip: int, limit: int
    ) -> FoundRuns: ...
    async def runs_by_ids(self, tenant: str, ids: list[str]) -> dict[str, Run]: ...
    async def count_runs(self, tenant: str, query: RunQuery) -> tuple[int, bool]: ...
    async def payload(self, found: Run, what: PayloadKind) -> bytes: ...
    async def events(self, found: Run, after_seq: int, limit: int) -> list[Event]: ...
    async def task(self, tenant: str, task_id: str) -> Task | None: ...
    async def output(self, found: Task) -> bytes: ...
    async def running_shares(self, run_ids: Sequence[str]) -> dict[str, tuple[float, str]]: ...
    async def tasks(self, tenant: str, query: TaskQuery, after_id: str, skip: int, limit: int) -> list[Task]: ...
    async def count_tasks(self, tenant: str, query: TaskQuery) -> tuple[int, bool]: ...
    async def attempts(self, found: Task, after: int, limit: int) -> list[Attempt]: ...


def run_bytes(run: Run) -> int:
    """About what a run takes in a list."""
    return 400 + text_bytes(run.labels, run.error_message)


def task_bytes(task: Task) -> int:
    """About what a task takes in a list."""
    return 700 + text_bytes(task.labels, task.error_message, task.progress_message, *task.retry.non_retryable)


async def task_page(
    reads: RunReads, principal: Principal, query: TaskQuery, request: PageRequest, now_us: int
) -> Page[Task]:
    """A page of tasks, which name the artifacts that the caller may see."""
    tenant = principal.tenant
    request.check()
    after = decode_token(request.page_token, token_of("tasks"), token_id)[1] if request.page_token else ""
    found = await reads.tasks(tenant, query, after, request.skip, request.size)
    page = fitting(found, request.size, task_bytes)
    token = encode_token("tasks", page[-1].id) if len(found) > len(page) else ""
    total = None if request.page_token is not None else await reads.count_tasks(tenant, query)
    info = page_info(request, total, token, cut=len(page) < request.size)
    return Page(await Sight(reads).tasks(principal, page, now_us), info)


def claim_of(principal: Principal, key: Key | None, response: object, expires_us: int) -> KeyClaim | None:
    """The claim of a call's key, None without one."""
    if key is None:
        return None
    return KeyClaim(
        principal.tenant, principal.name, key.rpc, key.value, key.fingerprint, json.dumps(response), expires_us
    )


class WorkflowNames(Protocol):
    """Finds workflows; see store.workflows."""

    async def find(self, tenant: str, id_or_name: str) -> WorkflowHead | None: ...


class Runs:
    """The use cases of runs.

    Args:
        key_ttl_us: How long an idempotency key holds, microseconds.
    """

    def __init__(self, engine: Engine, reads: RunReads, workflows: WorkflowNames, key_ttl_us: int) -> None:
        self._engine = engine
        self._workflows = workflows
        self._reads = reads
        self._sight = Sight(reads)
        self._key_ttl_us = key_ttl_us

    async def get(self, principal: Principal, run_id: str) -> Run:
        """A run. Raises NotFound."""
        return (await self._sight.runs(principal, [await self._run(principal, run_id)], self._engine.clock.now_us()))[0]

    async def view(self, principal: Principal, run_id: str) -> RunView:
        """A run with what it was given and answers. Raises NotFound."""
        found = (await self._with_shares([await self.get(principal, run_id)]))[0]
        if found.kind in (RunKind.CASCADE, RunKind.SINGLE):
            return RunView(found)
        given = await self._reads.payload(found, PayloadKind.INPUT)
        return RunView(found, given, await self._reads.payload(found, PayloadKind.OUTPUT))

    async def children(self, principal: Principal, run_id: str, request: PageRequest) -> Page[Run]:
        """Runs that steps of a run began, newest first. Raises NotFound, ValidationFailed."""
        await self._run(principal, run_id)
        return await self.list(principal, RunQuery(parent_id=run_id), request)

    async def _run(self, principal: Principal, run_id: str) -> Run:
        found = await self._reads.run(principal.tenant, run_id)
        if found is None:
            raise NotFound(f"there is no run {run_id}")
        return found

    async def _with_shares(self, found: Sequence[Run]) -> list[Run]:
        """Runs with the shares done of their tasks that run, where these matter."""
        asked = [run.id for run in found if is_worth_asking(run)]
        shares = await self._reads.running_shares(asked) if asked else {}
        return [
            replace(run, running_share=shares[run.id][0], running_words=shares[run.id][1]) if run.id in shares else run
            for run in found
        ]

    async def events(
        self, principal: Principal, run_id: str, after_seq: int, limit: int
    ) -> tuple[list[Event], int | None]:
        """Events in order, and where to go on (None at the end so far). Raises NotFound."""
        found = await self._reads.events(await self._run(principal, run_id), after_seq, limit)
        page = fitting(found, limit, lambda event: 300 + text_bytes(event.data))
        following = page[-1].seq if len(found) > len(page) else None
        return await self._sight.events(principal, page, self._engine.clock.now_us()), following

    async def tasks(self, principal: Principal, query: TaskQuery, request: PageRequest) -> Page[Task]:
        """Tasks of a run in the order they were made. Raises NotFound, ValidationFailed."""
        await self._run(principal, query.run_id)
        return await task_page(self._reads, principal, query, request, self._engine.clock.now_us())

    async def cancel(self, principal: Principal, run_id: str, reason: str, key: Key | None) -> tuple[Run, bool]:
        """Begin to cancel a run; whether it is a replay. Raises NotFound, Conflict, IdempotencyConflict."""
        command = CancelRun(
            run_id=run_id,
            open_tasks=True,
            locked=True,
            key=claim_of(principal, key, [run_id], self._engine.clock.now_us() + self._key_ttl_us),
            tenant=principal.tenant,
            reason=reason,
            by=principal.name,
        )
        outcome = await self._engine.submit(command)
        if isinstance(outcome, Replayed):
            return await self.get(principal, run_id), True
        return (await self._sight.runs(principal, [outcome], self._engine.clock.now_us()))[0], False

    async def by_name(self, principal: Principal, query: RunQuery) -> RunQuery:
        """The query with its workflow's name, where it has the id: runs keep the name."""
        if not _UUID(query.workflow):
            return query
        head = await self._workflows.find(principal.tenant, query.workflow.lower())
        return replace(query, workflow=head.name) if head is not None else query

    async def list(self, principal: Principal, query: RunQuery, request: PageRequest) -> Page[Run]:
        """Runs in the order asked for. A page may hold fewer than it might where few match. Raises ValidationFailed."""
        request.check()
        query = await self.by_name(principal, query)
        after = None
        kind = f"runs {query.sorting}"
        if request.page_token:
            _, at_us, run_id = decode_token(request.page_token, token_of(kind), token_number, token_id)
            after = (at_us, run_id)
        found = await self._reads.runs(principal.tenant, query, after, request.skip, request.size)
        page = fitting(found.runs, request.size, run_bytes)
        place = found.after
        if len(page) < len(found.runs):
            place = (page[-1].updated_us if query.by_updated else page[-1].created_us, page[-1].id)
        token = encode_token(kind, *place) if place else ""
        total = None if request.page_token is not None else await self._reads.count_runs(principal.tenant, query)
        seen = await self._sight.runs(principal, await self._with_shares(page), self._engine.clock.now_us())
        return Page(seen, page_info(request, total, token, cut=len(page) < request.size))
