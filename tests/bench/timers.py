"""Rows of time: runs that sleep, timers of runs, and delayed tasks."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import asyncpg
from google.protobuf.struct_pb2 import Value
from tests.bench import rpc
from tests.bench.flows import serving
from tests.bench.load import ensure
from tests.bench.meters import cpu_by_kind
from tests.bench.report import Aim, Load, Outcome, Result, Row, percentile_ms, value_under
from tests.bench.stand import Stand

from millstream.v1.run_service_pb2 import CancelRunsRequest, CancelRunsResponse
from millstream.v1.task_service_pb2 import CreateTaskBatchRequest, CreateTaskBatchResponse
from millstream.v1.workflow_service_pb2 import ExecuteWorkflowBatchRequest, ExecuteWorkflowBatchResponse

SLEEP = "bench-sleep"
_SLEEP: dict[str, Any] = {"name": SLEEP, "steps": [{"id": "wait", "kind": "sleep", "seconds": "input.seconds"}]}
_TIMER: dict[str, Any] = {
    "name": "bench-timer",
    "steps": [
        {"id": "wait", "kind": "sleep", "seconds": "input.seconds"},
        {"id": "woken", "kind": "task", "task": "bench.now", "needs": ["wait"]},
    ],
}
_EXECUTE = "/millstream.v1.WorkflowService/ExecuteWorkflowBatch"
_CANCEL = "/millstream.v1.RunService/CancelRuns"
_SLEEPERS = 1000
_SLEEP_S = 86_400
_RATE = 1000
_PER_CALL = 500
_LATE_MS = 50
_Begin = Callable[[list[float]], Awaitable[list[str]]]
"""Begins as many as there are times (Unix seconds), each due at its own; their ids."""
_RUNS_LATE = """SELECT s.run_at_us, a.output FROM task s JOIN task t ON t.run_id = s.run_id AND t.step = 2
JOIN attempt a ON a.day = t.day AND a.task_id = t.id AND a.number = t.attempt
WHERE s.run_id = ANY($1::uuid[]) AND s.step = 1"""
_TASKS_LATE = """SELECT t.run_at_us, a.output FROM task t
JOIN attempt a ON a.day = t.day AND a.task_id = t.id AND a.number = t.attempt WHERE t.id = ANY($1::uuid[])"""


async def _begin_runs(execute: rpc.Method, workflow: str, seconds: list[float]) -> list[str]:
    request = ExecuteWorkflowBatchRequest()
    for each in seconds:
        request.runs.add(workflow_id=workflow).input.struct_value.update({"seconds": each})
    answer = ExecuteWorkflowBatchResponse.FromString(await execute(request.SerializeToString()))
    ensure(answer.accepted == len(seconds) and not answer.failed, "runs", answer)
    return [result.run_id for result in answer.results]


@contextlib.asynccontextmanager
async def _sleeping(stand: Stand) -> AsyncIterator[Load]:
    """Runs that sleep from before the window until after it; then they are cancelled."""
    async with (
        serving(stand, _SLEEP),
        rpc.method(stand.grpc_port, _EXECUTE) as execute,
        rpc.method(stand.grpc_port, _CANCEL) as cancel,
    ):
        ids = await _begin_runs(execute, SLEEP, [float(_SLEEP_S)] * _SLEEPERS)

        async def load(seconds: float) -> Outcome:
            before, start = cpu_by_kind(stand.pids()), time.monotonic()
            await asyncio.sleep(seconds)
            took = time.monotonic() - start
            after = cpu_by_kind(stand.pids())
            return Outcome(1, took, notes={"PostgreSQL %": (after["postgres"] - before["postgres"]) / took * 100})

        yield load
        request = CancelRunsRequest(run_ids=ids)
        answer = CancelRunsResponse.FromString(await cancel(request.SerializeToString()))
        ensure(answer.accepted == len(ids), "cancelling", answer)


@contextlib.asynccontextmanager
async def _timers(stand: Stand) -> AsyncIterator[Load]:
    async with serving(stand, _TIMER) as acks, rpc.method(stand.grpc_port, _EXECUTE) as execute:

        async def begin(due: list[float]) -> list[str]:
            now = time.time()
            return await _begin_runs(execute, "bench-timer", [max(0.0, at - now) for at in due])

        async with _paced(stand, begin, acks.until, lambda: acks.total, _RUNS_LATE) as load:
            yield load


@contextlib.asynccontextmanager
async def _delayed(stand: Stand) -> AsyncIterator[Load]:
    async with serving(stand) as acks, rpc.method(stand.grpc_port, rpc.CREATE_TASKS) as create:

        async def begin(due: list[float]) -> list[str]:
            request = CreateTaskBatchRequest()
            for at in due:
                request.tasks.add(kind="bench.now").run_at.FromMicroseconds(round(at * 1e6))
            answer = CreateTaskBatchResponse.FromString(await create(request.SerializeToString()))
            ensure(len(answer.results) == len(due) and not answer.failed, "tasks", answer)
            return [result.task_id for result in answer.results]

        async with _paced(stand, begin, acks.until, lambda: acks.total, _TASKS_LATE) as load:
            yield load


@contextlib.asynccontextmanager
async def _paced(
    stand: Stand, begin: _Begin, until: Callable[[int, float], Awaitable[float]], done: Callable[[], int], late: str
) -> AsyncIterator[Load]:
    """First everything is begun, then it comes due, a millisecond apart, and is looked at when all of it is done."""
    connection = await stand.connect()

    async def load(seconds: float) -> Outcome:
        count, first, start = max(1, int(_RATE * seconds)), done(), time.monotonic()
        # Twice as long as they come due: what begins them must be over before the first of them does.
        lead = 0.5 + 2 * count / _RATE
        due_at = time.time() + lead
        due = [due_at + number / _RATE for number in range(count)]
        ids: list[str] = []
        for at in range(0, count, _PER_CALL):
            ids += await begin(due[at : at + _PER_CALL])
        early = due_at - time.time()
        end = await until(first + count, 60 + 4 * count / _RATE)
        lateness = await _lateness(connection, late, ids)
        took = end - start
        notes = {
            "fired/s": count / (end - start - lead),
            "all begun s before the first was due": early,
            "latest ms": percentile_ms(lateness, 1.0) or 0.0,
        }
        return Outcome(count, took, lateness, notes)

    yield load
    await connection.close()


async def _lateness(connection: asyncpg.Connection[Any], query: str, ids: list[str]) -> list[float]:
    """Seconds from when each was due until the worker's function ran, by its own clock."""
    found = await connection.fetch(query, ids)
    ensure(len(found) == len(ids), "timers", f"{len(found)} of {len(ids)} have ended")
    late = [Value.FromString(row["output"]).number_value - row["run_at_us"] / 1e6 for row in found]
    ensure(min(late) > -0.001, "a timer fired early", min(late))
    return late


def _fired(outcome: Outcome, _: dict[str, float]) -> float:
    return outcome.notes["fired/s"]


def _server_percent(outcome: Outcome, cpu_s: dict[str, float]) -> float:
    return cpu_s["server"] / outcome.seconds * 100


def _in_time(result: Result, _: object) -> bool:
    return all(sample.p99_ms is not None and sample.p99_ms < _LATE_MS for sample in result.rounds)


def rows() -> list[Row]:
    """Sleep, timers and delays."""
    aim = Aim(f"p99 < {_LATE_MS} ms late", _in_time)
    said = f"{_RATE:,} a second come due; ms: how late the worker's function runs"
    return [
        Row("sleep-1k", f"the server while {_SLEEPERS:,} runs sleep", _sleeping, unit="% of a core",
            value=_server_percent, aim=value_under(2, "% of a core"), stretch=10 / 3, rounds=1),
        Row("timers-1k", f"sleeping runs, of which {said} that the sleep's end begins", _timers, value=_fired, aim=aim),
        Row("delayed-1k", f"delayed tasks, of which {said}", _delayed, value=_fired, aim=aim),
    ]  # fmt: skip
