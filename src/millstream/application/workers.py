"""Workers: what they connect with, what they take, what they report."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from millstream.application.code_workflows import CodeWorkflows
from millstream.application.engine.commands import Adopt, Release
from millstream.application.engine.engine import HISTORY_BYTES, Engine, Journal
from millstream.application.engine.ready import DispatchKey
from millstream.application.engine.sessions import Session, held_lease
from millstream.application.ids import new_id
from millstream.application.paging import fitting
from millstream.application.registering import Registering
from millstream.application.reporting import LeaseStore, Reporting
from millstream.application.views.leases import Cancellation, Hello, Lease, LeaseRef, Push
from millstream.application.views.reports import ReportResult, Reports, Streamed
from millstream.domain.code import History, Standing, lead_kind
from millstream.domain.errors import MillstreamError, NotFound, Unavailable, ValidationFailed
from millstream.domain.lifecycle import check_fence
from millstream.domain.principals import Principal
from millstream.domain.runs import UNLEASED, Run, Task
from millstream.domain.workers import TASK_KIND, WORKFLOW_KIND, KindSpec


class RunReads(Protocol):
    """Reads runs and tasks; see store.runs."""

    async def run(self, tenant: str, run_id: str) -> Run | None: ...
    async def task(self, tenant: str, task_id: str) -> Task | None: ...


DEFAULT_VERSION = "1"
"""Of a workflow whose worker names none."""
_log = logging.getLogger(__name__)


class Announcer(Protocol):
    """Tells other servers; see runtime.peers."""

    def registry_moved(self, tenant: str) -> None:
        """Agents or types changed."""

    def interest_changed(self) -> None:
        """What this server's workers serve changed."""


class WorkerSession:
    """A worker's connection.

    Attributes:
        id: Of this connection.
        held: Leases from before a reconnect that are still the worker's.
        lease_s: How long a lease holds without a sign of life, seconds.
    """

    def __init__(
        self, workers: "Workers", principal: Principal, session: Session, held: tuple[LeaseRef, ...], lease_s: float
    ) -> None:
        self.id = session.id
        self.held = held
        self.lease_s = lease_s
        self._workers = workers
        self._principal = principal
        self._session = session

    def heard(self) -> None:
        """The worker said something."""
        self._session.heard_us = self._workers.engine.clock.now_us()

    def add_credit(self, credit: int) -> None:
        """The worker can take more tasks."""
        self._workers.engine.dispatcher.add_credit(self._session, credit)

    async def report(self, reports: Reports) -> list[ReportResult]:
        """Store what the worker reports; what became of it, in the order of the kinds in Reports."""
        self._session.delivered.update(ref.task_id for ref in reports.delivered if ref.task_id in self._session.leases)
        return await self._workers.reporting.report(self._principal, reports, self._session.leases)

    def stream(self, streamed: Sequence[Streamed]) -> None:
        """Pass on what the worker's tasks stream, to who watches their runs."""
        leases = self._session.leases
        for each in streamed:
            lease = leases.get(each.task_id)
            if lease is not None and lease.attempt == each.attempt:
                self._workers.streaming(self._principal.tenant, lease.run_id, each)

    def drain(self) -> None:
        """Send no more tasks."""
        self._session.draining = True
        self._workers.changed()

    async def close(self) -> None:
        """The worker went: its leases end soon, unless it comes back."""
        await self._workers.close(self._session)


class Workers:
    """The use cases of workers.

    Attributes:
        streaming: Passes on what a task of a tenant's run streams.

    Args:
        grace_us: How long a worker that went may take to come back, microseconds.
    """

    def __init__(
        self,
        engine: Engine,
        registering: Registering,
        reporting: Reporting,
        leases: LeaseStore,
        tasks: RunReads,
        announcer: Announcer,
        workflows: CodeWorkflows,
        journal: Journal,
        grace_us: int,
    ) -> None:
        self.streaming: Callable[[str, str, Streamed], None] = lambda tenant, run_id, streamed: None
        self.engine = engine
        self._workflows = workflows
        self._journal = journal
        self.reporting = reporting
        self._registering = registering
        self._leases = leases
        self._tasks = tasks
        self._announcer = announcer
        self._grace_us = grace_us
        self._endings: set[asyncio.Future[None]] = set()
        self._draining = False

    async def open(self, principal: Principal, hello: Hello, push: Push) -> WorkerSession:
        """Connect a worker: register its types and agents, take over what it holds, then offer it work.

        Raises ValidationFailed, NotFound, Conflict, Unavailable.
        """
        if self._draining:
            raise Unavailable("the server is going; connect again", retry_after_s=0.5)
        _check_queues(hello.queues)
        if hello.types or hello.agents:
            principal.require("agents.write")
            if await self._registering.register(principal, hello.types, hello.agents):
                self._announcer.registry_moved(principal.tenant)
        served = _served(hello)
        workflows = _workflows(hello)
        if workflows:
            await self._workflows.register(principal.tenant, workflows, self.engine.clock.now_us())
        kept = await self._adopt(principal, hello)
        now_us = self.engine.clock.now_us()
        session = Session(
            new_id(), principal.tenant, hello.worker_id, hello.name, _keys(principal.tenant, hello), push,
            credit=hello.slots - len(kept), connected_us=now_us, served=served, queues=hello.queues, slots=hello.slots,
            heard_us=now_us, noted=(now_us, len(kept)),
        )  # fmt: skip
        session.leases |= {task.id: held_lease(task) for task in kept}
        session.delivered.update(session.leases)
        self.engine.connect(session)
        self._announcer.interest_changed()
        cancelled = [Cancellation(task.id, task.attempt, "CANCELLED") for task in kept if task.cancelling]
        if cancelled:
            # Asked for while the worker was away.
            push([], cancelled, False)
        held = tuple(LeaseRef(task.id, task.attempt) for task in kept)
        return WorkerSession(self, principal, session, held, self.engine.limits.lease_us / 1e6)

    def changed(self) -> None:
        """What a worker takes changed."""
        self._announcer.interest_changed()

    async def _adopt(self, principal: Principal, hello: Hello) -> list[Task]:
        """The tasks that the worker still holds, now with this server as their owner."""
        held = {ref.task_id: ref.attempt for ref in hello.held}
        task_ids = sorted({*held, *await self._leases.of_worker(hello.worker_id)})
        if not task_ids:
            return []
        command = Adopt(task_ids=task_ids, locked=True, tenant=principal.tenant, worker_id=hello.worker_id, held=held)
        kept: dict[str, Task] = await self.engine.submit(command, urgent=True)
        return [*kept.values()]

    async def close(self, session: Session) -> None:
        """A worker's connection ended."""
        self.engine.disconnect(session)
        self._announcer.interest_changed()
        if session.leases and session.renewed:
            until_us = self.engine.clock.now_us() + self._grace_us
            delivered = [task_id for task_id in session.delivered if task_id in session.leases]
            # By the very end that brought it here the caller is cancelled too, mostly a moment later.
            ending = asyncio.ensure_future(self._shorten([*session.leases], until_us, delivered))
            self._endings.add(ending)
            ending.add_done_callback(self._endings.discard)
            await asyncio.shield(ending)

    async def _shorten(self, task_ids: list[str], until_us: int, delivered: list[str]) -> None:
        try:
            await self._leases.shorten(self.engine.lane_id, task_ids, until_us, delivered)
        except MillstreamError as error:
            _log.warning("leases of a worker that went stay until they run out: %s", error.message)

    async def poll(
        self,
        principal: Principal,
        worker_id: str,
        name: str,
        kinds: Sequence[str],
        queues: Sequence[str],
        max_tasks: int,
        wait_s: float,
    ) -> list[Lease]:
        """Lease up to max_tasks tasks, as many as one answer holds, waiting for the first. The worker renews them
        itself, by heartbeats."""
        if self._draining:
            raise Unavailable("the server is going; connect again", retry_after_s=0.5)
        found: list[Lease] = []
        arrived = asyncio.Event()

        def push(leases: list[Lease], cancellations: list[Cancellation], drain: bool) -> None:
            found.extend(leases)
            if leases or drain:
                arrived.set()

        _check_queues(queues)
        keys = tuple((principal.tenant, queue, kind) for queue in queues or ("default",) for kind in kinds)
        session = Session(new_id(), principal.tenant, worker_id, name, keys, push, max_tasks, renewed=False)
        self.engine.connect(session)
        self._announcer.interest_changed()
        try:
            async with asyncio.timeout(wait_s):
                await arrived.wait()
        except TimeoutError:
            pass
        finally:
            session.draining = True
            self.engine.disconnect(session)
        # What was leased in the batch under way belongs to this answer too, so it is not lost with the session.
        fit = fitting(found, max_tasks, lambda lease: lease.size_bytes)
        if too_many := found[len(fit) :]:
            await self.engine.submit_all(
                [
                    Release(task_ids=(lease.task.id,), tenant=principal.tenant, attempt=lease.attempt)
                    for lease in too_many
                ],
                urgent=True,
            )
        return fit

    async def report(self, principal: Principal, reports: Reports) -> list[ReportResult]:
        """Store what a worker without a connection reports."""
        return await self.reporting.report(principal, reports, {})

    async def history(self, principal: Principal, ref: LeaseRef, after: int, number: int) -> History:
        """A page of the history of a run whose activation the caller holds. Raises NotFound, LeaseLost."""
        lead = self.engine.cache.task(ref.task_id) or await self._tasks.task(principal.tenant, ref.task_id)
        run = await self._tasks.run(principal.tenant, ref.task_id)
        if lead is None or run is None or lead.tenant != principal.tenant or not lead.leads:
            raise NotFound(f"there is no run {ref.task_id} whose code could be run")
        check_fence(lead, ref.attempt)
        standing = Standing.of(run.plan)
        start = (standing.since - 1, standing.first)
        return await self._journal.history(
            run.day, run.id, *max(start, (after, number)), standing.last, standing.first, HISTORY_BYTES
        )

    def drain(self) -> None:
        """Tell all workers that the server goes."""
        self._draining = True
        for session in list(self.engine.dispatcher.sessions.values()):
            session.draining = True
            session.push([], [], True)
        self.changed()


def _served(hello: Hello) -> tuple[KindSpec, ...]:
    """What a worker says of its kinds, by a bare name where it says nothing. Raises ValidationFailed."""
    known: dict[tuple[int, str, str], KindSpec] = {}
    for index, spec in enumerate(hello.specs):
        task = spec.category == TASK_KIND
        if task and spec.name not in hello.kinds:
            raise ValidationFailed.of(
                f"hello.kind_specs[{index}].kind", f"{spec.name!r} is not among hello.kinds; name it there too"
            )
        # Of tasks a worker runs one version: nothing would say which of two a task is for.
        key = (spec.category, spec.name, "" if task else spec.version)
        if key in known:
            raise ValidationFailed.of(f"hello.kind_specs[{index}]", f"{spec.name!r} is described twice", "DUPLICATE")
        known[key] = spec
    bare = {(TASK_KIND, name, ""): KindSpec(name) for name in hello.kinds}
    return tuple((bare | known).values())


def _workflows(hello: Hello) -> list[KindSpec]:
    """The code-first workflows that a worker has the code of, each version by itself."""
    found = [spec for spec in hello.specs if spec.category == WORKFLOW_KIND]
    return [replace(spec, version=spec.version or DEFAULT_VERSION) for spec in found]


def _check_queues(queues: Sequence[str]) -> None:
    """Raise ValidationFailed on a queue whose tasks no worker is given."""
    for index, queue in enumerate(queues):
        if queue.startswith(UNLEASED):
            raise ValidationFailed.of(f"queues[{index}]", f'queues that begin with "{UNLEASED}" are the server\'s')


def _keys(tenant: str, hello: Hello) -> tuple[DispatchKey, ...]:
    """What a worker serves: its kinds in its queues, and its agents in theirs and in those that it names, because an
    agent that moved to another queue has tasks left in the one before."""
    queues = hello.queues or ("default",)
    keys = {(tenant, queue, kind) for queue in queues for kind in hello.kinds}
    keys |= {(tenant, queue, f"agent:{agent.name}") for queue in hello.queues for agent in hello.agents}
    keys |= {(tenant, agent.queue or "default", f"agent:{agent.name}") for agent in hello.agents}
    keys |= {(tenant, queue, lead_kind(each.name, each.version)) for queue in queues for each in _workflows(hello)}
    return tuple(sorted(keys))
