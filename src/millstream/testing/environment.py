"""The environment that tests use: code-first workflows in this process, with time that skips."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, Self

from millstream.sdk.handlers import TaskHandler, WorkflowHandler
from millstream.sdk.payload import JsonValue
from millstream.sdk.policies import Seconds, TypeRef, duration, type_name
from millstream.sdk.worker import Worker
from millstream.testing.runs import CodeRun, Publication, RunFailed, TestRun, moment
from millstream.testing.tasks import Served, faked
from millstream.testing.world import World

START: Final = datetime(2026, 1, 1, tzinfo=UTC)
"""When a test begins, unless it says."""
_NEVER_US: Final = 1 << 50
"""What a fake takes that never ends."""


class Environment:
    """Runs the workflows and tasks of workers in this process, without a service.

        async with Environment(worker) as env:
            env.fake_task("pay", lambda order: "paid")
            assert await env.execute("order", {"id": 7}) == "paid"

    Nothing waits: where all that is open waits for time, the clock goes on to the next event. What handlers do takes no
    time. Equal tests go the same way: clock, ids, chance and order are the same each time.

    Args:
        workers: whose workflows and kinds of tasks there are. They do not connect.
        start: what time it is at first.
        replays: lead each run that ends through its history again, so that code which would not survive a change of
            workers fails here.
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
                if isinstance(handler, TaskHandler):
                    world.tasks[kind] = Served(handler)
                elif isinstance(handler, WorkflowHandler):
                    world.workflows.setdefault(handler.spec.kind, {})[handler.spec.version] = handler
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

    # -- fakes ------------------------------------------------------------------------------------------------

    def fake_task(self, kind: str, fake: Any, *, takes: Seconds | None = 0) -> None:
        """Stands in for a kind of tasks, before or instead of a worker's handler.

        Args:
            fake: a function, sync or async, of the input (and the Context, if it takes two), which may raise TaskError;
                or an exception to raise; or what to return.
            takes: time that each attempt takes; None: it never ends, so that its timeout does.
        """
        takes_us = _NEVER_US if takes is None else duration(takes).ToMicroseconds()
        self._world.tasks[kind] = faked(kind, fake, takes_us)

    def fake_agent(self, name: str, consumes: TypeRef, fake: Callable[[Any], Any]) -> None:
        """Stands in for an agent: what is published of the type it consumes is given to `fake` as a dict; what that
        returns (a model, (type, dict), a list of these, None) is published too."""
        self._world.agents.append((name, type_name(consumes), fake))

    # -- runs -------------------------------------------------------------------------------------------------

    async def execute(self, workflow: str, input: JsonValue = None, *, version: str = "") -> JsonValue:  # noqa: A002
        """Runs a workflow to its end; its output. Raises as `start` and `TestRun.result`."""
        return await (await self.start(workflow, input, version=version)).result()

    async def start(
        self,
        workflow: str,
        input: JsonValue = None,  # noqa: A002  (the contract's name)
        *,
        version: str = "",
        run_id: str = "",
        signal: tuple[str, JsonValue] | None = None,
    ) -> TestRun:
        """Begins a run, and has it go on until it waits for time, or for something from outside.

        Args:
            version: default: the one that was registered last.
            signal: name and value of a signal to send with it: begins the run unless one of this run_id goes on
                already, and signals it either way.

        Raises:
            MillstreamError: NOT_FOUND, VALIDATION_ERROR, CONFLICT.
        """
        run = self._world.runs.get(run_id) if signal is not None else None
        run = run or self._world.begin(workflow, input, version, run_id)
        if signal is not None:
            self._world.signal(run, *signal)
        await self._world.settle()
        return TestRun(self, run)

    async def finish(self, run: CodeRun) -> JsonValue:
        """What `TestRun.result` does."""
        if not await self._world.go_on(lambda: run.ended):
            raise self._world.blocked()
        if run.status != "COMPLETED":
            raise RunFailed(run.code or run.status, run.message)
        return run.output

    async def signal(self, run_id: str, name: str, value: JsonValue = None) -> None:
        """Signals a run. Raises MillstreamError (CONFLICT) where it has ended, KeyError where there is none."""
        self._world.signal(self._world.runs[run_id], name, value)
        await self._world.settle()

    async def cancel(self, run_id: str, reason: str = "") -> None:
        """Begins to cancel a run. Raises MillstreamError (CONFLICT) where it has ended, KeyError: there is none."""
        self._world.cancel(self._world.runs[run_id], reason)
        await self._world.settle()

    async def resolve(self, key: str, value: JsonValue = None) -> None:
        """Resolves an open promise. Raises MillstreamError (NOT_FOUND) where there is none with this key."""
        self._world.settle_promise(key, value)
        await self._world.settle()

    async def reject(self, key: str, code: str = "REJECTED", message: str = "") -> None:
        """Rejects an open promise. Raises MillstreamError (NOT_FOUND) where there is none with this key."""
        self._world.settle_promise(key, code=code, message=message)
        await self._world.settle()

    # -- time and what is seen --------------------------------------------------------------------------------

    @property
    def now(self) -> datetime:
        """What time it is, in UTC."""
        return moment(self._world.clock.now_us)

    async def sleep(self, delay: Seconds) -> None:
        """Lets so much time pass, with everything that happens in it."""
        world = self._world
        until_us = world.clock.now_us + duration(delay).ToMicroseconds()
        await world.go_on(lambda: False, until_us)
        world.clock.now_us = max(world.clock.now_us, until_us)

    @property
    def published(self) -> Sequence[Publication]:
        """Artifacts that runs, tasks and fake agents published, in order."""
        return tuple(self._world.published)
