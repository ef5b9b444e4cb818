"""The worker: registers functions, takes tasks, runs them, reports."""

import asyncio
import logging
import os
import random
import signal
import socket
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, nullcontext
from types import TracebackType
from typing import Any, Final, Self, TypeVar, Unpack

import grpc

from millstream.sdk.activations import LiveRuns
from millstream.sdk.calls import Calls
from millstream.sdk.channel import check_target, credentials, open_channel
from millstream.sdk.errors import from_rpc
from millstream.sdk.execution import Threads
from millstream.sdk.handlers import AgentOptions, Consumes, Function, Publishes, Registry
from millstream.sdk.logs import send_task_loggers
from millstream.sdk.outbox import Outbox
from millstream.sdk.payloads import Payloads
from millstream.sdk.session import Session
from millstream.sdk.slots import Slots
from millstream.v1 import worker_pb2

FunctionT = TypeVar("FunctionT", bound=Function)

KEEPALIVE_S: Final = 30.0
FLUSH_TIMEOUT_S: Final = 5.0
"""How long the worker's end waits for the last acknowledgements."""
CLOSE_TIMEOUT_S: Final = 2.0
"""How long it then waits for the server to end the stream."""
CALL_TIMEOUT_S: Final = 30.0
CALL_RETRIES: Final = 7
"""Of calls about large payloads: they outlast a restart of the service."""
HOPELESS_SESSIONS: Final = 3
"""After so many streams in a row that ended in the same final refusal, before anything was stored, give up."""
_LOG: Final = logging.getLogger("millstream.worker")

# A refusal that another try cannot change. All else is an outage, and outages end.
_FINAL: Final = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)


class Worker:
    """Serves agents and kinds of standalone tasks.

        worker = Worker()

        @worker.agent(consumes=Order, publishes=Payment)
        async def payments(order: Order, ctx: Context) -> Payment: ...

        worker.run_forever()

    It keeps one stream to the service, connects again with a growing pause when that is lost, and goes on with
    what it holds. Tasks run at least once: `ctx.idempotency_token` is the same for all attempts of one.

    Args:
        target: `host:port` of the service, or of the proxy before it.
        name: for people, in `worker` of tasks and attempts. Default: host name and process id.
        slots: tasks taken at once, 1 to 10,000.
        api_key: who the worker is.
        queues: queues it takes tasks from. Default: "default", and those of its agents.
        threads: sync handlers that run at once. Default: `slots`, at most 64.
        drain_timeout: seconds that running tasks have to end when the worker stops.
        cancel_grace: seconds that a handler which looks at `ctx.cancelled` has to stop by itself.
        backoff: first and longest pause, in seconds, before it connects again.
        live_runs: runs of workflows that it keeps in memory between their steps; others are led through their history
            again.
    """

    def __init__(
        self,
        target: str = "127.0.0.1:7080",
        *,
        name: str = "",
        slots: int = 100,
        api_key: str | None = None,
        queues: Sequence[str] = (),
        threads: int | None = None,
        drain_timeout: float = 30.0,
        cancel_grace: float = 5.0,
        backoff: tuple[float, float] = (0.1, 10.0),
        live_runs: int = 1_000,
    ) -> None:
        """Nothing is connected yet. Raises ValueError where `slots` is out of range, or `target` not `host:port`."""
        check_target(target)
        if not 1 <= slots <= 10_000:
            raise ValueError(f"slots must be between 1 and 10,000, not {slots}")
        self.name = name or f"{socket.gethostname()}-{os.getpid()}"
        self.worker_id = str(uuid.uuid4())
        self._target = target
        self._slot_count = slots
        self._metadata = credentials(api_key)
        self._queues = list(queues)
        self._thread_count = threads or min(slots, 64)
        self._drain_timeout = drain_timeout
        self._cancel_grace = cancel_grace
        self._backoff = backoff
        self._live_runs = live_runs
        self._registry = Registry()
        self._session: Session | None = None
        self._closing = False
        self._stopping = asyncio.Event()
        self._welcomed = asyncio.Event()
        self._hurry = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    # -- what it serves ---------------------------------------------------------------------------------------

    def agent(
        self, *, consumes: Consumes, publishes: Publishes = (), **options: Unpack[AgentOptions]
    ) -> Callable[[FunctionT], FunctionT]:
        """Registers an agent: `f(artifact, ctx)` is called for each artifact that matches.

        It returns what it publishes: a model, several, or None; all of it is stored with the task's completion or
        not at all. The models register their types, by bare name and JSON Schema.

        Args:
            consumes: models, names of types (their payloads come as dicts), or Subscriptions.
            publishes: models or names of what it may publish. Empty: anything.
            options: see `AgentOptions`.

        Raises:
            ValueError: the name, or a type's name, is taken or no name.
        """

        def register(function: FunctionT) -> FunctionT:
            self._registry.add_agent(function, consumes, publishes, options)
            return function

        return register

    def task(
        self, kind: str, *, version: str = "", auto_heartbeat: bool | None = None
    ) -> Callable[[FunctionT], FunctionT]:
        """Registers a kind of standalone tasks: `f(input, ctx)` returns JSON, a model, or None.

        The input comes as what its parameter is annotated with, or as plain JSON. `millstream kinds` shows what it
        takes and returns, by its annotations, its docstring, and the `version`.

        Raises:
            ValueError: the kind is taken, or the version no version.
        """

        def register(function: FunctionT) -> FunctionT:
            self._registry.add_task(function, kind, auto_heartbeat, version)
            return function

        return register

    def workflow(self, name: str, *, version: str = "1") -> Callable[[FunctionT], FunctionT]:
        """Registers a workflow: `async def f(ctx, input)` is run again from its history whenever it has to be, so it
        takes time, chance and all that comes from outside from `ctx`, a WorkflowContext. What it returns is the run's
        output.

        Runs go only to workers that have their version; new ones get the version that was registered last.

        Raises:
            ValueError: this version of it is registered already, or the name or version is none.
            TypeError: the function is not async.
        """

        def register(function: FunctionT) -> FunctionT:
            self._registry.add_workflow(function, name, version)
            return function

        return register

    @property
    def registry(self) -> Registry:
        """Everything that it serves; `millstream.testing` runs it without a service."""
        return self._registry

    # -- running ----------------------------------------------------------------------------------------------

    def run_forever(self) -> None:
        """Runs until SIGTERM or SIGINT: the main function of a worker's process.

        Raises:
            ServiceError: the service refused the worker.
        """
        if not logging.getLogger().handlers:
            logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(self.run())

    async def run(self, *, handle_signals: bool = True) -> None:
        """Runs until `stop`, or SIGTERM or SIGINT. A second signal ends running tasks at once.

        Raises:
            ServiceError: the service refused the worker.
        """
        async with self._workplace() as (outbox, slots):
            with self._signals() if handle_signals else nullcontext():
                connections = asyncio.create_task(self._connections(outbox, slots))
                stopping = asyncio.create_task(self._stopping.wait())
                try:
                    await asyncio.wait({connections, stopping}, return_when=asyncio.FIRST_COMPLETED)
                    if stopping.done():
                        await self._drain(outbox, slots, connections)
                    else:
                        await connections
                finally:
                    stopping.cancel()
                    connections.cancel()
                    await asyncio.gather(stopping, connections, return_exceptions=True)

    def stop(self) -> None:
        """Asks the worker to finish what it has and end. Returns at once; `run` returns when it is done."""
        self._stopping.set()

    async def __aenter__(self) -> Self:
        """Returns when the service has welcomed the worker.

        Raises:
            ServiceError: the service refused the worker.
        """
        self._running = asyncio.create_task(self.run(handle_signals=False))
        welcomed = asyncio.create_task(self._welcomed.wait())
        try:
            await asyncio.wait({self._running, welcomed}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self._running.cancel()
            raise
        finally:
            welcomed.cancel()
        if self._running.done():
            self._running.result()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if self._running is not None:
            await self._running

    # -- inside -----------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _workplace(self) -> AsyncIterator[tuple[Outbox, Slots]]:
        pool = ThreadPoolExecutor(self._thread_count, thread_name_prefix="millstream-task")
        threads = Threads(pool, asyncio.Semaphore(self._thread_count))
        outbox = Outbox(max_unacked=max(1_000, self._slot_count))
        outbox.logs.bind(asyncio.get_running_loop())
        send_task_loggers()
        # Connects when a task has a large payload, and never where none has.
        transfers = open_channel(self._target, keepalive_s=KEEPALIVE_S)
        calls = Calls(transfers, self._metadata, CALL_TIMEOUT_S, CALL_RETRIES)
        live, handlers = LiveRuns(self._live_runs, calls), self._registry.handlers
        slots = Slots(self._slot_count, handlers, outbox, threads, Payloads(calls), live, self._cancel_grace)
        try:
            yield outbox, slots
        finally:
            slots.abort()
            pool.shutdown(wait=False, cancel_futures=True)
            await transfers.close()
            self._closing = False
            for event in (self._stopping, self._hurry, self._welcomed):
                event.clear()

    async def _connections(self, outbox: Outbox, slots: Slots) -> None:
        """Connects, serves, and connects again, until it is cancelled or refused."""
        pause = hopeless = 0
        while True:
            try:
                await self._connect(outbox, slots)
                _LOG.info("the stream to %s ended", self._target)
            except grpc.aio.AioRpcError as error:
                served, final = self._session is not None, error.code() in _FINAL
                progress = self._session is not None and self._session.acknowledged
                hopeless = hopeless + 1 if final and not progress else 0
                if final and (not served or hopeless >= HOPELESS_SESSIONS):
                    raise from_rpc(error) from error
                # An outage is told once, not with every try.
                level = logging.INFO if pause else logging.WARNING
                _LOG.log(level, "no connection to %s: %s", self._target, error.details())
            if self._closing:
                return
            if self._session is not None and self._session.acknowledged:
                pause = 0
            self._session = None
            await asyncio.sleep(self._pause(pause))
            pause += 1

    async def _connect(self, outbox: Outbox, slots: Slots) -> None:
        async with open_channel(self._target, keepalive_s=KEEPALIVE_S, own_connection=True) as channel:
            session = Session(channel, self._metadata, self._hello(), outbox, slots)
            await session.open()
            self._session = session
            if self._stopping.is_set():
                outbox.drain()
            _LOG.info("%s serves %d kinds of tasks at %s", self.name, len(self._registry.handlers), self._target)
            self._welcomed.set()
            await session.serve()

    def _hello(self) -> worker_pb2.WorkerHello:
        kinds, agents, types = self._registry.specs()
        return worker_pb2.WorkerHello(
            protocol=1,
            worker_id=self.worker_id,
            name=self.name[:128],
            kinds=[each.kind for each in kinds if each.category == worker_pb2.KindSpec.TASK],
            kind_specs=kinds,
            queues=self._queues,
            agents=agents,
            types=types,
            slots=self._slot_count,
        )

    def _pause(self, failures: int) -> float:
        """Seconds before the next try: doubling, half of it random so that workers do not come back at once."""
        first, longest = self._backoff
        whole = min(longest, first * 2.0 ** min(failures, 30))
        return whole * (0.5 + random.random() / 2)  # noqa: S311  (no secret)

    async def _drain(self, outbox: Outbox, slots: Slots, connections: asyncio.Task[None]) -> None:
        """Takes no more, finishes what runs, waits for the last acknowledgements, closes the stream."""
        outbox.drain()
        slots.close()
        await _first(self._drain_timeout, connections, slots.idle(), self._hurry.wait())
        if cut := slots.abort():
            _LOG.warning("%d tasks did not end in time; they will be tried again", cut)
        await _first(FLUSH_TIMEOUT_S, connections, slots.idle())
        await _first(FLUSH_TIMEOUT_S, connections, outbox.settled())
        await _first(FLUSH_TIMEOUT_S, connections, outbox.logs.settled())
        self._closing = True
        if self._session is not None:
            self._session.close()
            await _first(CLOSE_TIMEOUT_S, connections)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Has SIGTERM and SIGINT stop the worker, where this is the main thread of a Unix process."""
        loop = asyncio.get_running_loop()
        caught = []
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                try:
                    loop.add_signal_handler(number, self._signalled)
                    caught.append(number)
                except NotImplementedError:
                    break
        try:
            yield
        finally:
            for number in caught:
                loop.remove_signal_handler(number)

    def _signalled(self) -> None:
        if self._stopping.is_set():
            self._hurry.set()
        self.stop()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


async def _first(timeout_s: float, connections: asyncio.Task[None], *events: Coroutine[Any, Any, object]) -> None:
    """Waits for the first of the events, for the end of the connections, or until the time has passed."""
    tasks = [asyncio.ensure_future(event) for event in events]
    try:
        await asyncio.wait({connections, *tasks}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
