"""What the SDK's own executions need of a worker, where there is none: leases, threads, contexts, and their reports."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from millstream.sdk.activations import ActivationExecution, LiveRuns
from millstream.sdk.context import Context
from millstream.sdk.execution import Execution, Threads
from millstream.sdk.handlers import Handler, WorkflowHandler
from millstream.sdk.outbox import Fence, Outbox
from millstream.sdk.payloads import Payloads
from millstream.v1 import worker_pb2
from millstream.v1 import worker_service_pb2 as wire

_THREADS: Final = 16
_LIVE_MOST: Final = 1 << 30
"""Runs stay in memory: a test has few of them."""


class _NoCalls:
    """Stands for the connection to a service."""

    def __getattr__(self, name: str) -> Any:
        raise NotImplementedError("there is no service in a test environment: fake the task that needs one")


def _no_calls() -> Any:
    return _NoCalls()


class Stand:
    """Where handlers and workflows run, as in a worker."""

    def __init__(self) -> None:
        """Needs a running event loop."""
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="millstream-test")
        self._threads = Threads(self._pool, asyncio.Semaphore(_THREADS))
        self._calls = _no_calls()
        self._live = LiveRuns(_LIVE_MOST, self._calls)

    def close(self) -> None:
        """Drops what is kept."""
        self._live.clear()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def execution(self, lease: worker_pb2.Lease, handler: Handler) -> Execution:
        """One attempt, by the SDK's own driver."""
        fence = Fence(lease.task_id, lease.attempt)
        context = Context(
            lease, fence, Outbox(1), Payloads(self._calls), asyncio.get_running_loop(), threading.get_ident()
        )
        if not isinstance(handler, WorkflowHandler):
            return Execution(lease, fence, handler, context)
        activation = ActivationExecution(lease, fence, handler, context)
        activation.live = self._live
        return activation

    async def perform(self, execution: Execution) -> wire.WorkRequest:
        """Run an attempt; its report as it would go to the service."""
        report = await execution.run(self._threads)
        return wire.WorkRequest.FromString(report.frame) if report is not None else wire.WorkRequest()
