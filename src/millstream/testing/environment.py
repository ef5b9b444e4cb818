"""The environment that tests use: workflows in this process, with time that skips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from millstream.application.paging import PageRequest
from millstream.domain.artifacts import EXTERNAL
from millstream.domain.principals import Principal
from millstream.domain.promises import Rejection, Resolution
from millstream.domain.runs import RunKind, RunStatus
from millstream.domain.struct_wire import Json, decode_struct, decode_value
from millstream.sdk.documents import read_documents
from millstream.sdk.errors import MillstreamError
from millstream.sdk.handlers import AgentHandler, WorkflowHandler
from millstream.sdk.histories import History
from millstream.sdk.payload import JsonValue
from millstream.sdk.policies import Seconds, TypeRef, duration, type_name
from millstream.sdk.worker import Worker
from millstream.testing.clock import EPOCH
from millstream.testing.engine import TENANT
from millstream.testing.runs import Blocked, Publication, RunFailed, TestRun, TestStep
from millstream.testing.wire import agent_of, encoded
from millstream.testing.work import Served, faked, faked_agent
from millstream.testing.world import World, plainly

START: Final = datetime(2026, 1, 1, tzinfo=UTC)
"""When a test begins, unless it says."""
_STEPS_MOST: Final = 1000


@dataclass(frozen=True, slots=True)
class Look:
    """How a run stands; see TestRun."""

    status: str
    state: dict[str, Json]
    events: list[str]


class Environment:
    """Runs the workflows, tasks and agents of workers in this process, and workflows as documents, without a service.

        async with Environment(worker) as env:
            env.fake_task("pay", lambda order: "paid")
            assert await env.execute("order", {"id": 7}) == "paid"

    Nothing waits: where all that is open waits for time, the clock goes on to the next event. What handlers do takes no
    time. Equal tests go the same way: clock, ids, chance and order are the same each time.

    Args:
        workers: whose workflows, agents and kinds of tasks there are. They do not connect.
        start: what time it is at first.
        replays: lead each run of code that ends through its history again, so that code which would not survive a
            change of workers fails here.
    """

    def __init__(self, *workers: Worker, start: datetime = START, replays: bool = True) -> None:
        """Nothing runs yet."""
        self._workers = workers
        self._start = start
        self._replays = replays
        self._entered: World | None = None

    async def __aenter__(self) -> Self:
        self._entered = world = World(self._start, self._replays)
        for worker in self._workers:
            for kind, handler in worker.registry.handlers.items():
                if isinstance(handler, WorkflowHandler):
                    world.code.versions.setdefault(handler.spec.kind, {})[handler.spec.version] = handler
                    continue
                world.work.served[kind] = Served(handler)
                if isinstance(handler, AgentHandler):
                    world.agents.add(agent_of(handler.spec))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._world.close()

    @property
    def _world(self) -> World:
        if self._entered is None:
            raise RuntimeError("use it with: async with Environment(...) as env")
        return self._entered

    # -- what there is ----------------------------------------------------------------------------------------

    async def define(self, *documents: Mapping[str, Any] | str | Path) -> None:
        """Makes workflows of documents, or the next versions of those that there are.

        Args:
            documents: dicts, JSON or YAML as text, or files of these, which may hold several.

        Raises:
            MillstreamError: VALIDATION_ERROR: says what is wrong with each field, as the service does.
            PayloadError: a text is neither JSON nor YAML.
        """
        for given in documents:
            for each in [given] if isinstance(given, Mapping) else read_documents(given):
                with plainly():
                    await self._world.documents.define(each)

    def fake_task(self, kind: str, fake: Any, *, takes: Seconds | None = 0) -> None:
        """Stands in for a kind of tasks, before or instead of a worker's handler.

        Args:
            fake: a function, sync or async, of the input (and the Context, if it takes two), which may raise TaskError;
                or an exception to raise; or what to return.
            takes: time that each attempt takes; None: it never ends, so that its timeout does.
        """
        self._world.work.served[kind] = faked(kind, fake, _microseconds(takes))
        self._world.engine.offer_waiting(kind)

    def fake_agent(
        self, name: str, consumes: TypeRef | Sequence[TypeRef], fake: Any, *, takes: Seconds | None = 0
    ) -> None:
        """Stands in for an agent, which is given what is published of a type, and what steps run it with.

        Args:
            fake: a function of the artifact's payload as a dict; what it returns (a model, (type, dict), a list of
                these, None) is published. Or an exception to raise.
            takes: time that each attempt takes; None: it never ends.
        """
        types = [consumes] if isinstance(consumes, str | type) else consumes
        served = faked_agent(name, [type_name(each) for each in types], fake, _microseconds(takes))
        self._world.work.served[f"agent:{name}"] = served
        self._world.agents.add(agent_of(served.handler.spec))  # type: ignore[arg-type]
        self._world.engine.offer_waiting(f"agent:{name}")

    # -- runs -------------------------------------------------------------------------------------------------

    async def execute(
        self,
        workflow: str,
        input: JsonValue = None,  # noqa: A002  (the contract's name)
        *,
        version: str = "",
        timeout: Seconds = 0,  # noqa: ASYNC109  (of the run)
    ) -> JsonValue:
        """Runs a workflow to its end; its output. Raises as `start` and `TestRun.result`."""
        return await (await self.start(workflow, input, version=version, timeout=timeout)).result()

    async def start(
        self,
        workflow: str,
        input: JsonValue = None,  # noqa: A002  (the contract's name)
        *,
        version: str = "",
        run_id: str = "",
        signal: tuple[str, JsonValue] | None = None,
        timeout: Seconds = 0,  # noqa: ASYNC109  (of the run)
    ) -> TestRun:
        """Begins a run, and has it go on until it waits for time, or for something from outside.

        Args:
            workflow: one of `define`, or else of the workers' code.
            version: default: the one that was defined or registered last.
            signal: name and value of a signal to send with it: begins the run unless one of this run_id goes on
                already, and signals it either way.
            timeout: how long it may take in all; 0: what its document says.

        Raises:
            MillstreamError: NOT_FOUND, VALIDATION_ERROR, CONFLICT.
        """
        timeout_us = duration(timeout).ToMicroseconds()
        run = await self._world.begin(workflow, input, version, run_id, signal, timeout_us)
        await self._world.settle()
        return TestRun(self, run.id)

    async def finish(self, run_id: str) -> JsonValue:
        """What `TestRun.result` does."""
        world, run = self._world, self._world.records.runs[run_id]
        if not await world.go_on(lambda: run.finished_us > 0):
            raise Blocked(f"nothing can go on: {world.waits()}")
        if run.status is not RunStatus.COMPLETED:
            raise RunFailed(run.error_code or run.status.name, run.error_message)
        return decode_value(world.records.output(run))

    def look(self, run_id: str) -> Look:
        """How a run stands. Raises KeyError where there is none."""
        records = self._world.records
        run = records.runs[run_id]
        state = records.state(run) if run.kind is RunKind.CODE else {}
        return Look(run.status.name, state, [each.name for each in records.events[run_id]])

    def history(self, run_id: str) -> History:
        """What `TestRun.history` does."""
        run = self._world.records.runs[run_id]
        if run.kind is not RunKind.CODE:
            raise MillstreamError("CONFLICT", f"run {run_id} has no history of code: it is no code-first run")
        return self._world.history(run)

    async def steps(self, run_id: str) -> dict[str, TestStep]:
        """What `TestRun.steps` does."""
        who = Principal("test", TENANT, frozenset())
        found = await self._world.steps.list(who, run_id, PageRequest(page_size=_STEPS_MOST))
        return {each.id: TestStep(each.status, decode_value(each.output)) for each in found.items}

    async def signal(self, run_id: str, name: str, value: JsonValue = None) -> None:
        """Signals a run. Raises MillstreamError: NOT_FOUND, CONFLICT where it has ended, or takes no signals."""
        self._world.signal(run_id, name, value)
        await self._world.settle()

    async def cancel(self, run_id: str, reason: str = "") -> None:
        """Begins to cancel a run. Raises MillstreamError: NOT_FOUND, CONFLICT where it has ended."""
        self._world.cancel(run_id, reason)
        await self._world.settle()

    async def resolve(self, key: str, value: JsonValue = None) -> None:
        """Resolves an open promise, by its key, its id, or its name where no other is called so. Raises MillstreamError
        (NOT_FOUND) where there is none."""
        self._world.settle_promise(key, Resolution(encoded(value)))
        await self._world.settle()

    async def reject(self, key: str, code: str = "REJECTED", message: str = "") -> None:
        """Rejects an open promise. Raises as `resolve`."""
        self._world.settle_promise(key, Rejection(code, message))
        await self._world.settle()

    # -- time and what is seen --------------------------------------------------------------------------------

    @property
    def now(self) -> datetime:
        """What time it is, in UTC."""
        return EPOCH + timedelta(microseconds=self._world.clock.now_us)

    async def sleep(self, delay: Seconds) -> None:
        """Lets so much time pass, with everything that happens in it."""
        world = self._world
        until_us = world.clock.now_us + duration(delay).ToMicroseconds()
        await world.go_on(lambda: False, until_us)
        world.clock.now_us = max(world.clock.now_us, until_us)

    @property
    def published(self) -> Sequence[Publication]:
        """Artifacts that runs and agents published, in order."""
        found = []
        for each in self._world.records.artifacts:
            by = "" if each.produced_by == EXTERNAL else each.produced_by
            found.append(Publication(each.type, decode_struct(each.payload), each.tags, by))
        return found


def _microseconds(takes: Seconds | None) -> int | None:
    return None if takes is None else duration(takes).ToMicroseconds()
