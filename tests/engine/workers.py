"""A worker in the test's own process: speaks to a server as a connection does, at the pace that the test wants."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from types import TracebackType
from typing import Any, Self

from tests.engine.servers import PATIENCE_S, introduced
from tests.engine.world import CHAIN, CHAIN_AGENTS, ROOT, types

from millstream.application.ids import new_id
from millstream.application.views.leases import Cancellation, Hello, Lease, LeaseRef
from millstream.application.views.reports import AttemptFailure, Completion, Progress, ReportResult, Reports
from millstream.application.views.types import TypeSpec
from millstream.application.workers import WorkerSession
from millstream.domain.agents import AgentSpec
from millstream.domain.artifacts import NewArtifact
from millstream.domain.principals import Principal
from millstream.wiring import Service

Handler = Callable[[Lease], Completion | AttemptFailure | None]
"""What an automatic worker answers to a lease; None leaves it open."""


def done(lease: Lease, *artifacts: NewArtifact, output: bytes = b"") -> Completion:
    """The completion of a lease."""
    return Completion(lease.task.id, lease.attempt, output, list(artifacts))


def failed(lease: Lease, code: str = "BROKEN", **fields: Any) -> AttemptFailure:
    """The failure of a lease."""
    return AttemptFailure(lease.task.id, lease.attempt, code, f"{code} it is", **fields)


def ref(lease: Lease) -> LeaseRef:
    """A lease by its fence."""
    return LeaseRef(lease.task.id, lease.attempt)


class Worker:
    """A worker. With a handler it answers by itself; without, the test takes leases and answers them.

    Attributes:
        leases: What was pushed and not taken.
        cancellations: What it was told to give up.
        seen: All leases ever pushed, in order.
    """

    def __init__(
        self,
        service: Service,
        *,
        kinds: Sequence[str] = (),
        agents: Sequence[AgentSpec] = (),
        known: Sequence[TypeSpec] = (),
        queues: Sequence[str] = (),
        slots: int = 100,
        handler: Handler | None = None,
        held: Sequence[LeaseRef] = (),
        worker_id: str = "",
        who: Principal = ROOT,
    ) -> None:
        self.service = service
        self.id = worker_id or new_id()
        self.leases: asyncio.Queue[Lease] = asyncio.Queue()
        self.cancellations: asyncio.Queue[Cancellation] = asyncio.Queue()
        self.seen: list[Lease] = []
        self.drained = asyncio.Event()
        self._who = who
        self._hello = Hello(
            self.id,
            f"worker-{self.id[-4:]}",
            tuple(kinds),
            tuple(queues),
            tuple(agents),
            tuple(known),
            tuple(held),
            slots,
        )
        self._handler = handler
        self._session: WorkerSession | None = None
        self._answers: set[asyncio.Task[None]] = set()

    @property
    def session(self) -> WorkerSession:
        """The connection."""
        assert self._session is not None
        return self._session

    async def open(self) -> Self:
        """Connect."""
        self._session = await self.service.workers.open(self._who, self._hello, self._push)
        await introduced(self.service)
        return self

    async def close(self) -> None:
        """Go away; whatever is unfinished stays so."""
        for answer in self._answers:
            answer.cancel()
        await asyncio.gather(*self._answers, return_exceptions=True)
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _push(self, leases: list[Lease], cancellations: list[Cancellation], drain: bool) -> None:
        self.seen += leases
        for cancellation in cancellations:
            self.cancellations.put_nowait(cancellation)
        if drain:
            self.drained.set()
        if self._handler is None:
            for lease in leases:
                self.leases.put_nowait(lease)
        elif leases:
            answer = asyncio.get_running_loop().create_task(self._answer(leases, self._handler))
            self._answers.add(answer)
            answer.add_done_callback(self._answers.discard)

    async def _answer(self, leases: list[Lease], handler: Handler) -> None:
        answers = [handler(lease) for lease in leases]
        completions = tuple(answer for answer in answers if isinstance(answer, Completion))
        failures = tuple(answer for answer in answers if isinstance(answer, AttemptFailure))
        await self.report(completions=completions, failures=failures, delivered=tuple(map(ref, leases)))

    async def report(self, **reports: Any) -> list[ReportResult]:
        """Report, and take as many tasks more as ended."""
        found = Reports(**reports)
        results = await self.session.report(found)
        ended = len(found.completions) + len(found.failures) + len(found.released)
        if ended:
            self.session.add_credit(ended)
        return results

    async def take(self, wait_s: float = PATIENCE_S) -> Lease:
        """The next lease."""
        async with asyncio.timeout(wait_s):
            return await self.leases.get()

    async def take_many(self, count: int) -> list[Lease]:
        """So many leases, in the order they came."""
        return [await self.take() for _ in range(count)]

    async def told(self) -> Cancellation:
        """The next cancellation."""
        async with asyncio.timeout(PATIENCE_S):
            return await self.cancellations.get()

    async def ack(self, *leases: Lease) -> None:
        """Acknowledge the delivery."""
        await self.report(delivered=tuple(map(ref, leases)))

    async def complete(self, lease: Lease, *artifacts: NewArtifact, output: bytes = b"") -> ReportResult:
        """Complete a lease."""
        return (await self.report(completions=(done(lease, *artifacts, output=output),)))[0]

    async def fail(self, lease: Lease, code: str = "BROKEN", **fields: Any) -> ReportResult:
        """Fail a lease."""
        return (await self.report(failures=(failed(lease, code, **fields),)))[0]

    async def release(self, lease: Lease) -> ReportResult:
        """Give a lease back unstarted."""
        return (await self.report(released=(ref(lease),)))[0]

    async def beat(self, lease: Lease) -> ReportResult:
        """A sign of life."""
        return (await self.report(heartbeats=(ref(lease),)))[0]

    async def progress(self, lease: Lease, fraction: float, message: str = "") -> ReportResult:
        """Report progress."""
        return (await self.report(progress=(Progress(lease.task.id, lease.attempt, fraction, message),)))[0]


def publishing(outputs: dict[str, str]) -> Handler:
    """A handler whose agents publish one artifact each, by agent: its type's name."""

    def handle(lease: Lease) -> Completion:
        type_name = outputs.get(lease.task.agent, "")
        return done(lease, *([NewArtifact(type_name)] if type_name else []))

    return handle


CHAIN_HANDLER = publishing({spec.name: spec.outputs[0] for spec in CHAIN_AGENTS})


@contextlib.asynccontextmanager
async def chain_worker(service: Service, **fields: Any) -> AsyncIterator[Worker]:
    """A worker that does the example's cascade."""
    given: dict[str, Any] = {"handler": CHAIN_HANDLER, "agents": CHAIN_AGENTS, "known": types(*CHAIN)} | fields
    async with Worker(service, **given) as worker:
        yield worker
