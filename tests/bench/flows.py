"""Rows of workflows: three steps one after the other, as a definition and as code, and a map."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import orjson
from tests.bench import rest, rpc
from tests.bench.acks import Acks
from tests.bench.artifacts import latency_floor, rate_floor
from tests.bench.load import closed_loop, ensure
from tests.bench.meters import resident_bytes
from tests.bench.report import Aim, Floor, Load, Outcome, Row, at_least, p50_under
from tests.bench.stand import Stand

from millstream.sdk import Client
from millstream.v1.run_pb2 import Run
from millstream.v1.run_service_pb2 import StartRunRequest, StartRunResponse
from millstream.v1.workflow_service_pb2 import ExecuteWorkflowSyncRequest, ExecuteWorkflowSyncResponse

STEPS: dict[str, Any] = {
    "name": "bench-steps",
    "steps": [
        {"id": "first", "kind": "task", "task": "bench.step"},
        {"id": "second", "kind": "task", "task": "bench.step", "needs": ["first"], "input": "${steps.first.output}"},
        {"id": "third", "kind": "task", "task": "bench.step", "needs": ["second"], "input": "${steps.second.output}"},
    ],
    "output": "${steps.third.output}",
}
MAP: dict[str, Any] = {
    "name": "bench-map",
    "steps": [
        {
            "id": "all", "kind": "map", "over": "input.items",
            "each": {"kind": "task", "task": "bench.step", "input": "${item}"},
        }
    ],
    "output": "${steps.all.output}",
}  # fmt: skip
ITEMS = 10_000
_INPUT: dict[str, Any] = {"number": 17, "text": "what the run is given"}
_EXECUTE = "/millstream.v1.WorkflowService/ExecuteWorkflowSync"
_START = "/millstream.v1.RunService/StartRun"
_WAIT_S = 30.0
_MAP_WAIT_S = 300.0
_GRAPH_COMMITS = 4
"""The start, and the end of each step, which begins the next."""
_CODE_COMMITS = 5
"""The code also answers the start; what it says to the end of a step comes along with that."""
_PEERS = "peers on like work: Restate 5.2 ms (1 client), 590/s (64); DBOS 6.7 ms, 125/s"
_Prepare = Callable[[Stand], contextlib.AbstractAsyncContextManager[Load]]
_Answer = ExecuteWorkflowSyncResponse | StartRunResponse


async def define(port: int, *definitions: dict[str, Any]) -> None:
    """Let the server on a port have these workflows."""
    async with Client(f"127.0.0.1:{port}") as client:
        for definition in definitions:
            await client.workflows.apply(definition)


@contextlib.asynccontextmanager
async def serving(stand: Stand, *definitions: dict[str, Any]) -> AsyncIterator[Acks]:
    """A worker for the tasks and the code of these rows, and their definitions."""
    acks = Acks()
    await define(stand.grpc_port, *definitions)
    async with stand.worker(stand.grpc_port, "bench.flows", acks, suite="flows"):
        yield acks


def execute_request(workflow: str, value: dict[str, Any], timeout_s: float = _WAIT_S) -> bytes:
    """A run of a definition that is waited for."""
    request = ExecuteWorkflowSyncRequest(workflow_id=workflow, timeout=timeout_s)
    request.input.struct_value.update(value)
    return request.SerializeToString()


def _start_request() -> bytes:
    request = StartRunRequest(workflow="bench-code", wait=_WAIT_S)
    request.input.struct_value.update(_INPUT)
    return request.SerializeToString()


def _answered(answer: _Answer) -> None:
    good = answer.completed and answer.status == Run.COMPLETED and dict(answer.output.struct_value) == _INPUT
    ensure(good, "workflow", answer)


def _executed(raw: bytes) -> None:
    _answered(ExecuteWorkflowSyncResponse.FromString(raw))


def _started(raw: bytes) -> None:
    _answered(StartRunResponse.FromString(raw))


def _answered_rest(status: int, body: bytes) -> None:
    ensure(status in (200, 201), "workflow", (status, body))
    answer = orjson.loads(body)
    good = answer["completed"] is True and answer["status"] == "COMPLETED" and answer["output"] == _INPUT
    ensure(good, "workflow", body)


def _by_grpc(path: str, raw: bytes, callers: int, check: Callable[[bytes], None]) -> _Prepare:
    @contextlib.asynccontextmanager
    async def prepare(stand: Stand) -> AsyncIterator[Load]:
        async with serving(stand, STEPS), rpc.method(stand.grpc_port, path) as call:

            async def once() -> None:
                check(await call(raw))

            yield lambda seconds: closed_loop([once] * callers, seconds)

    return prepare


def _by_rest(path: str, body: Any, callers: int) -> _Prepare:
    raw = rest.post(path, body)

    @contextlib.asynccontextmanager
    async def prepare(stand: Stand) -> AsyncIterator[Load]:
        async with serving(stand, STEPS), rest.connections(stand.layout.port, callers) as connections:

            def caller(connection: rest.Connection) -> Callable[[], Awaitable[None]]:
                async def once() -> None:
                    _answered_rest(*await connection.request(raw))

                return once

            callables = [caller(connection) for connection in connections]
            yield lambda seconds: closed_loop(callables, seconds)

    return prepare


def _floor(door: str, callers: int, commits: int) -> Floor:
    echo = f"echo-{door}-c{callers}"
    return latency_floor(echo, commits) if callers == 1 else rate_floor(echo)


def _graph_rows() -> list[Row]:
    title = "three steps one after the other as a definition, started and waited for"
    aims: dict[int, Aim] = {1: p50_under(5), 64: at_least(1500)}
    raw = execute_request("bench-steps", _INPUT)
    path, body = "/api/v1/workflows/bench-steps/execute/sync", {"input": _INPUT, "timeout": _WAIT_S}
    rows = []
    for door, said in (("grpc", "over gRPC"), ("rest", "through REST")):
        for callers, aim in aims.items():
            load = _by_grpc(_EXECUTE, raw, callers, _executed) if door == "grpc" else _by_rest(path, body, callers)
            floor = _floor(door, callers, _GRAPH_COMMITS)
            about = f"{title} {said}, clients: {callers}"
            rows.append(Row(f"flow-{door}-c{callers}", about, load, aim=aim, floor=floor, remark=_PEERS))
    return rows


def _code_rows() -> list[Row]:
    title = "the same three steps as code of a worker, started and waited for"
    aims: dict[int, Aim] = {1: p50_under(8), 64: at_least(800)}
    raw = _start_request()
    body = {"workflow": "bench-code", "input": _INPUT, "wait": _WAIT_S}
    rows = []
    for door, said in (("grpc", "over gRPC"), ("rest", "through REST")):
        for callers, aim in aims.items():
            load = (
                _by_grpc(_START, raw, callers, _started) if door == "grpc" else _by_rest("/api/v1/runs", body, callers)
            )
            floor = _floor(door, callers, _CODE_COMMITS)
            about = f"{title} {said}, clients: {callers}"
            rows.append(Row(f"code-{door}-c{callers}", about, load, aim=aim, floor=floor, remark=_PEERS))
    return rows


@contextlib.asynccontextmanager
async def _map(stand: Stand) -> AsyncIterator[Load]:
    async with serving(stand, MAP), Client(f"127.0.0.1:{stand.grpc_port}") as client:

        async def load(seconds: float) -> Outcome:
            items = list(range(ITEMS if seconds > 1 else ITEMS // 100))
            pid = stand.pids()["server"][0]
            before, start = resident_bytes(pid), time.monotonic()
            answer = await client.workflows.execute_sync("bench-map", {"items": items}, timeout=_MAP_WAIT_S)
            took = time.monotonic() - start
            ensure(answer.output == items, "map", answer)
            notes = {"s in all": took, "server MB more": (resident_bytes(pid) - before) / 1e6}
            return Outcome(len(items), took, notes=notes)

        yield load


def rows() -> list[Row]:
    """Definitions, code, and the map."""
    title = f"one run with a map over {ITEMS:,} items, each a task (100 at once, the default), items"
    return [*_graph_rows(), *_code_rows(), Row("map-10k", title, _map, floor=rate_floor("engine-c256"))]
