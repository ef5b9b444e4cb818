"""The worker against a scripted service: what it registers, runs and reports."""

import threading
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from tests.unit.workserver import Gate, Order, Payment, WorkServer, lease, one_failure, order, serving

from millstream.sdk import AccessError, Context, InvalidRequestError, TaskError, Worker
from millstream.sdk.payload import fill_value, from_struct, from_value
from millstream.v1 import error_pb2, worker_pb2


@pytest.fixture
async def service() -> AsyncIterator[WorkServer]:
    async with serving() as service:
        yield service


@pytest.fixture
def worker(service: WorkServer) -> Worker:
    return Worker(service.target, name="w", slots=10, backoff=(0.001, 0.01), drain_timeout=10, cancel_grace=10)


@pytest.fixture
def gate(worker: Worker) -> Gate:
    return Gate(worker)


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

    @worker.task("bill", version="2.1")
    async def bill(order: Order) -> Payment:
        """Makes a bill."""
        return Payment(order_id=order.order_id)

    async with worker:
        hello = (await service.next()).hello
    assert (hello.protocol, hello.name, hello.slots, list(hello.queues)) == (1, "w", 7, ["fast"])
    assert list(hello.kinds) == ["add", "bill"]
    add, told = hello.kind_specs
    assert (add.kind, add.version, add.HasField("input_schema"), add.HasField("output_schema")) == (
        "add", "", False, False,
    )  # fmt: skip
    assert (told.kind, told.category, told.version, told.description) == (
        "bill", worker_pb2.KindSpec.TASK, "2.1", "Makes a bill.",
    )  # fmt: skip
    assert from_struct(told.input_schema) == Order.model_json_schema()
    assert from_struct(told.output_schema) == Payment.model_json_schema(mode="serialization")
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
