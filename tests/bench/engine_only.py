"""The engine without gRPC: callers that create a task, are handed its lease, and complete it, all through use cases.

A process of its own, told by lines on its standard input ("64 3.0": so many callers for so many seconds), answering
each with a line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
import uuid

import uvloop
from google.protobuf.struct_pb2 import Value
from pydantic import SecretStr
from tests.bench.load import closed_loop, ensure
from tests.bench.report import percentile_ms

from millstream.adapters.metrics import Metrics
from millstream.application.views.leases import Cancellation, Hello, Lease, LeaseRef
from millstream.application.views.reports import Completion, Reports
from millstream.application.views.tasks import NewTask
from millstream.bootstrap import App, build
from millstream.config import Settings
from millstream.domain.principals import Principal, permissions_of
from millstream.transport.use_cases import WorkerSession

_INPUT = Value(string_value="x" * 60).SerializeToString()


class Cycle:
    """Callers and worker in one: what the engine pushes goes to the caller that created the task."""

    def __init__(self, app: App) -> None:
        """Not connected yet."""
        self._principal = Principal("bench", "default", permissions_of(["admin"]))
        self._tasks = app.use_cases.tasks
        self._workers = app.use_cases.workers
        self._session: WorkerSession | None = None
        self._leases: dict[str, Lease] = {}
        self._awaited: dict[str, asyncio.Future[Lease]] = {}

    async def connect(self) -> None:
        """Become a worker with room for everything."""
        hello = Hello(str(uuid.uuid4()), "bench", ("bench.cycle",), (), (), (), (), 10_000)
        self._session = await self._workers.open(self._principal, hello, self._push)

    def _push(self, leases: list[Lease], _cancellations: list[Cancellation], _drain: bool) -> None:
        for lease in leases:
            awaited = self._awaited.pop(lease.task.id, None)
            if awaited is None:
                self._leases[lease.task.id] = lease
            else:
                awaited.set_result(lease)

    async def _lease(self, task_id: str) -> Lease:
        found = self._leases.pop(task_id, None)
        if found is not None:
            return found
        awaited: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        self._awaited[task_id] = awaited
        return await awaited

    async def once(self) -> None:
        """Create, be handed the lease, complete."""
        assert self._session is not None
        created = await self._tasks.create(self._principal, NewTask("bench.cycle", _INPUT), None)
        lease = await self._lease(created.task.id)
        ref = LeaseRef(lease.task.id, lease.attempt)
        completion = Completion(lease.task.id, lease.attempt, _INPUT)
        results = await self._session.report(Reports(completions=(completion,), delivered=(ref,)))
        ensure(len(results) == 1 and results[0].error is None, "complete", results)
        self._session.add_credit(1)


async def serve(database_url: str) -> None:
    """Do what the lines ask for until they end."""
    settings = Settings(database_url=SecretStr(database_url), auth_mode="developer")
    app = await build(settings, Metrics())
    cycle = Cycle(app)
    await cycle.connect()
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    print("ready", flush=True)
    while line := await reader.readline():
        callers, seconds = line.split()
        outcome = await closed_loop([cycle.once] * int(callers), float(seconds))
        answer = {
            "ops": outcome.ops,
            "seconds": outcome.seconds,
            "p50_ms": percentile_ms(outcome.latencies_s, 0.5),
            "p99_ms": percentile_ms(outcome.latencies_s, 0.99),
            "at": time.time(),
        }
        print(json.dumps(answer), flush=True)
    await app.close()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1]))
