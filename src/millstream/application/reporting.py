"""What workers report on their leases: results, failures, progress, signs of life."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Protocol

from millstream.application.advancing import Advancing, Followed, promising
from millstream.application.answering import Answering, answer_ahead
from millstream.application.catalog import Catalog, Catalogs
from millstream.application.engine.commands import Command, Complete, Fail, Release
from millstream.application.engine.engine import Engine
from millstream.application.engine.queue import Outcome
from millstream.application.engine.sessions import HeldLease, held_lease
from millstream.application.ids import new_id
from millstream.application.progress import ProgressNotes
from millstream.application.publishing import ids_for
from millstream.application.referring import Referring, referred
from millstream.application.rounds import Made, in_rounds
from millstream.application.views.leases import LeaseRef
from millstream.application.views.reports import AttemptFailure, Completion, Progress, ReportResult, Reports
from millstream.domain.errors import Conflict, Forbidden, LeaseLost, MillstreamError, NotFound, Unavailable
from millstream.domain.principals import Principal
from millstream.domain.publication import Produce
from millstream.domain.runs import Task


class LeaseStore(Protocol):
    """What leases need beside the committer; see store.maintenance."""

    async def of_worker(self, worker_id: str) -> list[str]: ...
    async def shorten(self, lane: str, task_ids: Sequence[str], until_us: int, delivered: Sequence[str]) -> None: ...
    async def beat(
        self, beats: Sequence[tuple[str, int, int]], now_us: int, until_us: int
    ) -> dict[tuple[str, int], bool]: ...
    async def progress(self, reports: Sequence[tuple[str, int, float, str]]) -> None: ...


class TaskReads(Protocol):
    """Reads tasks; see store.runs."""

    async def task(self, tenant: str, task_id: str) -> Task | None: ...


Held = Mapping[str, HeldLease]


class Reporting:
    """Stores workers' reports; a whole message is one group of commands."""

    def __init__(
        self,
        engine: Engine,
        catalogs: Catalogs,
        referring: Referring,
        leases: LeaseStore,
        tasks: TaskReads,
        advancing: Advancing,
        notes: ProgressNotes,
    ) -> None:
        self._engine = engine
        self._notes = notes
        self._advancing = advancing
        self._catalogs = catalogs
        self._referring = referring
        self._leases = leases
        self._tasks = tasks
        self._answering = Answering(engine, catalogs, referring)

    async def _held(self, tenant: str, task_id: str) -> HeldLease:
        """What is known of a lease, from the cache or the store. Raises NotFound."""
        task = self._engine.cache.task(task_id) or await self._tasks.task(tenant, task_id)
        if task is None or task.tenant != tenant:
            raise NotFound(f"there is no task {task_id}")
        return held_lease(task)

    async def report(self, principal: Principal, reports: Reports, held: Held) -> list[ReportResult]:
        """Store a worker's reports; results for completions, failures, progress, heartbeats and releases, in this
        order."""
        results: list[ReportResult] = []
        if reports.completions and reports.answers:
            # Together, so that they are stored together.
            completed, answered = await asyncio.gather(
                self._complete(principal, reports.completions, held), self._answering.answer(principal, reports.answers)
            )
            results += [*completed, *answered]
        elif reports.completions:
            results += await self._complete(principal, reports.completions, held)
        elif reports.answers:
            results += await self._answering.answer(principal, reports.answers)
        if reports.failures or reports.released:
            results += await self._give_back(principal, reports.failures, reports.released)
        if reports.progress or reports.heartbeats:
            results += await self._beat(principal, reports, held)
        return results

    async def _complete(
        self, principal: Principal, completions: Sequence[Completion], held: Held
    ) -> list[ReportResult]:
        followed: list[Followed | None] = []

        async def make(completion: Completion) -> Made:
            follows = await self._followed(completion)
            followed.append(follows)
            return await self._completion(principal, completion, held, follows)

        async def submit(commands: Sequence[Command]) -> Sequence[Outcome]:
            outcomes = await self._engine.submit_all(commands, urgent=True)
            for follows, outcome in zip(followed, outcomes, strict=True):
                if follows is not None and outcome is True:
                    self._advancing.completed(follows)
            followed.clear()
            return outcomes

        errors = await in_rounds(self._catalogs, principal.tenant, completions, make, submit)
        return [
            ReportResult(completion.task_id, completion.attempt, error)
            for completion, error in zip(completions, errors, strict=True)
        ]

    async def _followed(self, completion: Completion) -> Followed | None:
        """What the end of a workflow's step is followed by, where that is known here."""
        if completion.artifacts or completion.fault is not None:
            return None
        return await self._advancing.follow(completion.task_id, completion.output)

    async def _completion(
        self, principal: Principal, completion: Completion, held: Held, followed: Followed | None
    ) -> tuple[Command, MillstreamError | None]:
        """The command for a completion. One that publishes what it may not is stored as a final failure, so that the
        task does not hang, and the worker is told why."""
        size = 300 + len(completion.output) + sum(300 + len(item.payload) for item in completion.artifacts)
        command = Complete(
            task_ids=(completion.task_id,), size_bytes=size, tenant=principal.tenant, attempt=completion.attempt,
            output=completion.output,
        )  # fmt: skip
        if completion.fault is not None:
            return _invalid(principal, completion, completion.fault), completion.fault
        if not completion.artifacts:
            if followed is not None:
                command.follow = followed.advance
                promising(command, principal.tenant, command.follow)
            if completion.ahead is not None:
                answer_ahead(command, completion.ahead)
            return command, None
        try:
            lease = held.get(completion.task_id) or await self._held(principal.tenant, completion.task_id)
            command.produced, version = await self._examined(principal, completion, lease.agent)
            command.registry = (principal.tenant, version)
            command.payloads = referred(principal.tenant, [each.new for each in command.produced])
            command.gated = any(each.gated for each in command.produced)
            command.locked = any(each.tenant_wide for each in command.produced)
        except MillstreamError as error:
            if isinstance(error, Unavailable):
                raise
            return _invalid(principal, completion, error), error
        return command, None

    async def _examined(self, principal: Principal, completion: Completion, agent: str) -> tuple[list[Produce], int]:
        if not agent:
            raise Conflict("a standalone task cannot publish artifacts; give its result as its output")
        catalog = await self._catalogs.get(principal.tenant)
        try:
            return await _examine(self._referring, principal, catalog, completion, agent)
        except MillstreamError:
            # Another server may have changed the types or the agent since: only the present registry refuses.
            fresh = await self._catalogs.get(principal.tenant, fresh=True)
            if fresh is catalog:
                raise
            return await _examine(self._referring, principal, fresh, completion, agent)

    async def _give_back(
        self, principal: Principal, failures: Sequence[AttemptFailure], released: Sequence[LeaseRef]
    ) -> list[ReportResult]:
        commands: list[Command] = [
            Fail(
                task_ids=(item.task_id,), tenant=principal.tenant, attempt=item.attempt, code=item.code or "ERROR",
                message=item.message, retryable=item.retryable, retry_after_us=item.retry_after_us,
            )
            for item in failures
        ]  # fmt: skip
        commands += [Release(task_ids=(ref.task_id,), tenant=principal.tenant, attempt=ref.attempt) for ref in released]
        refs: list[AttemptFailure | LeaseRef] = [*failures, *released]
        outcomes = await self._engine.submit_all(commands, urgent=True)
        return [
            ReportResult(ref.task_id, ref.attempt, outcome if isinstance(outcome, MillstreamError) else None)
            for ref, outcome in zip(refs, outcomes, strict=True)
        ]

    async def _beat(self, principal: Principal, reports: Reports, held: Held) -> list[ReportResult]:
        beats: list[tuple[str, int, int]] = []
        errors: list[MillstreamError | None] = []
        refs: list[Progress | LeaseRef] = [*reports.progress, *reports.heartbeats]
        for ref in refs:
            try:
                lease = held.get(ref.task_id) or await self._held(principal.tenant, ref.task_id)
            except NotFound as error:
                errors.append(error)
                continue
            beats.append((ref.task_id, ref.attempt, lease.heartbeat_us))
            errors.append(None)
        now_us = self._engine.clock.now_us()
        until_us = now_us + self._engine.limits.lease_us
        alive = await self._leases.beat(sorted(set(beats)), now_us, until_us) if beats else {}
        if reports.progress and alive:
            await self._leases.progress(
                [(item.task_id, item.attempt, item.fraction, item.message) for item in reports.progress]
            )
            running = [item for item in reports.progress if (item.task_id, item.attempt) in alive]
            self._notes.note(principal.tenant, running)
        results: list[ReportResult] = []
        for ref, known in zip(refs, errors, strict=True):
            asked = alive.get((ref.task_id, ref.attempt))
            lost = LeaseLost(f"attempt {ref.attempt} of task {ref.task_id} is over") if asked is None else None
            results.append(ReportResult(ref.task_id, ref.attempt, known or lost, bool(asked)))
        return results


def _invalid(principal: Principal, completion: Completion, error: MillstreamError) -> Fail:
    """The final failure of a task whose result cannot be stored."""
    return Fail(
        task_ids=(completion.task_id,), tenant=principal.tenant, attempt=completion.attempt, code="INVALID_OUTPUT",
        message=error.message, retryable=False,
    )  # fmt: skip


async def _examine(
    referring: Referring, principal: Principal, catalog: Catalog, completion: Completion, agent: str
) -> tuple[list[Produce], int]:
    """Check and match what a task publishes; with the version of the registry. Raises what refuses it."""
    known = catalog.agents.get(agent)
    produced, lease = [], LeaseRef(completion.task_id, completion.attempt)
    for index, item in enumerate(completion.artifacts):
        if known is not None and known.spec.outputs and item.type not in known.spec.outputs:
            raise Forbidden(f"agent {agent!r} publishes {', '.join(known.spec.outputs)}, not {item.type}")
        version, activations, new = await referring.examine(
            principal, catalog, item, agent, f"artifacts[{index}].", lease
        )
        produced.append(Produce(new, new_id(), version, activations, ids_for(activations)))
    return produced, catalog.version
