"""Random scripts of what callers and workers do, played on a world of two servers, and what is stored afterwards.

Everything is named by a number of the script's own, so that what two worlds store can be compared though their ids and
times differ.
"""

import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st
from tests.engine.database import Database, Postgres
from tests.engine.servers import eventually, starting
from tests.engine.workers import Worker, ref
from tests.engine.world import FOREVER, ROOT, agent, key, made, types

from millstream.application.engine.commands import Due
from millstream.application.ids import new_id
from millstream.application.views.leases import Lease
from millstream.application.views.promises import PromiseRef
from millstream.application.views.reports import AttemptFailure, Completion, Reports
from millstream.application.views.tasks import NewTask
from millstream.domain.agents import Join
from millstream.domain.artifacts import NewArtifact
from millstream.domain.bounds import Bounds
from millstream.domain.errors import MillstreamError
from millstream.domain.promises import NewPromise, Rejection, Resolution
from millstream.domain.retry import RetryPolicy
from millstream.domain.struct_wire import decode_struct, decode_value, encode_value
from millstream.wiring import Service

LATER = RetryPolicy(initial_us=60_000_000, jitter=0.0, max_attempts=2)
AGENTS = (
    agent("one", "Order", "Payment", priority=2),
    agent("two", "Order", "Payment", retry=LATER),
    agent("three", "Payment", "Order", retry=LATER),
    agent("pairs", ("Order", "Other"), "Payment", counts=(("Order", 2),)),
    agent("joined", ("Payment", "Other"), join=Join("artifact.partition_key", within_us=61_000_000)),
)
RUNS = 3
BOUNDS = {"one": Bounds("shop", 1), "two": Bounds("shop", 2, "mail", 3, 61_000_000)}
"""Of one key, so that each task is judged by its own limit."""

Step = tuple[Any, ...]
_SERVER = st.integers(0, 1)
_PICK = st.integers(0, 20)
STEPS: st.SearchStrategy[Step] = st.one_of(
    st.tuples(st.just("publish"), _SERVER, st.sampled_from(["Order", "Payment", "Other"]), st.integers(-1, RUNS - 1)),
    st.tuples(st.just("publish by key"), _SERVER, st.integers(0, 2), st.integers(-1, RUNS - 1)),
    st.tuples(st.just("create"), _SERVER, st.booleans()),
    st.tuples(st.just("create bounded"), _SERVER, st.sampled_from(["one", "two"])),
    st.tuples(st.just("complete"), _SERVER, _PICK, st.integers(0, 2)),
    st.tuples(st.just("complete"), _SERVER, _PICK, st.integers(0, 2)),
    st.tuples(st.just("complete again"), _SERVER, _PICK),
    st.tuples(st.just("fail"), _SERVER, _PICK, st.sampled_from([None, True, False])),
    st.tuples(st.just("release"), _SERVER, _PICK),
    st.tuples(st.just("cancel task"), _SERVER, _PICK),
    st.tuples(st.just("cancel run"), _SERVER, st.integers(0, RUNS - 1)),
    st.tuples(st.just("promise"), _SERVER, st.integers(0, 2)),
    st.tuples(st.just("settle"), _SERVER, _PICK, st.booleans()),
    st.tuples(st.sampled_from(["pause run", "resume run", "retry run"]), _SERVER, st.integers(0, RUNS - 1)),
    st.tuples(st.sampled_from(["pause run", "resume run", "retry run"]), _SERVER, st.integers(0, RUNS - 1)),
    st.tuples(st.just("worker"), _SERVER),
    st.tuples(st.just("time"), _SERVER, st.sampled_from([20, 61])),
)
SCRIPTS = st.lists(STEPS, min_size=10, max_size=30)


@dataclass
class World:
    """Two servers on a database, at most one worker, and what it holds or held.

    Attributes:
        told: What each step was answered, in words.
    """

    database: Database
    servers: tuple[Service, Service]
    runs: list[str]
    worker: Worker | None
    open: dict[str, Lease]
    ended: list[Lease]
    told: list[str]
    promises: list[str] = field(default_factory=list)
    number: int = 0

    async def play(self, script: Sequence[Step]) -> None:
        """Do one thing after the other, each when everything that followed from the last has happened."""
        for step in [("worker", 0), *script]:
            try:
                self.told.append(await self._do(step))
            except MillstreamError as error:
                self.told.append(error.code)
            await self._settle()

    async def _do(self, step: Step) -> str:
        match step:
            case ("publish", server, type_name, run):
                await self._server(server).artifacts.publish(ROOT, self._artifact(type_name, run), None)
            case ("publish by key", server, name, run):
                new = self._artifact("Other", run)
                published = await self._server(server).artifacts.publish(ROOT, new, key(f"k{name}"))
                return f"replayed {published.replayed}"
            case ("create", server, later):
                new_task = NewTask(
                    "sums",
                    encode_value(self._next()),
                    delay_us=60_000_000 if later else 0,
                    retry=LATER,
                    timeouts=FOREVER,
                )
                await self._server(server).tasks.create(ROOT, new_task, None)
            case ("create bounded", server, name):
                value = encode_value(self._next())
                bounded = NewTask("sums", value, retry=LATER, timeouts=FOREVER, bounds=BOUNDS[name])
                await self._server(server).tasks.create(ROOT, bounded, None)
            case ("complete", server, pick, count):
                return await self._complete(server, self._pick(pick), count)
            case ("complete again", server, pick) if self.ended:
                lease = self.ended[pick % len(self.ended)]
                return await self._report(server, completions=(_completion(lease, []),))
            case ("fail", server, pick, retryable) if lease := self._pick(pick):
                self._end(lease)
                failure = _failure(lease, retryable)
                return await self._report(server, failures=(failure,))
            case ("release", server, pick) if lease := self._pick(pick):
                self._end(lease)
                return await self._report(server, released=(ref(lease),))
            case ("cancel task", server, pick) if lease := self._pick(pick):
                await self._server(server).tasks.cancel(ROOT, lease.task.id, "no more", None)
            case ("cancel run", server, run):
                await self._server(server).runs.cancel(ROOT, self.runs[run], "no more", None)
            case ("promise", server, name):
                promise = NewPromise("ok", f"k{name}" if name else "", encode_value(self._next()), 50_000_000)
                made_now = await self._server(server).promises.create(ROOT, promise, None)
                self.promises.append(made_now.task.id)
            case ("settle", server, pick, good) if self.promises:
                outcome = Resolution(encode_value("yes")) if good else Rejection("NO", "no")
                ref_ = PromiseRef(self.promises[pick % len(self.promises)])
                await self._server(server).promises.settle(ROOT, ref_, outcome, None)
            case ("pause run", server, run):
                await self._server(server).run_operations.pause(ROOT, self.runs[run], "look", None)
            case ("resume run", server, run):
                await self._server(server).run_operations.resume(ROOT, self.runs[run], None)
            case ("retry run", server, run):
                await self._server(server).run_operations.retry(ROOT, self.runs[run], "once more", "", None)
            case ("worker", server):
                await self._change_worker(server)
            case ("time", server, seconds):
                await self.database.pass_time(seconds)
                await self._server(server).loops.poll()
            case _:
                return "nothing"
        return "done"

    def _server(self, number: int) -> Service:
        return self.servers[number]

    def _next(self) -> int:
        self.number += 1
        return self.number

    def _artifact(self, type_name: str, run: int = -1) -> NewArtifact:
        return made(type_name, self.runs[run] if run >= 0 else "", n=self._next())

    def _pick(self, pick: int) -> Lease | None:
        handles = sorted(self.open)
        return self.open[handles[pick % len(handles)]] if handles else None

    def _end(self, lease: Lease) -> None:
        del self.open[handle_of(lease)]
        self.ended.append(lease)

    async def _complete(self, server: int, lease: Lease | None, count: int) -> str:
        if lease is None:
            return "nothing"
        self._end(lease)
        publishes = {"one": "Payment", "two": "Payment", "three": "Order"}.get(lease.task.agent)
        artifacts = [self._artifact(publishes) for _ in range(count)] if publishes and self.number < 60 else []
        return await self._report(server, completions=(_completion(lease, artifacts),))

    async def _report(self, server: int, **reports: Any) -> str:
        """By the worker's connection where it is on that server, else as a simple worker would."""
        if self.worker is not None and self.worker.service is self.servers[server]:
            results = await self.worker.report(**reports)
        else:
            results = await self._server(server).workers.report(ROOT, Reports(**reports))
        return ",".join(result.error.code if result.error else "stored" for result in results)

    async def _change_worker(self, server: int) -> None:
        """The worker goes, for good, and another comes."""
        if self.worker is not None:
            await self.worker.ack(*self.open.values())
            await self.worker.close()
            self.open.clear()
            self.worker = None
            await self._settle()
            await self._server(server).loops.poll()
        service = self._server(server)
        kinds = ["sums", *(f"agent:{spec.name}" for spec in AGENTS)]
        worker_id = f"00000000-0000-7000-8000-{self._next():012}"
        self.worker = await Worker(service, kinds=kinds, slots=10_000, worker_id=worker_id).open()

    async def _settle(self) -> None:
        """Everything that follows has happened: whatever can be leased is, and has arrived."""
        for service in (*self.servers, *self.servers):
            await eventually(lambda service=service: _calm(service))  # type: ignore[misc]
        worker = self.worker
        while worker is not None and not worker.leases.empty():
            lease = worker.leases.get_nowait()
            self.open[handle_of(lease)] = lease


async def _calm(service: Service) -> bool:
    engine = service.engine
    await engine.look_for_work()
    await engine.submit(Due(task_ids=(), locked=True))
    busy = engine.dispatcher.wanting() or engine.dispatcher.wanted.is_set() or engine._deliveries
    return engine.lines.idle and not busy and not engine.queue.items and not engine._blocked_queue.items


def handle_of(lease: Lease) -> str:
    """The name of a task by the script's numbers."""
    number = decode_struct(lease.artifacts[0].payload)["n"] if lease.artifacts else decode_value(lease.task.input)
    return f"{number:04}{lease.task.kind}"


def _completion(lease: Lease, artifacts: list[NewArtifact]) -> Completion:
    return Completion(lease.task.id, lease.attempt, encode_value("out"), artifacts)


def _failure(lease: Lease, retryable: bool | None) -> AttemptFailure:
    return AttemptFailure(lease.task.id, lease.attempt, "BROKEN", "it broke", retryable)


@contextlib.asynccontextmanager
async def world(postgres: Postgres, name: str, owner_path: bool) -> AsyncIterator[World]:
    """A new world."""
    async with postgres.database(name) as database, contextlib.AsyncExitStack() as stack:
        servers = await starting(database, stack)(owner_path=owner_path, cancel_grace_s=30)
        async with Worker(servers[0], agents=AGENTS, known=types("Order", "Payment", "Other")):
            pass
        found = World(database, servers, [new_id() for _ in range(RUNS)], None, {}, [], [])
        yield found
        if found.worker is not None:
            await found.worker.close()


async def stored(found: World) -> dict[str, list[Any]]:
    """All that is stored, by table, in the script's names; of times only whether there is one."""
    database = found.database
    names: dict[str, str] = {"": "", **{run_id: f"run {n}" for n, run_id in enumerate(found.runs)}}
    artifacts = await database.rows("SELECT * FROM artifact ORDER BY run_id, seq")
    for row in artifacts:
        names[str(row["id"])] = f"artifact {decode_struct(row['payload'])['n']}"
    tasks = await database.rows("SELECT * FROM task ORDER BY id")
    for row in tasks:
        of = " and ".join(names[each] for each in row["artifact_ids"].split(","))
        of = of or f"input {decode_value(row['input'])}"
        names[str(row["id"])] = f"{row['kind']} of {of}"
    for row in sorted([*artifacts, *tasks], key=lambda row: names[str(row["id"])]):
        names.setdefault(str(row["run_id"]), f"run of {names[str(row['id'])]}")
    tables = {"artifact": artifacts, "task": tasks}
    for table in ("run", "event", "attempt", "idempotency"):
        tables[table] = await database.rows(f"SELECT * FROM {table}")
    tables["buffer"] = await database.rows(
        "SELECT tenant, agent, sub, run_id, key, arrived, waiting, opened_us, expires_us, parts FROM buffer"
    )
    return {table: sorted((_plain(row, names) for row in rows), key=str) for table, rows in tables.items()}


_UNTOLD = {"owner", "waiters"}


def _plain(row: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for name, value in row.items():
        if name == "day":
            continue
        if name.endswith("_us") or name in _UNTOLD:
            plain[name] = bool(value)
        elif name == "parts":
            plain[name] = [names[part[2]] for part in json.loads(value)]
        elif name == "response":
            plain[name] = [names[found] for found in json.loads(value)]
        elif name in ("id", "run_id", "task_id", "artifact_id"):
            plain[name] = names[str(value or "")]
        elif name == "artifact_ids":
            plain[name] = [names[found] for found in value.split(",") if found]
        else:
            plain[name] = value
    return plain
