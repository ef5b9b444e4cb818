"""The worker against a scripted service: heartbeats, cancellation, reconnects, and its end."""

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from tests.unit.workserver import Gate, WorkServer, lease, one_failure, serving

from millstream.sdk import Context, InvalidRequestError, Worker
from millstream.v1 import worker_pb2


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
        assert not cancelled
        watching.set()
        await cancelled.wait()
        return "tidied up" if ctx.cancelled else "never stopped"

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


async def test_a_sign_of_life_that_is_answered_with_a_wish_to_cancel_cancels(
    service: WorkServer, worker: Worker, gate: Gate
) -> None:
    async with worker:
        stream = await service.next()
        await stream.push(lease("gated"))
        await gate.entered.acquire()
        await stream.send(refused=[worker_pb2.ReportResult(task_id="t1", attempt=1, cancel_requested=True)])
        await stream.until(lambda s: len(s.failures) == 1)
        await stream.ack()
    assert stream.failures[0].code == "CANCELLED"


async def test_a_lease_that_comes_again_before_its_report_is_stored_is_not_run_again(
    service: WorkServer, worker: Worker
) -> None:
    runs: list[str] = []
    worker.task("count")(lambda value: runs.append(value))
    worker.task("echo")(lambda value: value)
    async with worker:
        stream = await service.next()
        await stream.push(lease("count", "t1", "once"))
        await stream.until(lambda s: len(s.completions) == 1)
        await stream.push(lease("count", "t1", "once"))
        await stream.push(lease("echo", "t2", "fence"))
        await stream.until(lambda s: len(s.completions) == 2)
        assert stream.delivered == ["t1", "t1", "t2"]
        await stream.ack()
    assert runs == ["once"]


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
