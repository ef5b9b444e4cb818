"""An event loop in a thread of its own, for calls to agents.

What agents are sent and answer is read and written as protobuf's JSON, which takes 70 ms a megabyte each way: on the
server's own loop all tenants would wait for that.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class Apart:
    """Runs coroutines in a thread; started with the first."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    async def run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What a coroutine returns or raises. One that is cancelled is waited for: it may have last words to say."""
        loop = self._started()
        done: Future[T] = Future()
        tasks: list[asyncio.Task[None]] = []

        async def carry_out() -> None:
            try:
                done.set_result(await work())
            except asyncio.CancelledError:
                done.cancel()
            except BaseException as error:
                done.set_exception(error)

        loop.call_soon_threadsafe(lambda: tasks.append(loop.create_task(carry_out())))
        waiting = asyncio.wrap_future(done)
        try:
            return await asyncio.shield(waiting)
        except asyncio.CancelledError:
            if waiting.done():
                # It was ended there, with the thread.
                raise
            with contextlib.suppress(RuntimeError):  # the loop may be closed, all of its work ended
                loop.call_soon_threadsafe(lambda: [task.cancel() for task in tasks])
            await asyncio.wait({waiting})
            if not waiting.cancelled():
                # It ended otherwise in that very moment; nobody asks any more.
                waiting.exception()
            raise

    async def close(self) -> None:
        """End the thread."""
        loop, thread = self._loop, self._thread
        self._loop = self._thread = None
        if loop is not None and thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            await asyncio.to_thread(thread.join)

    def _started(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=_run, args=(self._loop,), name=self._name, daemon=True)
            self._thread.start()
        return self._loop


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
