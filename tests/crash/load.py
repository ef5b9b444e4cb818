"""Clients that publish while things die: over REST and gRPC, async and sync, one by one, in batches and into shared
cascades, and standalone tasks; each with an idempotency key, tried again with the same key until it is answered."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
from tests.crash.flows import WORKFLOWS
from tests.crash.history import History, Op, Stored

from millstream.sdk import Client, MillstreamError, NewArtifact, RetryPolicy
from millstream.sdk.payload import JsonValue

TRY_S = 4.0
"""One try; a server that is stopped answers none."""
SYNC_S = 3.0
"""What a sync publish waits for its cascade."""
SIZES = {"batch": 5, "bulk": 80}
"""Orders of an operation, where they are more than one."""
TASK_RETRY = RetryPolicy(initial_interval=0.05, factor=1.5, maximum_interval=0.4, max_attempts=1000)
_REFUSALS = frozenset(
    {
        "VALIDATION_ERROR", "BAD_REQUEST", "PAYLOAD_TOO_LARGE", "UNAUTHENTICATED", "FORBIDDEN", "NOT_FOUND",
        "METHOD_NOT_ALLOWED", "CONFLICT", "IDEMPOTENCY_CONFLICT", "NOT_IMPLEMENTED",
    }
)  # fmt: skip


class Retry(Exception):
    """No answer, or one that asks to be called again."""


class Refused(Exception):
    """A final answer that it was not done."""


class Rest:
    """A client of the REST door."""

    def __init__(self, url: str) -> None:
        self.name = "rest"
        self._http = httpx.AsyncClient(base_url=url, timeout=TRY_S, trust_env=False)

    async def close(self) -> None:
        """Disconnect."""
        await self._http.aclose()

    async def order(self, op: Op) -> None:
        """Publish one order, at once."""
        body = {"type": "Order", "payload": {"order_id": op.orders[0]}}
        answer = await self._post("/api/v1/artifacts", body | ({"correlation_id": op.run} if op.run else {}), op)
        op.stored = [Stored(op.orders[0], answer["artifact_id"], answer["correlation_id"])]

    async def sync(self, op: Op) -> None:
        """Publish one order and wait for its cascade."""
        # What the SDK sends too, to the letter: a key stands for one request.
        body = {"type": "Order", "payload": {"order_id": op.orders[0]}, "timeout": SYNC_S, "filters": {}}
        answer = await self._post("/api/v1/artifacts/sync", body, op)
        first = next(item for item in answer["artifacts"] if item["type"] == "Order")
        op.stored = [Stored(op.orders[0], first["id"], answer["correlation_id"])]
        op.cascade = [item["id"] for item in answer["artifacts"]] if answer["completed"] else []

    async def batch(self, op: Op) -> None:
        """Publish several orders, each under its key."""
        items = [
            {"type": "Order", "payload": {"order_id": order}, "idempotency_key": f"key-{order}"} for order in op.orders
        ]
        answer = await self._post("/api/v1/artifacts/batch", {"artifacts": items})
        found = answer["results"]
        _take_batch(op, [(item["status"], item["artifact_id"], item["correlation_id"]) for item in found])

    async def task(self, op: Op) -> None:
        """Create a standalone task."""
        retry = {"initial_interval": "0.05s", "factor": 1.5, "maximum_interval": "0.4s", "max_attempts": 1000}
        body = {"kind": "crash.echo", "input": {"key": op.orders[0]}, "retry": retry}
        answer = await self._post("/api/v1/tasks", body, op)
        op.stored = [Stored(op.orders[0], answer["task_id"], answer["run_id"])]

    async def execute(self, op: Op) -> None:
        """Begin a run of a workflow."""
        workflow, given = WORKFLOWS[op.kind], {"key": op.orders[0]}
        if op.kind == "code":
            answer = await self._post("/api/v1/runs", {"workflow": workflow, "input": given}, op)
        else:
            answer = await self._post(f"/api/v1/workflows/{workflow}/execute", {"input": given}, op)
        op.stored = [Stored(op.orders[0], answer["run_id"], answer["run_id"])]

    async def _post(self, path: str, body: object, op: Op | None = None) -> dict[str, Any]:
        headers = {"content-type": "application/json"}
        if op is not None:
            headers["x-idempotency-key"] = f"key-{op.orders[0]}"
        try:
            answer = await self._http.post(path, content=json.dumps(body), headers=headers)
        except httpx.HTTPError as error:
            raise Retry(type(error).__name__) from error
        try:
            fields = answer.json()
        except ValueError:
            raise Retry(f"no JSON: {answer.status_code} {answer.text[:80]}") from None
        if answer.is_success:
            found: dict[str, Any] = fields
            return found
        code = fields.get("code", f"no code: {answer.text[:80]}")
        if code in _REFUSALS:
            raise Refused(f"{code}: {fields.get('message')}")
        raise Retry(code)


class Grpc:
    """A client of the gRPC door: the SDK's, whose own retries are off, so that each try is recorded."""

    def __init__(self, name: str, target: str) -> None:
        self.name = name
        self._client = Client(target, timeout=TRY_S, retries=0)

    async def close(self) -> None:
        """Disconnect."""
        await self._client.close()

    async def order(self, op: Op) -> None:
        """Publish one order, at once."""
        with _told():
            answer = await self._client.publish(
                _order(op.orders[0]), correlation_id=op.run, idempotency_key=f"key-{op.orders[0]}"
            )
        op.stored = [Stored(op.orders[0], answer.artifact_id, answer.correlation_id)]

    async def sync(self, op: Op) -> None:
        """Publish one order and wait for its cascade."""
        with _told():
            # The SDK's own deadline for this call is longer than a try may take here.
            async with asyncio.timeout(TRY_S):
                answer = await self._client.publish_sync(
                    _order(op.orders[0]), timeout=SYNC_S, idempotency_key=f"key-{op.orders[0]}"
                )
        first = next(item for item in answer.artifacts if item.type == "Order")
        op.stored = [Stored(op.orders[0], first.id, answer.correlation_id)]
        op.cascade = [item.id for item in answer.artifacts] if answer.completed else []

    async def batch(self, op: Op) -> None:
        """Publish several orders, each under its key."""
        with _told():
            found = await self._client.publish_batch(
                [NewArtifact(_order(order), idempotency_key=f"key-{order}") for order in op.orders]
            )
        _take_batch(op, [(item.status, item.id, item.run_id) for item in found])

    async def task(self, op: Op) -> None:
        """Create a standalone task."""
        with _told():
            key = f"key-{op.orders[0]}"
            answer = await self._client.tasks.create(
                "crash.echo", {"key": op.orders[0]}, retry=TASK_RETRY, idempotency_key=key
            )
        op.stored = [Stored(op.orders[0], answer.task_id, answer.run_id)]

    async def execute(self, op: Op) -> None:
        """Begin a run of a workflow."""
        workflow, key = WORKFLOWS[op.kind], f"key-{op.orders[0]}"
        given: JsonValue = {"key": op.orders[0]}
        with _told():
            if op.kind == "code":
                run_id = (await self._client.runs.start(workflow, given, idempotency_key=key)).run_id
            else:
                run_id = (await self._client.workflows.execute(workflow, given, idempotency_key=key)).run_id
        op.stored = [Stored(op.orders[0], run_id, run_id)]


Door = Rest | Grpc


def _order(order: str) -> tuple[str, dict[str, str]]:
    return ("Order", {"order_id": order})


def _take_batch(op: Op, found: Sequence[tuple[str, str, str]]) -> None:
    """Note what was stored. Raises Retry where an item was not: the whole batch goes again, under the same keys."""
    op.stored = [
        Stored(order, artifact_id, run)
        for order, (status, artifact_id, run) in zip(op.orders, found, strict=True)
        if status in ("accepted", "duplicate")
    ]
    if len(op.stored) < len(op.orders):
        raise Retry("items failed")


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """The SDK's errors as Retry or Refused."""
    try:
        yield
    except MillstreamError as error:
        if error.code in _REFUSALS:
            raise Refused(str(error)) from error
        raise Retry(error.code) from error
    except TimeoutError as error:
        raise Retry("TIMEOUT") from error


@dataclass
class Load:
    """Clients in closed loops, from `start` to `finish`.

    Attributes:
        pause_s: The longest pause between two operations of a client.
        patience_s: How long an operation is tried.
        joiners: Clients besides, which only publish into the shared cascades.
        kinds: Which operations, by weight. "bulk" is a batch large enough to be written while the next is decided.
        on_ok: Called with each acknowledged operation.
    """

    history: History
    doors: Sequence[Door]
    seed: int
    clients: int = 8
    pause_s: float = 0.04
    patience_s: float = 30.0
    joiners: int = 0
    kinds: dict[str, int] = field(
        default_factory=lambda: {"order": 39, "sync": 20, "join": 15, "batch": 10, "bulk": 1, "task": 15}
    )
    _stopping: bool = False
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _shared: list[str] = field(default_factory=list)
    ok_at: list[tuple[float, str]] = field(default_factory=list)
    """When each operation was acknowledged (of the loop's clock), and through which door."""

    def start(self) -> None:
        """Begin."""
        self._shared = [str(uuid.uuid4()) for _ in range(3)]
        for number in range(self.clients + self.joiners):
            door = self.doors[number % len(self.doors)]
            kinds = self.kinds if number < self.clients else {"join": 1}
            client = self._client(door, random.Random(f"{self.seed}/{number}"), kinds)
            self._tasks.append(asyncio.create_task(client))

    @contextlib.contextmanager
    def light(self) -> Iterator[None]:
        """Less load for the length of the block, in which a program is to start on few cores."""
        usual, self.pause_s = self.pause_s, 10 * self.pause_s
        try:
            yield
        finally:
            self.pause_s = usual

    async def finish(self) -> None:
        """Begin no more; wait for the operations under way. Raises what a client raised."""
        self._stopping = True
        await asyncio.gather(*self._tasks)
        self._tasks.clear()

    async def acknowledged(self, count: int, timeout_s: float = 60.0) -> None:
        """Wait until so many more writes are acknowledged."""
        wanted = self.history.acknowledged + count
        async with asyncio.timeout(timeout_s):
            while self.history.acknowledged < wanted:
                for task in self._tasks:
                    if task.done():
                        task.result()
                await asyncio.sleep(0.01)

    async def _client(self, door: Door, chance: random.Random, kinds: dict[str, int]) -> None:
        names, weights = list(kinds), list(kinds.values())
        while not self._stopping:
            kind = chance.choices(names, weights)[0]
            # Never seeded: a key used before would only be answered again.
            orders = [str(uuid.uuid4()) for _ in range(SIZES.get(kind, 1))]
            await self.run(door, kind, orders, chance)
            await asyncio.sleep(chance.uniform(0, self.pause_s))

    async def run(self, door: Door, kind: str, orders: list[str], chance: random.Random) -> Op:
        """One operation, to its end."""
        run = ""
        if kind == "join":
            # A cascade that several clients publish into, through both servers; now and then another one.
            place = chance.randrange(len(self._shared))
            if chance.random() < 0.1:
                self._shared[place] = str(uuid.uuid4())
            run = self._shared[place]
        op = self.history.invoke(kind, door.name, orders, run)
        call = _call_of(door, kind)
        clock = asyncio.get_running_loop().time
        deadline, pause_s = clock() + self.patience_s, 0.03
        while True:
            try:
                await call(op)
            except Refused as refused:
                self.history.end(op, "fail", str(refused))
                return op
            except Retry as retry:
                self.history.retry(op, str(retry))
                if clock() > deadline:
                    self.history.end(op, "unknown", str(retry))
                    return op
                await asyncio.sleep(chance.uniform(0, pause_s))
                pause_s = min(pause_s * 2, 0.5)
            else:
                self.ok_at.append((clock(), door.name))
                self.history.end(op, "ok")
                return op


def _call_of(door: Door, kind: str) -> Callable[[Op], Awaitable[None]]:
    calls = {"join": door.order, "sync": door.sync, "batch": door.batch, "bulk": door.batch, "task": door.task}
    return door.execute if kind in WORKFLOWS else calls.get(kind, door.order)


async def replay(doors: Sequence[Door], ops: Sequence[Op], chance: random.Random, most: int = 20) -> list[str]:
    """Make some acknowledged calls again, through any door, with their keys; what was not answered as the first time.

    A server may have died, and the database recovered, since.
    """
    acknowledged = [op for op in ops if op.outcome == "ok"]
    wrong: list[str] = []
    for op in chance.sample(acknowledged, min(most, len(acknowledged))):
        again = Op(op.number, op.kind, "", op.orders, op.run)
        try:
            await _call_of(chance.choice(doors), op.kind)(again)
        except (Retry, Refused) as error:
            wrong.append(f"{op.kind} {op.orders[0]} again: {error}")
        else:
            if again.stored != op.stored:
                wrong.append(f"{op.kind} {op.orders[0]} again: {again.stored}, first {op.stored}")
    return wrong


@contextlib.asynccontextmanager
async def doors_to(url: str, targets: dict[str, str]) -> AsyncIterator[list[Door]]:
    """Clients of REST at `url`, and of gRPC at each target by name."""
    doors: list[Door] = [Rest(url)] if url else []
    doors += [Grpc(name, target) for name, target in targets.items()]
    try:
        yield doors
    finally:
        for door in doors:
            await door.close()
