"""The server's side of a worker that polls: answers its calls, as the scenario has it."""

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeAlias

import grpc
from google.protobuf.message import DecodeError, Message

from millstream.conformance.books import Fence, check_fields
from millstream.conformance.kinds import API_KEY, SLOTS
from millstream.conformance.polling.books import PollBooks
from millstream.conformance.polling.logs import LogStreams
from millstream.conformance.rules import Violation
from millstream.conformance.server import SERVICE, Server
from millstream.v1 import worker_pb2
from millstream.v1 import worker_service_pb2 as wire

WAIT_S: Final = 30.0
"""How long a poll that does not say waits."""

Answer: TypeAlias = Callable[[Any], Awaitable[Message]]


class PollServer(Server):
    """Serves the unary calls of WorkerService.

    Attributes:
        books: What holds always.
        polls: Polls that came.
        completions, failures, progress: What was reported and answered.
        beats: How often each lease was renewed.
        refuse: How many of the next calls are refused with UNAVAILABLE, by method.
        extra: Bytes that stand behind each answer.
        logs: What comes by `StreamLogs`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.books = PollBooks(SLOTS)
        self.polls: list[wire.PollRequest] = []
        self.completions: dict[Fence, worker_pb2.Completion] = {}
        self.failures: dict[Fence, worker_pb2.AttemptFailure] = {}
        self.progress: list[worker_pb2.TaskProgress] = []
        self.beats: Counter[Fence] = Counter()
        self.refuse: Counter[str] = Counter()
        self.extra = b""
        self.changed = asyncio.Condition()
        self.fault: Violation | None = None
        self.logs = LogStreams(self._broke, self._notify)
        self._ready: deque[worker_pb2.Lease] = deque()
        self._emptied = 0
        self._answers: Mapping[str, tuple[type[Message], Answer]] = {
            "Poll": (wire.PollRequest, self._poll),
            "Complete": (wire.CompleteRequest, self._complete),
            "Fail": (wire.FailRequest, self._fail),
            "Heartbeat": (wire.HeartbeatRequest, self._heartbeat),
            "ReportProgress": (wire.ReportProgressRequest, self._report_progress),
        }

    async def give(self, *leases: worker_pb2.Lease) -> None:
        """Has leases given to the next polls, in their order."""
        async with self.changed:
            self._ready.extend(leases)
            self.changed.notify_all()

    async def answer_empty(self) -> None:
        """Answers the polls that wait with nothing, as when their time has passed."""
        async with self.changed:
            self._emptied += 1
            self.changed.notify_all()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """The handler of a call of workers."""
        name = handler_call_details.method.removeprefix(SERVICE)
        if name == "StreamLogs":
            return grpc.stream_stream_rpc_method_handler(self.logs.serve)
        if name not in self._answers:
            return None

        async def call(raw: bytes, context: Any) -> bytes:
            return await self._call(name, raw, context)

        return grpc.unary_unary_rpc_method_handler(call)

    async def _call(self, name: str, raw: bytes, context: Any) -> bytes:
        kind, answer = self._answers[name]
        if name == "Poll":
            self.knocks.put_nowait(asyncio.get_running_loop().time())
        if self.refuse[name] > 0:
            self.refuse[name] -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "starting")
        try:
            _check_token(name, context)
            response = await answer(_parsed(kind, raw))
        except Violation as violation:
            self._broke(violation)
            await self._notify()
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, violation.what)
            raise
        await self._notify()
        return response.SerializeToString() + self.extra

    def _broke(self, violation: Violation) -> None:
        self.fault = self.fault or violation

    async def _notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def _poll(self, request: wire.PollRequest) -> wire.PollResponse:
        most = self.books.ask(request)
        self.polls.append(request)
        await self._notify()
        before, wait_s = self._emptied, request.wait if request.HasField("wait") else WAIT_S
        out = wire.PollResponse()
        try:
            async with asyncio.timeout(wait_s), self.changed:
                await self.changed.wait_for(lambda: self._ready or self._emptied > before)
        except TimeoutError:
            pass
        finally:
            self.books.asked -= most
        while self._ready and len(out.leases) < most:
            lease = self._ready.popleft()
            self.books.give(Fence.of(lease))
            self.logs.books.given.add(Fence.of(lease))
            out.leases.append(lease)
        return out

    async def _complete(self, request: wire.CompleteRequest) -> wire.CompleteResponse:
        out = wire.CompleteResponse()
        for each in request.completions:
            self._put(out.results, each, self.books.report(Fence.of(each)))
            self.completions[Fence.of(each)] = each
        self.logs.books.report(request.completions)
        return out

    async def _fail(self, request: wire.FailRequest) -> wire.FailResponse:
        out = wire.FailResponse()
        for each in request.failures:
            self._put(out.results, each, self.books.report(Fence.of(each)))
            self.failures[Fence.of(each)] = each
        self.logs.books.report(request.failures)
        return out

    async def _heartbeat(self, request: wire.HeartbeatRequest) -> wire.HeartbeatResponse:
        out = wire.HeartbeatResponse()
        for each in request.leases:
            self._put(out.results, each, self._renew(Fence.of(each)))
        return out

    async def _report_progress(self, request: wire.ReportProgressRequest) -> wire.ReportProgressResponse:
        out = wire.ReportProgressResponse()
        for each in request.progress:
            self._put(out.results, each, self._renew(Fence.of(each)))
            self.progress.append(each)
        return out

    def _renew(self, fence: Fence) -> str:
        self.beats[fence] += 1
        return self.books.renew(fence)

    def _put(self, results: Any, item: Any, code: str) -> None:
        cancelled = Fence.of(item) in self.books.cancelled
        result = results.add(task_id=item.task_id, attempt=item.attempt, cancel_requested=cancelled)
        if code:
            result.error.code, result.error.message = code, "the lease is over"


def _parsed(kind: type[Message], raw: bytes) -> Message:
    """A request of the worker. Raises Violation."""
    try:
        message = kind.FromString(raw)
    except DecodeError:
        raise Violation("W3", f"a {kind.DESCRIPTOR.name} cannot be read") from None
    check_fields(message)
    return message


def _check_token(name: str, context: Any) -> None:
    if dict(context.invocation_metadata() or ()).get("authorization") != f"Bearer {API_KEY}":
        raise Violation("W4", f"{name} has no `authorization: Bearer` with the key that was given")
