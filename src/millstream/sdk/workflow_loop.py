"""The event loop that a workflow's code runs on: everything in it happens in the order of the code, never by time.

It has no clock, no sockets and no threads. What is ready runs first in, first out, until nothing is; time moves only
with the history. So the same history leads the same code through the same steps, on any worker, at any time.
"""

import asyncio
import contextvars
import sys
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Final, NoReturn, Protocol

TURNS_MOST: Final = 1_000_000
"""Steps of the code between two events; beyond, it turns in a circle (`while True: await asyncio.sleep(0)`)."""


class Stuck(Exception):
    """The code goes on and on without waiting for anything."""


class Timers(Protocol):
    """Makes durable timers of what code asks its loop to call later; see workflow_run."""

    def start(self, delay_s: float, fire: Callable[[], None]) -> int:
        """Starts one, and returns its number."""

    def cancel(self, number: int) -> None:
        """Stops one that has not fired."""

    def time_us(self) -> int:
        """The time of the event that is being looked at, microseconds since the epoch."""


class WorkflowLoop(asyncio.AbstractEventLoop):
    """Runs one workflow's code.

    Attributes:
        now_s: Seconds since the epoch: the time of the event that is being looked at.
    """

    def __init__(self, timers: Timers) -> None:
        self.now_s = 0.0
        self._timers = timers
        self._ready: deque[asyncio.Handle] = deque()
        self._tasks: dict[asyncio.Task[Any], None] = {}
        # By identity: two handles of the same call at the same time are equal to asyncio.
        self._numbers: dict[int, tuple[asyncio.TimerHandle, int]] = {}
        self._faults: list[BaseException] = []

    # -- running ----------------------------------------------------------------------------------------------

    def turn(self) -> None:
        """Runs until nothing is ready.

        Raises:
            Stuck: that never comes.
        """
        ready, left = self._ready, TURNS_MOST
        with self._entered():
            while ready:
                handle = ready.popleft()
                if not handle.cancelled():
                    handle._run()  # noqa: SLF001  # how every loop runs its handles
                left -= 1
                if not left:
                    raise Stuck(f"the workflow took {TURNS_MOST:,} steps without waiting for anything")

    @contextmanager
    def _entered(self) -> Iterator[None]:
        """This loop in place of the worker's, for the length of a turn."""
        outer = events._get_running_loop()  # noqa: SLF001  # the two functions that asyncio names for loops
        task = asyncio.current_task() if outer is not None else None
        hooks = sys.get_asyncgen_hooks()
        if outer is not None and task is not None:
            asyncio.tasks._leave_task(outer, task)  # noqa: SLF001  # since 3.14 a thread has one task at a time
        events._set_running_loop(self)  # noqa: SLF001
        sys.set_asyncgen_hooks(None, None)
        try:
            yield
        finally:
            sys.set_asyncgen_hooks(*hooks)
            events._set_running_loop(outer)  # noqa: SLF001
            if outer is not None and task is not None:
                asyncio.tasks._enter_task(outer, task)  # noqa: SLF001

    def discard(self) -> None:
        """Drops what the code has not done: its coroutines are closed, and nothing of it runs again."""
        tasks, self._tasks = [*self._tasks], {}
        with self._entered():
            for task in tasks:
                if task.done():
                    continue
                task._log_destroy_pending = False  # type: ignore[attr-defined]  # noqa: SLF001
                try:
                    task.get_coro().close()
                except BaseException as error:  # its own clean-up may not wait for anything any more
                    self._faults.append(error)
        self._ready.clear()
        self._faults.clear()

    # -- what asyncio asks of a loop --------------------------------------------------------------------------

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        """Queues a call."""
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """Starts a durable timer."""
        handle = asyncio.TimerHandle(self.now_s + delay, callback, args, self, context)
        if delay <= 0:
            self._ready.append(handle)
        else:
            self._numbers[id(handle)] = (handle, self._timers.start(delay, lambda: self._fire(handle)))
            handle._scheduled = True  # type: ignore[attr-defined]  # noqa: SLF001
        return handle

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """Starts a durable timer."""
        return self.call_later(when - self.now_s, callback, *args, context=context)

    def _fire(self, handle: asyncio.TimerHandle) -> None:
        if self._numbers.pop(id(handle), None) is not None and not handle.cancelled():
            self._ready.append(handle)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        found = self._numbers.pop(id(handle), None)
        if found is not None:
            self._timers.cancel(found[1])

    def time(self) -> float:
        """The time of the event that is being looked at."""
        self._timers.time_us()
        return self.now_s

    def create_future(self) -> "asyncio.Future[Any]":
        """A future of this loop."""
        return asyncio.Future(loop=self)

    def create_task(  # type: ignore[override]
        self, coro: Coroutine[Any, Any, Any], *, name: str | None = None, context: contextvars.Context | None = None
    ) -> "asyncio.Task[Any]":
        """A task of this loop."""
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=self, name=name, context=context)
        self._tasks[task] = None
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.pop(task, None)

    def get_debug(self) -> bool:
        """Never."""
        return False

    def is_running(self) -> bool:
        """Code only asks while it runs."""
        return True

    def is_closed(self) -> bool:
        """Never."""
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """What nobody awaited is nobody's."""

    def call_soon_threadsafe(self, *args: Any, **more: Any) -> NoReturn:  # type: ignore[override]
        """There are no threads here."""
        raise RuntimeError("workflow code has no threads: do this in a task, or in ctx.run")

    def run_in_executor(self, *args: Any, **more: Any) -> NoReturn:  # type: ignore[override]
        """There are no threads here."""
        raise RuntimeError("workflow code has no threads: do this in a task, or in ctx.run")


def _refused(name: str) -> Callable[..., NoReturn]:
    def refuse(self: WorkflowLoop, *args: Any, **more: Any) -> NoReturn:
        raise NotImplementedError(f"workflow code has no sockets, processes and threads ({name}): do this in a task")

    return refuse


for _name in dir(asyncio.AbstractEventLoop):
    # What stands in asyncio's own class raises without a word.
    if not _name.startswith("_") and _name not in vars(WorkflowLoop):
        setattr(WorkflowLoop, _name, _refused(_name))
