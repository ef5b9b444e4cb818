"""What a worker holds: the tasks that run and those that wait for a free slot."""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Final

from millstream.sdk.activations import ActivationExecution, LiveRuns
from millstream.sdk.context import Context
from millstream.sdk.execution import Execution, Threads, unknown_kind
from millstream.sdk.handlers import Handler, WorkflowHandler
from millstream.sdk.outbox import Fence, Outbox, Report
from millstream.sdk.payloads import Payloads
from millstream.v1 import worker_pb2

_LOG: Final = logging.getLogger("millstream.worker")


class Slots:
    """Runs leased tasks, at most `slots` at a time, and puts their reports into the outbox."""

    def __init__(
        self,
        slots: int,
        handlers: Mapping[str, Handler],
        outbox: Outbox,
        threads: Threads,
        payloads: Payloads,
        live: LiveRuns,
        cancel_grace_s: float,
    ) -> None:
        """`cancel_grace_s`: how long a handler that watches for its cancellation has to stop by itself."""
        self._slots = slots
        self._handlers = handlers
        self._outbox = outbox
        self._threads = threads
        self._payloads = payloads
        self._live = live
        self._cancel_grace_s = cancel_grace_s
        self._held: dict[Fence, Execution] = {}
        self._running = 0
        self._waiting: deque[Execution] = deque()
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._idle = asyncio.Event()
        self._idle.set()

    # -- leases -----------------------------------------------------------------------------------------------

    def accept(self, leases: Iterable[worker_pb2.Lease]) -> None:
        """Starts tasks that arrived, and acknowledges their delivery; gives them back where the worker stops."""
        arrived = []
        for lease in leases:
            fence = Fence(lease.task_id, lease.attempt)
            if self._closed:
                self._outbox.release((fence,))
            else:
                arrived.append(fence)
                if fence not in self._held and not self._outbox.reported(fence):
                    self._begin(lease, fence)
        if arrived:
            # After the tasks were made: their first steps run before the writer does, and what ends at once
            # goes into the same message.
            self._outbox.delivered(arrived)

    def _begin(self, lease: worker_pb2.Lease, fence: Fence) -> None:
        handler = self._handlers.get(lease.kind)
        if handler is None:
            self._outbox.report(unknown_kind(lease, fence), credit=1)
            return
        context = Context(lease, fence, self._outbox, self._payloads, self._loop, self._thread)
        if isinstance(handler, WorkflowHandler):
            execution: Execution = ActivationExecution(lease, fence, handler, context)
            execution.live = self._live  # type: ignore[attr-defined]
            self._live.expect(lease.run_id)
        else:
            execution = Execution(lease, fence, handler, context)
            execution.ahead = self._live.go_ahead if lease.step else None
        self._held[fence] = execution
        self._idle.clear()
        if lease.HasField("heartbeat_timeout"):
            every_s = (lease.heartbeat_timeout.seconds + lease.heartbeat_timeout.nanos / 1e9) / 3
            self._loop.call_later(every_s, self._beat, execution, every_s)
        if self._running < self._slots:
            self._start(execution)
        else:
            self._waiting.append(execution)

    def _start(self, execution: Execution) -> None:
        self._running += 1
        execution.task = self._loop.create_task(self._run(execution))

    async def _run(self, execution: Execution) -> None:
        self._end(execution, await execution.run(self._threads))

    def _end(self, execution: Execution, report: Report | None) -> None:
        """Takes it out of the books; its slot goes to one that waits, or back to the server."""
        if self._held.pop(execution.fence, None) is None:
            return
        execution.context.close_log()
        if execution.lost:
            self._outbox.logs.discard(execution.fence)
        if report is not None:
            self._outbox.report(report, credit=execution.credit)
        else:
            self._outbox.give_credit(execution.credit)
        if execution.task is not None:
            self._running -= 1
            if self._waiting:
                self._start(self._waiting.popleft())
        if not self._held:
            self._idle.set()

    def _beat(self, execution: Execution, every_s: float) -> None:
        """Sends heartbeats for code that need not do so itself, and for a task that waits for a slot."""
        if self._held.get(execution.fence) is not execution:
            return
        if execution.handler.auto_heartbeat or not execution.underway:
            self._outbox.heartbeat(execution.fence)
        self._loop.call_later(every_s, self._beat, execution, every_s)

    # -- cancellation -----------------------------------------------------------------------------------------

    def cancel(self, fence: Fence, reason: str) -> None:
        """Tells a task to stop. `reason`: "CANCELLED", or "LEASE_LOST" where its reports are refused by now."""
        execution = self._held.get(fence)
        if execution is None:
            return
        execution.lost = execution.lost or reason == "LEASE_LOST"
        execution.context.cancel()
        if not execution.underway:
            self._drop(execution, None if execution.lost else execution.interrupted())
        elif not execution.handler.call.is_async:
            return  # a thread cannot be stopped from outside: it may look at the context
        elif execution.context.watched:
            self._loop.call_later(self._cancel_grace_s, self._interrupt, execution)
        else:
            self._interrupt(execution)

    def _interrupt(self, execution: Execution) -> None:
        if execution.fence in self._held and execution.task is not None:
            execution.task.cancel()

    def _drop(self, execution: Execution, report: Report | None) -> None:
        """Ends one whose handler has not begun."""
        if execution.task is None:
            self._waiting.remove(execution)
        else:
            execution.task.cancel()
        self._end(execution, report)

    # -- connections ------------------------------------------------------------------------------------------

    def held(self) -> list[Fence]:
        """Leases of the tasks that run or wait."""
        return [fence for fence, execution in self._held.items() if not execution.lost]

    def keep(self, still_ours: frozenset[Fence]) -> list[Fence]:
        """After a reconnect: gives up what is not ours any more, and returns it."""
        lost = [fence for fence in self._held if fence not in still_ours]
        for fence in lost:
            _LOG.warning("the lease of task %s, attempt %d was lost", fence.task_id, fence.attempt)
            self._held[fence].credit = 0
            self.cancel(fence, "LEASE_LOST")
        return lost

    # -- the end ----------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Takes nothing more, and gives back what has not begun."""
        self._closed = True
        unstarted = [execution for execution in self._held.values() if not execution.underway]
        for execution in unstarted:
            execution.credit = 0
            self._drop(execution, None)
        self._outbox.release(execution.fence for execution in unstarted)

    async def idle(self) -> None:
        """Waits until nothing is held."""
        await self._idle.wait()

    def abort(self) -> int:
        """Ends what still runs, reported as failed for another worker to try again. Returns how many."""
        for execution in list(self._held.values()):
            execution.abort()
        self._live.clear()
        return len(self._held)
