"""The worker against a scripted service: what it says on its stream, and when."""

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from pydantic import BaseModel
from tests.unit.workserver import Stream, WorkServer

from millstream.sdk import AccessError, Context, InvalidRequestError, TaskError, Worker
from millstream.sdk.payload import fill_value, from_struct, from_value
from millstream.v1 import artifact_pb2, error_pb2, worker_pb2, worker_service_pb2_grpc


class Order(BaseModel):
    order_id: str
    amount: int = 0


class Payment(BaseModel):
    order_id: str
    status: str = "paid"


@pytest.fixture
async def service() -> AsyncIterator[WorkServer]:
    server, service = grpc.aio.server(), WorkServer()
    worker_service_pb2_grpc.add_WorkerServiceServicer_to_server(service, server)
    service.target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    yield service
    await server.stop(0)


@pytest.fixture
def worker(service: WorkServer) -> Worker:
    return Worker(service.target, name="w", slots=10, backoff=(0.001, 0.01), drain_timeout=10, cancel_grace=10)


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


@pytest.fixture
def gate(worker: Worker) -> Gate:
    return Gate(worker)


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


# -- connecting -----------------------------------------------------------------------------------------------


async def test_the_hello_names_everything_served_and_who_serves_it(service: WorkServer) -> None:
    worker = Worker(service.target, name="w", slots=7, api_key="secret", queues=["fast"])

    @worker.agent(consumes=Order, publishes=Payment, where="payload.amount > 0", labels=["eu"])
    async def payments(order: Order) -> Payment:
        """Charges the customer.

        More of no interest.
        """
        return Payment(order_id=order.order_id)

    worker.task("add")(lambda: None)
    async with worker:
        hello = (await service.next()).hello
    assert (hello.protocol, hello.name, hello.slots, list(hello.queues)) == (1, "w", 7, ["fast"])
    assert list(hello.kinds) == ["add"]
    assert [(a.name, a.description, list(a.outputs), list(a.labels)) for a in hello.agents] == [
        ("payments", "Charges the customer.", ["Payment"], ["eu"])
    ]
    assert list(hello.agents[0].subscriptions[0].types) == ["Order"]
    assert hello.agents[0].subscriptions[0].where == "payload.amount > 0"
    assert [t.name for t in hello.types] == ["Order", "Payment"]
    assert from_struct(hello.types[0].schema)["required"] == ["order_id"]
    assert service.metadata["authorization"] == "Bearer secret"


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidRequestError),
        (grpc.StatusCode.PERMISSION_DENIED, AccessError),
    ],
)
async def test_a_refused_hello_is_raised_with_the_services_words_and_not_repeated(
    service: WorkServer, worker: Worker, status: grpc.StatusCode, error: type[Exception]
) -> None:
    service.refusals = [(status, "schema of Order: no such keyword")]
    with pytest.raises(error, match="schema of Order: no such keyword"):
        async with worker:
            pass
    assert service.hellos == 1


async def test_an_unavailable_service_is_tried_again(service: WorkServer, worker: Worker) -> None:
    service.refusals = [(grpc.StatusCode.UNAVAILABLE, "starting")] * 3
    async with worker:
        assert service.hellos == 4


def test_the_pause_doubles_up_to_its_bound_and_is_spread() -> None:
    worker = Worker(backoff=(0.1, 10.0))
    pauses = [worker._pause(failures) for failures in range(2_000)]
    assert 0.05 <= pauses[0] <= 0.1
    assert 0.2 <= pauses[2] <= 0.4
    assert min(pauses[10:]) >= 5
    assert max(pauses) <= 10
    assert len(set(pauses[10:])) > 1


async def test_it_says_something_every_third_of_the_lease(service: WorkServer, worker: Worker) -> None:
    service.lease_s = 0.03
    async with worker:
        stream = await service.next()
        await stream.until(lambda s: len(s.received) >= 3)
        assert [request.number for request in stream.received[:3]] == [2, 3, 4]


# -- tasks ----------------------------------------------------------------------------------------------------


async def test_an_agent_gets_its_model_and_publishes_what_it_returns(service: WorkServer, worker: Worker) -> None:
    seen: list[Any] = []

    @worker.agent(consumes=Order, publishes=[Payment])
    async def payments(order: Order, ctx: Context) -> list[Payment]:
        seen.append((order, ctx.task_id, ctx.run_id, ctx.attempt, ctx.max_attempts, ctx.artifacts[0].tags))
        ctx.publish(Payment(order_id="extra"), tags=["late"], partition_key="p")
        return [Payment(order_id=order.order_id), Payment(order_id="second")]

    async with worker:
        stream = await service.next()
        await stream.push(order("t1", {"order_id": "o1", "amount": 3}))
        await stream.until(lambda s: len(s.completions) == 1)
        await stream.ack()
    assert seen == [(Order(order_id="o1", amount=3), "t1", "r1", 1, 3, ("vip",))]
    completion = stream.completions[0]
    assert (completion.task_id, completion.attempt) == ("t1", 1)
    assert [(a.type, a.payload["order_id"], list(a.tags), a.partition_key) for a in completion.artifacts] == [
        ("Payment", "o1", [], ""),
        ("Payment", "second", [], ""),
        ("Payment", "extra", ["late"], "p"),
    ]


async def test_leases_that_come_and_end_together_share_one_message(service: WorkServer) -> None:
    worker = Worker(service.target, slots=100)

    @worker.task("echo")
    async def echo(value: Any) -> Any:
        return value

    async with worker:
        stream = await service.next()
        await stream.push(*(lease("echo", f"t{n}", {"n": n}) for n in range(100)))
        await stream.until(lambda s: len(s.completions) == 100)
        await stream.ack()
    first = stream.received[0]
    assert (len(first.delivered), len(first.completions), first.credit) == (100, 100, 100)


async def test_each_ended_task_gives_one_credit_back(service: WorkServer, worker: Worker, gate: Gate) -> None:
    async with worker:
        stream = await service.next()
        await stream.push(lease("gated", "t1"), lease("gated", "t2"))
        await stream.until(lambda s: len(s.delivered) == 2)
        assert stream.credit == 0
        gate.open.set()
        await stream.until(lambda s: len(s.completions) == 2)
        assert stream.credit == 2
        await stream.ack()


async def test_no_more_tasks_run_at_once_than_there_are_slots(service: WorkServer) -> None:
    worker = Worker(service.target, slots=1)
    gate = Gate(worker)
    async with worker:
        stream = await service.next()
        await stream.push(lease("gated", "t1"), lease("gated", "t2"))
        await stream.until(lambda s: len(s.delivered) == 2)
        assert gate.entered._value == 1
        gate.open.set()
        await stream.until(lambda s: len(s.completions) == 2)
        await stream.ack()


async def test_a_task_gets_what_its_input_is_annotated_with(service: WorkServer, worker: Worker) -> None:
    @worker.task("total")
    async def total(orders: list[Order]) -> dict[str, Any]:
        return {"total": sum(o.amount for o in orders), "first": orders[0]}

    message = lease("total")
    fill_value(message.input, [{"order_id": "a", "amount": 2}, {"order_id": "b", "amount": 3}])
    async with worker:
        stream = await service.next()
        await stream.push(message)
        await stream.until(lambda s: len(s.completions) == 1)
        await stream.ack()
    assert from_value(stream.completions[0].output) == {"total": 5, "first": {"order_id": "a", "amount": 2}}


async def test_a_sync_handler_runs_in_a_thread_and_may_report_from_it(service: WorkServer, worker: Worker) -> None:
    @worker.task("crunch")
    def crunch(value: dict[str, int], ctx: Context) -> int:
        ctx.progress(0.5, "half")
        assert threading.current_thread() is not threading.main_thread()
        return value["n"] * 2

    async with worker:
        stream = await service.next()
        await stream.push(lease("crunch", value={"n": 21}))
        await stream.until(lambda s: len(s.completions) == 1)
        await stream.ack()
    assert stream.completions[0].output.number_value == 42
    assert [(p.fraction, p.message) for p in stream.progress] == [(0.5, "half")]


# -- failures -------------------------------------------------------------------------------------------------


async def test_a_task_error_fails_the_attempt_as_it_says(service: WorkServer, worker: Worker) -> None:
    @worker.task("fail")
    async def fail() -> None:
        raise TaskError("BUSY", "later", retryable=True, retry_after=1.5)

    async with worker:
        stream = await service.next()
        await stream.push(lease("fail"))
        failure = await one_failure(stream)
        await stream.ack()
    assert (failure.code, failure.message, failure.retryable) == ("BUSY", "later", True)
    assert failure.retry_after.ToMilliseconds() == 1500
    assert stream.credit == 1


async def test_any_other_exception_fails_the_attempt_under_its_class(
    service: WorkServer, worker: Worker, caplog: pytest.LogCaptureFixture
) -> None:
    @worker.task("fail")
    async def fail(value: Any) -> None:
        raise LookupError("no such \ud800 thing" + "x" * 5_000)

    async with worker:
        stream = await service.next()
        await stream.push(lease("fail"))
        failure = await one_failure(stream)
        await stream.ack()
    assert failure.code == "LookupError"
    assert failure.message.startswith("no such ? thing")
    assert len(failure.message) == 4_000
    assert not failure.HasField("retryable")
    assert caplog.records[-1].exc_info is not None


@pytest.mark.parametrize(
    ("returned", "payload", "code", "says"),
    [
        (None, {"amount": "x"}, "INVALID_INPUT", "order_id: Field required; amount: "),
        (Order(order_id="o"), {"order_id": "o"}, "INVALID_OUTPUT", "Order is not among the types"),
        ("text", {"order_id": "o"}, "INVALID_OUTPUT", "not str"),
        (("Payment", {"n": float("nan")}), {"order_id": "o"}, "INVALID_OUTPUT", "n: JSON has no NaN"),
    ],
)
async def test_wrong_input_and_wrong_output_are_final(
    service: WorkServer, worker: Worker, returned: Any, payload: dict[str, Any], code: str, says: str
) -> None:
    @worker.agent(consumes=Order, publishes=Payment)
    async def payments(order: Order) -> Any:
        return returned

    async with worker:
        stream = await service.next()
        await stream.push(order("t1", payload))
        failure = await one_failure(stream)
        await stream.ack()
    assert (failure.code, failure.retryable) == (code, False)
    assert says in failure.message


async def test_a_kind_without_a_handler_fails_for_another_worker_to_try(service: WorkServer, worker: Worker) -> None:
    async with worker:
        stream = await service.next()
        await stream.push(lease("nobody's"))
        failure = await one_failure(stream)
        await stream.ack()
    assert (failure.code, failure.retryable) == ("UNKNOWN_KIND", True)


async def test_a_refused_report_is_logged_and_not_sent_again(
    service: WorkServer, worker: Worker, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    gate.open.set()
    async with worker:
        stream = await service.next()
        await stream.push(lease("gated"))
        await stream.until(lambda s: len(s.completions) == 1)
        error = error_pb2.ErrorBody(code="LEASE_LOST", message="another attempt runs")
        await stream.send(
            refused=[worker_pb2.ReportResult(task_id="t1", attempt=1, error=error)], ack=stream.received[-1].number
        )
        stream.end(grpc.StatusCode.UNAVAILABLE, "gone")
        again = await service.next()
        assert not again.hello.held
    assert "task t1, attempt 1 was refused: LEASE_LOST: another attempt runs" in caplog.text


# -- signs of life and cancellation ---------------------------------------------------------------------------


async def test_async_handlers_with_a_heartbeat_timeout_beat_by_themselves(
    service: WorkServer, worker: Worker, gate: Gate
) -> None:
    message = lease("gated")
    message.heartbeat_timeout.FromMilliseconds(15)
    async with worker:
        stream = await service.next()
        await stream.push(message)
        await stream.until(lambda s: len(s.heartbeats) >= 3)
        gate.open.set()
        await stream.until(lambda s: len(s.completions) == 1)
        await stream.ack()


async def test_of_many_progress_reports_the_last_is_sent(service: WorkServer, worker: Worker) -> None:
    @worker.task("steps")
    async def steps(value: Any, ctx: Context) -> None:
        for step in range(1, 101):
            ctx.progress(step / 100)

    async with worker:
        stream = await service.next()
        await stream.push(lease("steps"))
        await stream.until(lambda s: len(s.completions) == 1)
        await stream.ack()
    assert [p.fraction for p in stream.progress] == [1.0]


async def test_a_cancelled_task_is_interrupted_and_says_so(service: WorkServer, worker: Worker, gate: Gate) -> None:
    async with worker:
        stream = await service.next()
        await stream.push(lease("gated"))
        await gate.entered.acquire()
        await stream.send(cancellations=[worker_pb2.Cancellation(task_id="t1", attempt=1, reason="CANCELLED")])
        failure = await one_failure(stream)
        await stream.ack()
    assert gate.interrupted.is_set()
    assert (failure.code, failure.retryable, stream.credit) == ("CANCELLED", False, 1)


async def test_a_handler_that_watches_for_cancellation_may_end_well(service: WorkServer, worker: Worker) -> None:
    watching = asyncio.Event()

    @worker.task("patient")
    async def patient(value: Any, ctx: Context) -> str:
        cancelled = ctx.cancelled
        watching.set()
        await cancelled.wait()
        return "tidied up"

    async with worker:
        stream = await service.next()
        await stream.push(lease("patient"))
        await watching.wait()
        await stream.send(cancellations=[worker_pb2.Cancellation(task_id="t1", attempt=1, reason="CANCELLED")])
        await stream.until(lambda s: len(s.completions) == 1)
        await stream.ack()
    assert stream.completions[0].output.string_value == "tidied up"


async def test_a_sync_handler_stops_where_it_checks(service: WorkServer, worker: Worker) -> None:
    entered, cancelled = threading.Event(), threading.Event()

    @worker.task("loop")
    def loop(value: Any, ctx: Context) -> None:
        entered.set()
        cancelled.wait(10)
        ctx.check_cancelled()

    async with worker:
        stream = await service.next()
        await stream.push(lease("loop"))
        await asyncio.to_thread(entered.wait, 10)
        await stream.send(cancellations=[worker_pb2.Cancellation(task_id="t1", attempt=1, reason="CANCELLED")])
        # The answer to a task that ends shows that the cancellation before it has been read.
        await stream.push(lease("nobody's", "t2"))
        await stream.until(lambda s: len(s.failures) == 1)
        cancelled.set()
        await stream.until(lambda s: len(s.failures) == 2)
        await stream.ack()
    assert (stream.failures[1].task_id, stream.failures[1].code) == ("t1", "CANCELLED")


async def test_of_a_lost_lease_nothing_is_reported(service: WorkServer, worker: Worker, gate: Gate) -> None:
    async with worker:
        stream = await service.next()
        await stream.push(lease("gated"))
        await gate.entered.acquire()
        await stream.send(cancellations=[worker_pb2.Cancellation(task_id="t1", attempt=1, reason="LEASE_LOST")])
        await stream.until(lambda s: s.credit == 1)
        assert gate.interrupted.is_set()
    assert not stream.completions
    assert not stream.failures


# -- reconnecting ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [None, grpc.StatusCode.UNAVAILABLE])
async def test_running_tasks_go_on_over_a_reconnect(
    service: WorkServer, worker: Worker, gate: Gate, status: grpc.StatusCode | None
) -> None:
    async with worker:
        stream = await service.next()
        await stream.push(lease("gated", value={"n": 1}))
        await gate.entered.acquire()
        stream.end(status, "gone")
        again = await service.next()
        assert [(ref.task_id, ref.attempt) for ref in again.hello.held] == [("t1", 1)]
        assert again.hello.worker_id == stream.hello.worker_id
        gate.open.set()
        await again.until(lambda s: len(s.completions) == 1)
        await again.ack()
    assert (again.received[0].number, again.credit) == (2, 1)
    assert not gate.interrupted.is_set()


async def test_unacknowledged_reports_are_sent_again(service: WorkServer, worker: Worker, gate: Gate) -> None:
    gate.open.set()
    async with worker:
        stream = await service.next()
        await stream.push(lease("gated", "t1"))
        await stream.until(lambda s: len(s.completions) == 1)
        await stream.ack()
        await stream.push(lease("gated", "t2"), lease("gated", "t3"))
        await stream.until(lambda s: len(s.completions) == 3)
        # t2 was stored although its acknowledgement was lost: the lease is no longer the worker's.
        service.lost = {("t2", 1)}
        stream.end(grpc.StatusCode.UNAVAILABLE, "gone")
        again = await service.next()
        assert {ref.task_id for ref in again.hello.held} == {"t2", "t3"}
        await again.until(lambda s: len(s.completions) == 2)
        assert [c.task_id for c in again.completions] == ["t2", "t3"]
        assert again.credit == 1
        assert set(again.delivered) <= {"t2", "t3"}
        await again.ack()


async def test_a_lease_lost_at_the_reconnect_is_given_up(service: WorkServer, worker: Worker, gate: Gate) -> None:
    service.lost = {("t1", 1)}
    async with worker:
        stream = await service.next()
        await stream.push(lease("gated", "t1"), lease("gated", "t2"))
        await gate.entered.acquire()
        await gate.entered.acquire()
        stream.end(grpc.StatusCode.UNAVAILABLE, "gone")
        again = await service.next()
        await gate.interrupted.wait()
        gate.open.set()
        await again.until(lambda s: len(s.completions) == 1)
        await again.ack()
    assert again.completions[0].task_id == "t2"
    assert again.credit == 1
    assert not again.failures


async def test_a_draining_server_is_left_when_the_work_in_hand_is_stored(
    service: WorkServer, worker: Worker, gate: Gate
) -> None:
    async with worker:
        stream = await service.next()
        await stream.push(lease("gated"))
        await gate.entered.acquire()
        await stream.send(drain=True)
        gate.open.set()
        await stream.until(lambda s: len(s.completions) == 1)
        # It still answers: without the acknowledgement it does not leave.
        await stream.push(lease("nobody's", "t2"))
        await stream.until(lambda s: len(s.failures) == 1)
        await stream.ack()
        await stream.until(lambda s: s.half_closed)
        again = await service.next()
        assert not again.hello.held


async def test_a_message_that_is_always_refused_ends_the_worker(
    service: WorkServer, worker: Worker, gate: Gate
) -> None:
    gate.open.set()
    running = asyncio.create_task(worker.run(handle_signals=False))
    stream = await service.next()
    await stream.push(lease("gated"))
    for sessions in range(1, 4):
        await stream.until(lambda s: len(s.completions) == 1)
        stream.end(grpc.StatusCode.INVALID_ARGUMENT, "output: too large")
        if sessions < 3:
            stream = await service.next()
    with pytest.raises(InvalidRequestError, match="output: too large"):
        await running


# -- stopping -------------------------------------------------------------------------------------------------


async def test_it_drains_finishes_what_runs_and_gives_back_what_does_not(service: WorkServer) -> None:
    worker = Worker(service.target, slots=1)
    gate = Gate(worker)
    running = asyncio.create_task(worker.run(handle_signals=False))
    stream = await service.next()
    await stream.push(lease("gated", "t1"), lease("gated", "t2"))
    await gate.entered.acquire()
    worker.stop()
    await stream.until(lambda s: s.draining and s.released == ["t2"])
    await stream.push(lease("gated", "t3"))
    await stream.until(lambda s: s.released == ["t2", "t3"])
    gate.open.set()
    await stream.until(lambda s: len(s.completions) == 1)
    # It goes on answering: without the acknowledgement it does not go.
    for n in range(3, 13):
        await stream.push(lease("gated", f"more{n}"))
        await stream.until(lambda s, count=n: len(s.released) == count)  # type: ignore[misc]
    await stream.ack()
    await stream.until(lambda s: s.half_closed)
    stream.end()
    await running
    assert [c.task_id for c in stream.completions] == ["t1"]
    assert "t3" not in stream.delivered


async def test_what_outlasts_the_drain_fails_for_another_worker_to_try(service: WorkServer) -> None:
    worker = Worker(service.target, drain_timeout=0)
    gate = Gate(worker)
    running = asyncio.create_task(worker.run(handle_signals=False))
    stream = await service.next()
    await stream.push(lease("gated"))
    await gate.entered.acquire()
    worker.stop()
    failure = await one_failure(stream)
    assert (failure.code, failure.retryable) == ("WORKER_STOPPED", True)
    await stream.ack()
    await stream.until(lambda s: s.half_closed)
    stream.end()
    await running


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_and_a_second_one_does_not_wait(
    service: WorkServer, worker: Worker, gate: Gate, number: signal.Signals
) -> None:
    running = asyncio.create_task(worker.run())
    stream = await service.next()
    await stream.push(lease("gated"))
    await gate.entered.acquire()
    os.kill(os.getpid(), number)
    await stream.until(lambda s: s.draining)
    os.kill(os.getpid(), number)
    failure = await one_failure(stream)
    assert failure.code == "WORKER_STOPPED"
    await stream.ack()
    await stream.until(lambda s: s.half_closed)
    stream.end()
    await running


async def test_a_worker_that_cannot_connect_still_stops(worker: Worker) -> None:
    worker._target = "127.0.0.1:1"
    running = asyncio.create_task(worker.run(handle_signals=False))
    await asyncio.sleep(0)
    worker.stop()
    await running


async def test_a_drain_goes_on_over_a_reconnect(service: WorkServer, worker: Worker, gate: Gate) -> None:
    running = asyncio.create_task(worker.run(handle_signals=False))
    stream = await service.next()
    await stream.push(lease("gated"))
    await gate.entered.acquire()
    worker.stop()
    await stream.until(lambda s: s.draining)
    stream.end(grpc.StatusCode.UNAVAILABLE, "gone")
    again = await service.next()
    await again.until(lambda s: s.draining)
    gate.open.set()
    await again.until(lambda s: len(s.completions) == 1)
    await again.ack()
    await again.until(lambda s: s.half_closed)
    again.end()
    await running
