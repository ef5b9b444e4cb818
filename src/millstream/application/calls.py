"""One call of an agent, from its lease to the report that ends it."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from millstream.application.call_ports import Answer, Call, Caller, CallFailed, Given, Made
from millstream.application.engine.clock import Clock
from millstream.application.engine.sessions import HeldLease
from millstream.application.referring import Referring
from millstream.application.reporting import Reporting
from millstream.application.views.leases import Lease, LeaseRef
from millstream.application.views.reports import AttemptFailure, Completion, Progress, Reports
from millstream.domain.agents import Agent
from millstream.domain.artifacts import Artifact, NewArtifact
from millstream.domain.errors import MillstreamError, RateLimited, Unavailable
from millstream.domain.payload_rules import payload_fault
from millstream.domain.principals import Principal, permissions_of
from millstream.domain.struct_wire import Json, decode_value, encode_struct, encode_value
from millstream.domain.tracing import below

T = TypeVar("T", Json, dict[str, Json])

log = logging.getLogger(__name__)

CANCELLED: Final = "CANCELLED"
LEASE_LOST: Final = "LEASE_LOST"
DRAINED: Final = "DRAINED"
GIVEN_MOST_BYTES: Final = 16 * 1024 * 1024
"""JSON that is kept outside is sent along up to this size, as a worker's is."""
CODE_MOST: Final = 128
MESSAGE_MOST: Final = 4000
SIGNS_S: Final = 1.0
"""Signs of life are stored once in so long at most."""
SIGNS_PART: Final = 4
"""So many in the time within which one is due."""
REPORT_S: Final = 60.0
"""How long a result waits for a database that is away; then the lease is left to run out."""
RETRY_S: Final = 0.5


@dataclass(slots=True, eq=False)
class Running:
    """A call that is under way.

    Attributes:
        reason: Why it is to end before it has, or "".
        calling: The agent is being called; before and after, a stop is only noted.
    """

    lease: Lease
    task: "asyncio.Task[None] | None" = None
    reason: str = ""
    calling: bool = False

    def stop(self, reason: str) -> None:
        """End it."""
        if not self.reason:
            self.reason = reason
            if self.calling and self.task is not None:
                self.task.cancel()


class Calls:
    """Calls agents and reports what came of it, as a worker does.

    Args:
        payload_most: Largest payload of an artifact that an agent makes, bytes.
    """

    def __init__(
        self, caller: Caller, reporting: Reporting, referring: Referring, clock: Clock, payload_most: int
    ) -> None:
        self._caller = caller
        self._reporting = reporting
        self._referring = referring
        self._clock = clock
        self._payload_most = payload_most

    async def close(self) -> None:
        """End the connections to agents."""
        await self._caller.close()

    async def work(self, agent: Agent, running: Running, held: Mapping[str, HeldLease]) -> None:
        """Call an agent and report. Raises MillstreamError where it could not be reported."""
        principal = _principal(agent)
        watch = _Watch(running, self._reporting, principal, held)
        running.calling = not running.reason
        try:
            reports = await self._called(agent, running, watch) if running.calling else None
        except asyncio.CancelledError:
            if not running.reason:
                raise
            reports = None
        finally:
            running.calling = False
            watch.end()
        if running.reason and reports is None:
            reports = _stopped(running)
        if reports is not None:
            await self._report(principal, reports, held)

    async def _called(self, agent: Agent, running: Running, watch: "_Watch") -> Reports | None:
        """What is to be reported; None where the time was over: the reaper tells so."""
        lease = running.lease
        deadline_us = lease.task.deadline_us
        left_s = (deadline_us - self._clock.now_us()) / 1e6 if deadline_us else None
        limit = asyncio.timeout(left_s)
        try:
            async with limit:
                answer = await self._caller.call(await self._call(agent, lease), watch)
            # Apart, as it takes 50 ms a megabyte.
            completion = await asyncio.to_thread(self._completion, lease, answer)
            return Reports(completions=(completion,))
        except TimeoutError:
            if limit.expired():
                return None
            log.exception("the call of an agent failed")
            return _failed(lease, CallFailed("INTERNAL", "the call failed by a fault of the server"))
        except CallFailed as failure:
            return _failed(lease, failure)
        except MillstreamError as error:
            return _failed(lease, CallFailed(error.code, f"the task's payloads did not come: {error.message}", True))
        except Exception:
            log.exception("the call of an agent failed")
            return _failed(lease, CallFailed("INTERNAL", "the call failed by a fault of the server"))

    async def _call(self, agent: Agent, lease: Lease) -> Call:
        task, spec = lease.task, agent.spec
        given = [await self._given(artifact) for artifact in lease.artifacts]
        value = await asyncio.to_thread(decode_value, task.input) if task.input else None
        return Call(
            agent.tenant, spec.protocol, spec.url, spec.name, spec.outputs, task.id, lease.attempt, lease.tries,
            task.run_id, tuple(given), value, task.timeouts.heartbeat_us / 1e6 / SIGNS_PART,
            below(task.trace, task.id, lease.attempt),
        )  # fmt: skip

    async def _given(self, artifact: Artifact) -> Given:
        payload = await self._referring.object_of(artifact, GIVEN_MOST_BYTES)
        ref = f"sha256:{artifact.payload_digest.hex()}" if artifact.payload_digest else ""
        return Given(
            artifact.id, artifact.type, artifact.produced_by, artifact.tags, artifact.partition_key, payload, ref
        )

    def _completion(self, lease: Lease, answer: Answer) -> Completion:
        """Raises CallFailed where the answer cannot be stored."""
        task = lease.task
        completion = Completion(task.id, lease.attempt)
        if answer.output is not None:
            completion.output = self._encoded("output", answer.output, encode_value)
        if task.agent:
            # A task that nobody published for has no cascade to publish into: its output says all.
            completion.artifacts = [self._made(index, each) for index, each in enumerate(answer.made)]
        return completion

    def _made(self, index: int, made: Made) -> NewArtifact:
        payload = self._encoded(f"artifacts[{index}].payload", made.payload, encode_struct)
        return NewArtifact(made.type, payload, tags=made.tags, partition_key=made.partition_key)

    def _encoded(self, where: str, value: T, encode: Callable[[T], bytes]) -> bytes:
        if fault := payload_fault(value):
            raise CallFailed("INVALID_OUTPUT", f"{where} {fault}", retryable=False)
        try:
            found = encode(value)
        except ValueError as error:
            raise CallFailed("INVALID_OUTPUT", f"{where}: {error}", retryable=False) from None
        if len(found) > self._payload_most:
            text = f"{where} has {len(found):,} bytes; at most {self._payload_most:,} are taken"
            raise CallFailed("PAYLOAD_TOO_LARGE", text, retryable=False)
        return found

    async def _report(self, principal: Principal, reports: Reports, held: Mapping[str, HeldLease]) -> None:
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + REPORT_S
        while True:
            try:
                results = await self._reporting.report(principal, reports, held)
                error = results[0].error if results else None
                if not isinstance(error, RateLimited | Unavailable):
                    return
            except (RateLimited, Unavailable) as raised:
                error = raised
            if loop.time() > give_up_at:
                raise error
            await asyncio.sleep(error.retry_after_s or RETRY_S)


class _Watch:
    """Stores the signs of life of one call, not more often than is of use."""

    def __init__(
        self, running: Running, reporting: Reporting, principal: Principal, held: Mapping[str, HeldLease]
    ) -> None:
        self._running = running
        self._reporting = reporting
        self._principal = principal
        self._held = held
        task = running.lease.task
        self._beats = task.timeouts.heartbeat_us > 0
        self._every_s = min(SIGNS_S, task.timeouts.heartbeat_us / 1e6 / SIGNS_PART or SIGNS_S)
        self._progress: Progress | None = None
        self._fraction = 0.0
        self._telling: asyncio.Task[None] | None = None
        self._again = False

    @property
    def lost(self) -> bool:
        """The task is another server's by now."""
        return self._running.reason == LEASE_LOST

    def seen(self, message: str = "", fraction: float | None = None) -> None:
        """The agent gave a sign of life."""
        lease = self._running.lease
        if fraction is not None:
            self._fraction = min(1.0, max(0.0, fraction))
        if message or fraction is not None:
            text = message.replace("\0", "\ufffd")[:MESSAGE_MOST]
            self._progress = Progress(lease.task.id, lease.attempt, self._fraction, text)
        if self._progress is None and not self._beats:
            return
        self._again = True
        if self._telling is None or self._telling.done():
            self._telling = asyncio.get_running_loop().create_task(self._tell(), name="signs of an agent")

    def end(self) -> None:
        """No more are of use."""
        if self._telling is not None:
            self._telling.cancel()

    async def _tell(self) -> None:
        lease = self._running.lease
        while self._again:
            self._again = False
            progress, self._progress = self._progress, None
            beats = (LeaseRef(lease.task.id, lease.attempt),) if self._beats else ()
            try:
                reports = Reports(progress=(progress,) if progress else (), heartbeats=beats)
                await self._reporting.report(self._principal, reports, self._held)
            except Exception as error:
                log.warning("a sign of life could not be stored: %s", error)
            await asyncio.sleep(self._every_s)


def _principal(agent: Agent) -> Principal:
    """Whom an agent's artifacts come from, as from its worker."""
    return Principal(f"agent:{agent.spec.name}", agent.tenant, permissions_of(["worker"]), agent.spec.name)


def _failed(lease: Lease, failure: CallFailed) -> Reports:
    after_us = int((failure.retry_after_s or 0.0) * 1e6)
    message = failure.message.encode("utf-8", "replace").decode().replace("\0", "\ufffd")
    code = failure.code.replace("\0", "\ufffd")[:CODE_MOST] or "ERROR"
    found = AttemptFailure(lease.task.id, lease.attempt, code, message[:MESSAGE_MOST], failure.retryable, after_us)
    return Reports(failures=(found,))


def _stopped(running: Running) -> Reports | None:
    """What is to be reported of a call that was ended before it had; None for nothing."""
    lease = running.lease
    match running.reason:
        case "CANCELLED":
            return _failed(lease, CallFailed(CANCELLED, "cancelled", retryable=False))
        case "DRAINED":
            return Reports(released=(LeaseRef(lease.task.id, lease.attempt),))
        case _:
            return None
