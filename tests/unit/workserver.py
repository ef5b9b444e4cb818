"""A WorkerService whose every answer the test decides."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import grpc
from pydantic import BaseModel

from millstream.sdk import Worker
from millstream.v1 import artifact_pb2, code_pb2, payload_service_pb2_grpc, worker_pb2, worker_service_pb2_grpc
from millstream.v1.worker_service_pb2 import WorkRequest, WorkResponse

Context: TypeAlias = grpc.aio.ServicerContext[WorkRequest, WorkResponse]


class Stream:
    """One connection of the worker, seen from the server's side."""

    def __init__(self, requests: AsyncIterator[WorkRequest], context: Context) -> None:
        self.context = context
        self.hello = worker_pb2.WorkerHello()
        self.received: list[WorkRequest] = []
        self.changed = asyncio.Condition()
        self.half_closed = False
        self._requests = requests
        self._end: asyncio.Future[tuple[grpc.StatusCode, str] | None] = asyncio.get_running_loop().create_future()

    async def send(self, **response: Any) -> None:
        """Sends one message."""
        await self.context.write(WorkResponse(**response))

    async def push(self, *leases: worker_pb2.Lease) -> None:
        """Hands out leases."""
        await self.send(leases=leases)

    async def ack(self) -> None:
        """Acknowledges everything received so far."""
        await self.send(ack=self.received[-1].number)

    async def until(self, true: Callable[["Stream"], bool]) -> None:
        """Waits until what was received makes it true."""
        async with asyncio.timeout(10), self.changed:
            await self.changed.wait_for(lambda: true(self))

    def end(self, code: grpc.StatusCode | None = None, details: str = "") -> None:
        """Ends the stream: cleanly, or with a status."""
        if not self._end.done():
            self._end.set_result(None if code is None else (code, details))

    # -- sums over what was received --------------------------------------------------------------------------

    @property
    def completions(self) -> list[worker_pb2.Completion]:
        """All completions, in order."""
        return [item for request in self.received for item in request.completions]

    @property
    def answers(self) -> list[code_pb2.ActivationAnswer]:
        """All answers to activations, in order."""
        return [item for request in self.received for item in request.answers]

    @property
    def failures(self) -> list[worker_pb2.AttemptFailure]:
        """All failures, in order."""
        return [item for request in self.received for item in request.failures]

    @property
    def delivered(self) -> list[str]:
        """Tasks whose delivery was acknowledged."""
        return [item.task_id for request in self.received for item in request.delivered]

    @property
    def released(self) -> list[str]:
        """Tasks given back."""
        return [item.task_id for request in self.received for item in request.released]

    @property
    def heartbeats(self) -> list[str]:
        """Tasks that showed a sign of life."""
        return [item.task_id for request in self.received for item in request.heartbeats]

    @property
    def progress(self) -> list[worker_pb2.TaskProgress]:
        """All progress, in order."""
        return [item for request in self.received for item in request.progress]

    @property
    def credit(self) -> int:
        """All credit given."""
        return sum(request.credit for request in self.received)

    @property
    def draining(self) -> bool:
        """The worker asked for no more tasks."""
        return any(request.drain for request in self.received)

    async def serve(self) -> None:
        """Reads until the worker closes its side or the test ends the stream."""
        reader = asyncio.create_task(self._read())
        ending = asyncio.ensure_future(self._end)
        both: set[asyncio.Future[Any]] = {reader, ending}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        # The reader may not outlive the call: an error that nobody asks it for would fail some later test.
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
        outcome = self._end.result() if self._end.done() else None
        if outcome is not None:
            await self.context.abort(*outcome)

    async def _read(self) -> None:
        async for request in self._requests:
            async with self.changed:
                self.received.append(request)
                self.changed.notify_all()
        async with self.changed:
            self.half_closed = True
            self.changed.notify_all()


class WorkServer(worker_service_pb2_grpc.WorkerServiceServicer):
    """Welcomes workers (or refuses them, if told to) and leaves the rest to the test."""

    def __init__(self) -> None:
        self.streams: asyncio.Queue[Stream] = asyncio.Queue()
        self.refusals: list[tuple[grpc.StatusCode, str]] = []
        self.hellos = 0
        self.lost: set[tuple[str, int]] = set()
        self.lease_s = 30.0
        self.metadata: dict[str, Any] = {}
        self.target = ""

    async def next(self) -> Stream:
        """The next connection, welcomed."""
        async with asyncio.timeout(10):
            return await self.streams.get()

    async def Work(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]  # noqa: N802
        """Serves one connection."""
        requests = aiter(request_iterator)
        first = await anext(requests)
        self.hellos += 1
        self.metadata = dict(context.invocation_metadata())
        if self.refusals:
            await context.abort(*self.refusals.pop(0))
        stream = Stream(requests, context)
        stream.hello = first.hello
        held = [ref for ref in first.hello.held if (ref.task_id, ref.attempt) not in self.lost]
        welcome = worker_pb2.WorkerWelcome(session_id="s", held=held)
        welcome.lease.FromMicroseconds(int(self.lease_s * 1e6))
        await context.write(WorkResponse(welcome=welcome))
        await context.write(WorkResponse(ack=first.number))
        self.streams.put_nowait(stream)
        await stream.serve()

    async def Poll(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Not used."""
        raise NotImplementedError

    Complete = Fail = Heartbeat = ReportProgress = ListWorkers = GetWorker = ListKinds = Poll
    AnswerActivations = FetchHistory = Poll

    def StreamLogs(self, requests: Any, context: Any) -> Any:  # noqa: N802
        """Not used."""
        raise NotImplementedError


@asynccontextmanager
async def serving(
    payloads: payload_service_pb2_grpc.PayloadServiceServicer | None = None, service: WorkServer | None = None
) -> AsyncIterator[WorkServer]:
    """Serves it, or another of its kind, on a free port, with payloads where they are given."""
    server, service = grpc.aio.server(), service or WorkServer()
    worker_service_pb2_grpc.add_WorkerServiceServicer_to_server(service, server)
    if payloads is not None:
        payload_service_pb2_grpc.add_PayloadServiceServicer_to_server(payloads, server)
    service.target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    yield service
    await server.stop(0)


class Order(BaseModel):
    order_id: str
    amount: int = 0


class Payment(BaseModel):
    order_id: str
    status: str = "paid"


class Gate:
    """Holds handlers until the test lets them go."""

    def __init__(self, worker: Worker) -> None:
        self.entered = asyncio.Semaphore(0)
        self.open = asyncio.Event()
        self.interrupted = asyncio.Event()
        worker.task("gated")(self.handler)

    async def handler(self, value: Any) -> Any:
        self.entered.release()
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.interrupted.set()
            raise
        return value


def lease(kind: str, task_id: str = "t1", value: Any = None, **more: Any) -> worker_pb2.Lease:
    message = worker_pb2.Lease(task_id=task_id, attempt=1, run_id="r1", kind=kind, tries=1, max_attempts=3, **more)
    if isinstance(value, str):
        message.input.string_value = value
    elif isinstance(value, dict):
        message.input.struct_value.update(value)
    return message


def order(task_id: str, payload: dict[str, Any], agent: str = "payments") -> worker_pb2.Lease:
    artifact = artifact_pb2.Artifact(id="a1", type="Order", tags=["vip"])
    artifact.payload.update(payload)
    return lease(f"agent:{agent}", task_id, artifacts=[artifact])


async def one_failure(stream: Stream) -> worker_pb2.AttemptFailure:
    await stream.until(lambda s: len(s.failures) == 1)
    return stream.failures[0]
