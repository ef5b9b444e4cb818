"""What operators do to runs: retry, rerun, pause and resume them, one or many."""

import json
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from millstream.application.advancing import Definitions
from millstream.application.engine.commands import CancelRun, ClaimKey, Command, Refuse
from millstream.application.engine.engine import Engine
from millstream.application.engine.queue import Outcome, Replayed
from millstream.application.engine.run_operations import PauseRun, ResumeRun, RetryRun
from millstream.application.paging import decode_token, encode_token, token_id, token_number, token_of
from millstream.application.rerunning import Rerunning
from millstream.application.runs import RunReads, Runs, claim_of
from millstream.application.sight import Sight
from millstream.application.views.idempotency import Key
from millstream.application.views.runs import DoneRuns, ManyRuns, RunQuery
from millstream.domain.errors import Conflict, MillstreamError, NotFound, RateLimited, ValidationFailed
from millstream.domain.principals import Principal
from millstream.domain.runs import Run, RunKind, RunStatus, Task
from millstream.domain.workflows import Definition

PAGES_MOST = 10
"""Pages that a call looks through for runs that match, where few do."""
CHUNK_BYTES = 4 * 1024 * 1024
"""Of commands submitted together, as they weigh with the tasks that they load."""
TASK_BYTES = 1000
"""About what a task takes while its run is decided."""


@dataclass(frozen=True, slots=True)
class _Found:
    """Runs that a call is about."""

    ids: list[str]
    matched: int
    token: str = ""


class OperationReads(RunReads, Protocol):
    """What is read of runs; see store.reads."""

    async def failed_tasks(self, run_id: str) -> list[Task]: ...
    async def bereft(self, tenant: str, ids: Sequence[str]) -> set[str]: ...


class RunOperations:
    """The use cases.

    Args:
        key_ttl_us: How long an idempotency key holds, microseconds.
    """

    def __init__(
        self,
        engine: Engine,
        reads: OperationReads,
        runs: Runs,
        rerunning: Rerunning,
        definitions: Definitions,
        key_ttl_us: int,
    ) -> None:
        self._engine = engine
        self._definitions = definitions
        self._reads = reads
        self._runs = runs
        self._rerunning = rerunning
        self._sight = Sight(reads)
        self._key_ttl_us = key_ttl_us

    # One.

    async def retry(
        self, principal: Principal, run_id: str, note: str, from_step: str, key: Key | None
    ) -> tuple[Run, bool]:
        """Let a failed run go on with what failed in it. Raises NotFound, Conflict, ValidationFailed."""
        found = await self._reads.run(principal.tenant, run_id)
        if found is not None and (refused := await self._bereft(principal, found, key)) is not None:
            return await self._do(principal, refused)
        command = self._retry(principal, run_id, note, key, from_step)
        command.definition = await self._definition(found) if found is not None else None
        return await self._do(principal, command)

    async def pause(self, principal: Principal, run_id: str, reason: str, key: Key | None) -> tuple[Run, bool]:
        """Let nothing new of a run start. Raises NotFound, Conflict."""
        command = PauseRun(
            run_id=run_id, open_tasks=True, locked=True, key=self._claim(principal, key, run_id),
            tenant=principal.tenant, by=principal.name, reason=reason,
        )  # fmt: skip
        return await self._do(principal, command)

    async def resume(self, principal: Principal, run_id: str, key: Key | None) -> tuple[Run, bool]:
        """Let a paused run go on. Raises NotFound, Conflict."""
        command = ResumeRun(
            run_id=run_id, open_tasks=True, locked=True, key=self._claim(principal, key, run_id),
            tenant=principal.tenant, by=principal.name,
        )  # fmt: skip
        return await self._do(principal, command)

    async def rerun(self, principal: Principal, run_id: str, version: str, key: Key | None) -> tuple[Run, bool]:
        """Begin a new run with what another was given; the new one. Raises NotFound, Conflict, ValidationFailed,
        RateLimited."""
        made, replayed = await self._rerunning.rerun(principal, run_id, version, key)
        return await self._runs.get(principal, made), replayed

    async def _do(self, principal: Principal, command: Command) -> tuple[Run, bool]:
        outcome = await self._engine.submit(command)
        if isinstance(outcome, Replayed):
            return await self._runs.get(principal, command.run_id), True
        return (await self._sight.runs(principal, [outcome], self._engine.clock.now_us()))[0], False

    # Many.

    async def retry_many(self, principal: Principal, many: ManyRuns, key: Key | None) -> DoneRuns:
        """Retry failed runs. Raises ValidationFailed, IdempotencyConflict, RateLimited."""

        async def command(run: Run, own: Key | None) -> Command:
            if (refused := await self._bereft(principal, run, own)) is not None:
                return refused
            made = self._retry(principal, run.id, many.why, own)
            made.definition = await self._definition(run)
            made.size_bytes += TASK_BYTES * max(run.failed_tasks, 1)
            return made

        return await self._do_many(principal, many, RunStatus.FAILED, command, key)

    async def cancel_many(self, principal: Principal, many: ManyRuns, key: Key | None) -> DoneRuns:
        """Cancel running runs. Raises ValidationFailed, IdempotencyConflict, RateLimited."""

        async def command(run: Run, own: Key | None) -> Command:
            return CancelRun(
                run_id=run.id, open_tasks=True, locked=True, key=self._claim(principal, own, run.id),
                size_bytes=500 + TASK_BYTES * run.open_tasks, tenant=principal.tenant, reason=many.why,
                by=principal.name,
            )  # fmt: skip

        return await self._do_many(principal, many, RunStatus.RUNNING, command, key)

    async def _do_many(
        self,
        principal: Principal,
        many: ManyRuns,
        status: RunStatus,
        command: Callable[[Run, Key | None], Awaitable[Command]],
        key: Key | None,
    ) -> DoneRuns:
        found = await self._found(principal, many, status)
        replayed = False
        if key is not None and not many.dry_run:
            response = [found.ids, found.matched, found.token]
            claim = claim_of(principal, key, response, self._engine.clock.now_us() + self._key_ttl_us)
            outcome = await self._engine.submit(ClaimKey(key=claim))
            if isinstance(outcome, Replayed):
                replayed = True
                found = _Found(*json.loads(outcome.claim.response))
        outcomes: list[tuple[str, str | MillstreamError]] = [(each, "matched") for each in found.ids]
        if not many.dry_run:
            outcomes = await self._submit_many(principal, found.ids, command, key)
        left = max(found.matched - len(found.ids), 0) if found.token else 0
        return DoneRuns(outcomes, found.matched, left, found.token, replayed)

    async def _found(self, principal: Principal, many: ManyRuns, status: RunStatus) -> _Found:
        """The runs that a call is about, at most its limit."""
        if bool(many.ids) == (many.query is not None):
            raise ValidationFailed.of("run_ids", "give either run_ids, or a filter")
        if many.query is None:
            if many.page_token:
                raise ValidationFailed.of("page_token", "goes with a filter; leave it out")
            if len(many.ids) > many.limit:
                raise ValidationFailed.of("limit", "is less than there are run_ids; leave it out", "OUT_OF_RANGE")
            return _Found([*many.ids], len(many.ids))
        if many.query == RunQuery():
            raise ValidationFailed.of("filter", "must say something, such as created_before: it would match every run")
        query = await self._runs.by_name(principal, replace(many.query, statuses=(status,)))
        after = None
        if many.page_token:
            _, at_us, run_id = decode_token(many.page_token, token_of("many runs"), token_number, token_id)
            after = (at_us, run_id)
        total, _ = await self._reads.count_runs(principal.tenant, query)
        ids: list[str] = []
        for _ in range(PAGES_MOST):
            page = await self._reads.runs(principal.tenant, query, after, 0, many.limit - len(ids))
            ids += [run.id for run in page.runs]
            after = page.after
            if after is None or len(ids) >= many.limit:
                break
        return _Found(ids, max(total, len(ids)), encode_token("many runs", *after) if after else "")

    async def _submit_many(
        self,
        principal: Principal,
        ids: Sequence[str],
        command: Callable[[Run, Key | None], Awaitable[Command]],
        key: Key | None,
    ) -> list[tuple[str, str | MillstreamError]]:
        """Have it done to each run; what the queue does not take fails with RATE_LIMITED."""
        known = await self._reads.runs_by_ids(principal.tenant, [*ids])
        outcomes: dict[str, Outcome] = {each: NotFound(f"there is no run {each}") for each in ids}
        commands = [await command(known[each], _own(key, each)) for each in ids if each in known]
        for chunk in _chunks(commands):
            try:
                done = await self._engine.submit_all(chunk)
            except RateLimited as error:
                done = [error] * len(chunk)
            outcomes |= {made.run_id: outcome for made, outcome in zip(chunk, done, strict=True)}
        return [(each, _told(outcomes[each])) for each in ids]

    async def _bereft(self, principal: Principal, found: Run, key: Key | None) -> Command | None:
        """What refuses to retry a cascade of which an artifact is gone that a failed task was given; None where all are
        there."""
        if found.kind is not RunKind.CASCADE or found.status is not RunStatus.FAILED:
            return None
        tasks = [task.id for task in await self._reads.failed_tasks(found.id)]
        if not tasks or not await self._reads.bereft(principal.tenant, tasks):
            return None
        error = Conflict(f"an artifact that a task of run {found.id} was given is gone; publish it again instead")
        return Refuse(run_id=found.id, key=self._claim(principal, key, found.id), locked=True, error=error)

    async def _definition(self, found: Run) -> Definition | None:
        """What a graph run follows; None of other runs, and where it is gone."""
        if found.kind is not RunKind.GRAPH:
            return None
        try:
            return await self._definitions.pinned(found.tenant, found.workflow, found.workflow_version)
        except NotFound:
            return None

    def _retry(self, principal: Principal, run_id: str, note: str, key: Key | None, from_step: str = "") -> RetryRun:
        return RetryRun(
            run_id=run_id, failed_tasks=True, locked=True, key=self._claim(principal, key, run_id),
            tenant=principal.tenant, by=principal.name, note=note, from_step=from_step,
        )  # fmt: skip

    def _claim(self, principal: Principal, key: Key | None, run_id: str) -> Any:
        return claim_of(principal, key, [run_id], self._engine.clock.now_us() + self._key_ttl_us)


def _own(key: Key | None, run_id: str) -> Key | None:
    """The key that a call's key stands for at one of its runs."""
    return Key(f"{key.value}#{run_id}", f"{key.rpc}#", key.fingerprint) if key is not None else None


def _told(outcome: Outcome) -> str | MillstreamError:
    if isinstance(outcome, MillstreamError):
        return outcome
    return "duplicate" if isinstance(outcome, Replayed) else "accepted"


def _chunks(commands: Sequence[Command]) -> Iterator[list[Command]]:
    """The commands, as many together as weigh no more than CHUNK_BYTES."""
    chunk: list[Command] = []
    size = 0
    for each in commands:
        if chunk and size + each.size_bytes > CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
        chunk.append(each)
        size += each.size_bytes
    if chunk:
        yield chunk
