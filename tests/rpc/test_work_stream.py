"""The worker's connection: order, batching, bounds, and both ways to go away (engine-rules 7 and 23). (DC-2)"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from tests.rpc.conftest import Service
from tests.rpc.fakes import ID, OTHER, Session, lease

from millstream.application.views import leases
from millstream.application.views.leases import Cancellation
from millstream.domain.code import CommandType, Given, Note
from millstream.domain.errors import Unavailable
from millstream.domain.struct_wire import decode_value
from millstream.domain.workers import KindSpec
from millstream.transport import work_stream
from millstream.v1.artifact_pb2 import Visibility
from millstream.v1.code_pb2 import AnswerAhead, WorkflowCommand
from millstream.v1.worker_pb2 import Completion, LeaseRef, ProducedArtifact, WorkerHello
from millstream.v1.worker_service_pb2 import WorkRequest, WorkResponse

HELLO = WorkRequest(
    number=1,
    hello=WorkerHello(
        protocol=1, worker_id=ID, name="w", kinds=["resize"], slots=4, held=[LeaseRef(task_id=ID, attempt=1)]
    ),
)


class Worker:
    """The other side of the stream."""

    def __init__(self, call: Any, service: Service) -> None:
        self.call = call
        self._service = service

    async def say(self, **what: Any) -> None:
        await self.call.write(WorkRequest(**what))

    async def hear(self) -> WorkResponse:
        async with asyncio.timeout(5):
            answer = await self.call.read()
        assert answer is not grpc.aio.EOF, await self.call.code()
        out: WorkResponse = answer
        return out

    async def hear_until(self, wanted: Any) -> list[WorkResponse]:
        heard = [await self.hear()]
        while not wanted(heard[-1]):
            heard.append(await self.hear())
        return heard

    async def end(self) -> tuple[grpc.StatusCode, str]:
        """The status, once the server has ended the RPC."""
        async with asyncio.timeout(10):
            with contextlib.suppress(grpc.aio.AioRpcError):
                while await self.call.read() is not grpc.aio.EOF:
                    pass
            return await self.call.code(), await self.call.details()

    @property
    def session(self) -> Session:
        return self._service.fakes.workers.sessions[-1]


@contextlib.asynccontextmanager
async def connected(service: Service, *first: WorkRequest, key: str = "root") -> AsyncIterator[Worker]:
    method: Any = service.channel.stream_stream(
        "/millstream.v1.WorkerService/Work",
        request_serializer=WorkRequest.SerializeToString,
        response_deserializer=WorkResponse.FromString,
    )
    call = method(metadata=(("authorization", f"Bearer {key}"),))
    for message in first:
        await call.write(message)
    try:
        yield Worker(call, service)
    finally:
        call.cancel()


async def test_a_worker_is_welcomed_before_all_else(service: Service) -> None:
    async with connected(service, HELLO) as worker:
        first = await worker.hear()
        assert first.welcome.session_id == "session"
        assert first.welcome.server_version == "1.2.3"
        assert first.welcome.lease.seconds == 30
        assert [(ref.task_id, ref.attempt) for ref in first.welcome.held] == [(ID, 1)]
        assert (await worker.hear()).ack == 1
        hello = worker.session.hello
        assert (hello.worker_id, hello.kinds, hello.queues, hello.slots) == (ID, ("resize",), ("default",), 4)
        assert hello.held == (leases.LeaseRef(ID, 1),)


async def test_a_hello_tells_of_its_kinds(service: Service) -> None:
    """FV-6: with what they take and return."""
    told = WorkRequest.FromString(HELLO.SerializeToString())
    spec = told.hello.kind_specs.add(kind="resize", version="1.2", description="makes it small")
    spec.input_schema.update({"type": "object"})
    flow = told.hello.kind_specs.add(kind="order", category="WORKFLOW")
    async with connected(service, told) as worker:
        await worker.hear_until(lambda answer: answer.ack == 1)
        assert worker.session.hello.specs == (
            KindSpec("resize", 1, "1.2", "makes it small", '{"type":"object"}'),
            KindSpec("order", 2),
        )
    flow.output_schema.update({"description": "x" * 65536})
    async with connected(service, told) as worker:
        code, text = await worker.end()
        assert (code, text.split()[0]) == (grpc.StatusCode.INVALID_ARGUMENT, "hello.kind_specs[1].output_schema")
    flow.output_schema.Clear()
    flow.version = "1 2"
    async with connected(service, told) as worker:
        code, text = await worker.end()
        assert (code, text.split(":")[0]) == (grpc.StatusCode.INVALID_ARGUMENT, "hello.kind_specs[1].version")


async def test_leases_pushed_while_opening_come_after_the_welcome(service: Service) -> None:
    original = service.fakes.workers.open

    async def open_and_push(principal: Any, hello: Any, push: Any) -> Session:
        session = await original(principal, hello, push)
        session.tell(lease())
        await asyncio.sleep(0)
        return session

    service.fakes.workers.open = open_and_push  # type: ignore[method-assign]
    async with connected(service, HELLO) as worker:
        assert (await worker.hear()).HasField("welcome")
        assert len((await worker.hear()).leases) == 1


async def test_the_first_message_must_say_hello(service: Service) -> None:
    async with connected(service, WorkRequest(number=1, credit=1)) as worker:
        assert await worker.end() == (grpc.StatusCode.INVALID_ARGUMENT, "hello: the first message must say hello")
    async with connected(service) as worker:
        await worker.call.done_writing()
        assert (await worker.end())[0] is grpc.StatusCode.INVALID_ARGUMENT


async def test_hello_is_said_once(service: Service) -> None:
    async with connected(service, HELLO) as worker:
        await worker.hear_until(lambda answer: answer.ack == 1)
        await worker.call.write(HELLO)
        assert (await worker.end())[0] is grpc.StatusCode.INVALID_ARGUMENT
        assert worker.session.closed.is_set()


async def test_only_workers_may_work(service: Service) -> None:
    """Refused before a hello: one that came too late gRPC's client would take for an error of its own."""
    async with connected(service, key="reader") as worker:
        assert (await worker.end())[0] is grpc.StatusCode.PERMISSION_DENIED
    assert service.fakes.workers.sessions == []


async def test_a_hello_of_another_protocol_is_refused(service: Service) -> None:
    odd = WorkRequest(hello=WorkerHello(protocol=2, worker_id=ID, slots=1))
    async with connected(service, odd) as worker:
        code, text = await worker.end()
        assert (code, text.split(":")[0]) == (grpc.StatusCode.INVALID_ARGUMENT, "hello.protocol")


async def test_leases_pushed_together_travel_together(service: Service) -> None:
    async with connected(service, HELLO) as worker:
        await worker.hear_until(lambda answer: answer.ack == 1)
        for _ in range(10):
            worker.session.tell(lease())
        worker.session.tell(cancellations=[Cancellation(OTHER, 3, "CANCELLED")])
        heard = await worker.hear()
        assert len(heard.leases) == 10
        assert heard.leases[0].artifacts[0].type == "Order"
        assert heard.leases[0].deadline.seconds == 1_700_000_005
        assert (heard.cancellations[0].task_id, heard.cancellations[0].reason) == (OTHER, "CANCELLED")


async def test_an_ack_follows_the_store_and_names_what_was_refused(service: Service) -> None:
    async with connected(service, HELLO) as worker:
        await worker.hear_until(lambda answer: answer.ack == 1)
        worker.session.lost = frozenset({OTHER})
        worker.session.block = asyncio.Event()
        done = [Completion(task_id=ID, attempt=1), Completion(task_id=OTHER, attempt=2)]
        await worker.say(number=2, completions=done, credit=2)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await asyncio.shield(asyncio.ensure_future(worker.session.closed.wait()))
        assert worker.session.reports == []
        worker.session.block.set()
        heard = await worker.hear_until(lambda answer: answer.ack == 2)
        assert [(r.task_id, r.attempt, r.error.code) for r in heard[-1].refused] == [(OTHER, 2, "LEASE_LOST")]
        assert worker.session.credit == 2


async def test_messages_that_wait_are_stored_together_and_acked_once(service: Service) -> None:
    async with connected(service, HELLO) as worker:
        await worker.hear_until(lambda answer: answer.ack == 1)
        session = worker.session
        session.block = asyncio.Event()
        await worker.say(number=2, completions=[Completion(task_id=ID, attempt=1)])
        for number in range(3, 10):
            await worker.say(number=number, completions=[Completion(task_id=ID, attempt=number)])
        # Once the last has arrived, all behind the first one wait.
        await worker.say(number=10, heartbeats=[LeaseRef(task_id=ID, attempt=1)])
        await asyncio.sleep(0.1)
        session.block.set()
        heard = await worker.hear_until(lambda answer: answer.ack == 10)
        assert [answer.ack for answer in heard] in ([2, 10], [10])
        attempts = [done.attempt for report in session.reports for done in report.completions]
        assert attempts == [1, *range(3, 10)]
        assert session.reports[-1].heartbeats == (leases.LeaseRef(ID, 1),)


async def test_a_bad_report_fails_its_task_and_the_rest_is_stored(service: Service) -> None:
    """FL-6, FL-10: its worker is told which field; the stream goes on. One that names no task is refused alone."""
    async with connected(service, HELLO) as worker:
        await worker.hear_until(lambda answer: answer.ack == 1)
        bad = Completion(task_id=OTHER, attempt=1, artifacts=[ProducedArtifact(type="Order", tags=["a", "a"])])
        odd = Completion(task_id=OTHER, attempt=2)
        odd.output.number_value = float("nan")
        secret = ProducedArtifact(type="Order", visibility=Visibility(agents=["hr"]))
        leaky = Completion(task_id=OTHER, attempt=3, artifacts=[ProducedArtifact(type="Order"), secret])
        nameless = Completion(task_id="x", attempt=4)
        await worker.say(number=2, completions=[bad, Completion(task_id=ID, attempt=1), odd, leaky, nameless])
        heard = (await worker.hear_until(lambda answer: answer.ack == 2))[-1]
        assert {(r.attempt, r.error.details[0].field) for r in heard.refused} == {
            (1, "artifacts[0].tags"),
            (2, "output"),
            (3, "artifacts[1].visibility.agents"),
            (4, "task_id"),
        }
        stored = worker.session.reports[-1].completions
        assert {(done.task_id, done.attempt, done.fault is None) for done in stored} == {
            (ID, 1, True),
            *((OTHER, attempt, False) for attempt in (1, 2, 3)),
        }


async def test_what_is_said_ahead_goes_with_its_completion_or_not_at_all(service: Service) -> None:
    """FV-18: what cannot be taken is left out, and nobody is refused anything for it: the code is asked again."""
    patch = WorkflowCommand(number=2, patch="new")
    nul = WorkflowCommand(number=2, patch="a\0b")
    lost = WorkflowCommand(number=2)
    said = {
        1: AnswerAhead(task_id=OTHER, attempt=1, run_id=ID, token="7", commands=[patch]),
        2: AnswerAhead(task_id=OTHER, attempt=2, run_id=ID, token="seven"),
        3: AnswerAhead(task_id=OTHER, attempt=3, run_id=ID, token="7", commands=[nul]),
        4: AnswerAhead(task_id=OTHER, attempt=4, run_id=ID, token="7", commands=[lost]),
        9: AnswerAhead(task_id=OTHER, attempt=9, run_id=ID, token="7"),
    }
    async with connected(service, HELLO) as worker:
        await worker.hear_until(lambda answer: answer.ack == 1)
        done = [Completion(task_id=OTHER, attempt=attempt) for attempt in range(1, 6)]
        await worker.say(number=2, completions=done, ahead=said.values())
        heard = (await worker.hear_until(lambda answer: answer.ack == 2))[-1]
        assert not heard.refused
        first, *others = worker.session.reports[-1].completions
        assert first.ahead is not None
        assert (first.ahead.task_id, first.ahead.attempt, first.ahead.commands) == (
            ID, 7, [Given(2, 0, Note(CommandType.PATCH, "new"))],
        )  # fmt: skip
        assert [each.ahead for each in others] == [None] * 4


async def test_what_cannot_be_read_ends_the_stream(service: Service) -> None:
    method: Any = service.channel.stream_stream("/millstream.v1.WorkerService/Work")
    call = method(metadata=(("authorization", "Bearer root"),))
    await call.write(HELLO.SerializeToString())
    await call.write(b"\xff\xff")
    assert await Worker(call, service).end() == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "the request could not be read: it is malformed, or has text that is not UTF-8",
    )
    assert service.fakes.workers.sessions[-1].closed.is_set()


async def test_an_error_of_the_store_ends_the_stream(service: Service) -> None:
    async with connected(service, HELLO) as worker:
        await worker.hear_until(lambda answer: answer.ack == 1)

        async def fail(_: Any) -> Any:
            raise Unavailable("the database is away")

        worker.session.report = fail  # type: ignore[assignment, method-assign]
        await worker.say(number=2, heartbeats=[LeaseRef(task_id=ID, attempt=1)])
        assert (await worker.end())[0] is grpc.StatusCode.UNAVAILABLE
        assert worker.session.closed.is_set()


async def test_a_worker_that_ends_its_side_gets_its_last_acks(service: Service) -> None:
    async with connected(service, HELLO) as worker:
        await worker.hear_until(lambda answer: answer.ack == 1)
        await worker.say(number=2, drain=True, completions=[Completion(task_id=ID, attempt=1)])
        await worker.call.done_writing()
        await worker.hear_until(lambda answer: answer.ack == 2)
        assert (await worker.end())[0] is grpc.StatusCode.OK
        assert worker.session.drained
        assert worker.session.closed.is_set()


async def test_a_worker_that_vanishes_is_closed(service: Service) -> None:
    async with connected(service, HELLO) as worker:
        await worker.hear_until(lambda answer: answer.ack == 1)
        worker.call.cancel()
        async with asyncio.timeout(5):
            await worker.session.closed.wait()


async def test_a_silent_worker_is_dropped(service: Service) -> None:
    service.fakes.workers.lease_s = 0.2
    async with connected(service, HELLO) as worker:
        assert (await worker.end())[0] is grpc.StatusCode.DEADLINE_EXCEEDED
        assert worker.session.closed.is_set()


async def test_every_message_of_a_worker_is_a_sign_of_life(service: Service) -> None:
    """FV-6: an empty one too."""
    async with connected(service, HELLO) as worker:
        await worker.hear_until(lambda answer: answer.ack == 1)
        before = worker.session.times_heard
        await worker.say(number=2)
        await worker.hear_until(lambda answer: answer.ack == 2)
        assert worker.session.times_heard == before + 1


async def test_a_worker_that_speaks_is_kept(service: Service) -> None:
    service.fakes.workers.lease_s = 0.4
    async with connected(service, HELLO) as worker:
        for number in range(2, 8):
            await asyncio.sleep(0.1)
            await worker.say(number=number)
        await worker.hear_until(lambda answer: answer.ack == 7)


async def test_a_worker_that_does_not_read_is_dropped(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_stream, "OUTBOX_BYTES", 2 * 1024 * 1024)
    monkeypatch.setattr(work_stream, "STALLED_S", 0.2)
    async with connected(service, HELLO) as worker:
        await worker.hear_until(lambda answer: answer.ack == 1)
        session = worker.session
        for _ in range(40):
            session.tell(lease(500_000))
            await asyncio.sleep(0)
        async with asyncio.timeout(5):
            await session.closed.wait()
        # The rest of the server goes on.
        assert (await service.call("SystemService/GetHealth")).error is None
        code, _ = await worker.end()
        assert code is not grpc.StatusCode.OK


async def test_many_large_leases_come_in_messages_that_clients_take(service: Service) -> None:
    async with connected(service, HELLO) as worker:
        await worker.hear_until(lambda answer: answer.ack == 1)
        worker.session.tell(*[lease(900_000) for _ in range(12)])
        heard: list[WorkResponse] = []
        while sum(len(answer.leases) for answer in heard) < 12:
            heard.append(await worker.hear())
        assert max(answer.ByteSize() for answer in heard) < 4 * 1024 * 1024
        assert len(heard) == 4


async def test_a_draining_server_tells_its_workers_and_waits_for_them(service: Service) -> None:
    async with connected(service, HELLO) as worker:
        await worker.hear_until(lambda answer: answer.ack == 1)
        stopping = asyncio.create_task(service.server.stop())
        assert (await worker.hear()).drain
        await worker.say(number=2, completions=[Completion(task_id=ID, attempt=1)])
        await worker.hear_until(lambda answer: answer.ack == 2)
        await worker.call.done_writing()
        assert (await worker.end())[0] is grpc.StatusCode.OK
        await stopping
        assert worker.session.closed.is_set()


async def test_a_worker_that_ignores_the_drain_is_cut_off(service: Service) -> None:
    async with connected(service, HELLO) as worker:
        await worker.hear_until(lambda answer: answer.ack == 1)
        async with asyncio.timeout(5):
            await service.server.stop()
        assert (await worker.end())[0] is not grpc.StatusCode.OK
        assert worker.session.closed.is_set()


async def test_what_tasks_stream_is_passed_on(service: Service) -> None:
    """Not stored; what is too large is refused by itself, and named."""
    async with connected(service, HELLO) as worker:
        await worker.hear_until(lambda answer: answer.ack == 1)
        message = WorkRequest(number=2)
        for index in (1, 2, 3):
            each = message.streamed.add(task_id=ID, attempt=1, index=index)
            each.value.string_value = "x" * 5000 if index == 2 else f"token {index}"
        await worker.call.write(message)
        *_, answer = await worker.hear_until(lambda answer: answer.ack == 2)
        assert [(each.index, decode_value(each.value)) for each in worker.session.streamed] == [
            (1, "token 1"),
            (3, "token 3"),
        ]
        (refused,) = answer.refused
        assert refused.error.code == "PAYLOAD_TOO_LARGE"
        assert "4,096" in refused.error.message
