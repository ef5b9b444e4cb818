"""Ctrl-C, heeded at once."""

import asyncio
import signal
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, TypeVar

T = TypeVar("T")

_DRAINED_BYTES: Final = 64
"""Taken out at once; what is left wakes the loop again."""


def run(work: Coroutine[Any, Any, T]) -> T:
    """asyncio.run, where Ctrl-C need not wait for something else to happen.

    Python's own handler of a signal runs between two of its instructions. A signal that comes just before the main
    thread goes to sleep, or that the system gives to another thread (gRPC has some), wakes nobody: `asyncio.run` ends
    when the next message comes.

    Raises:
        KeyboardInterrupt: it was interrupted, and has cleaned up. A second Ctrl-C does not wait for that.
    """
    return asyncio.run(_heeding(work))


async def _heeding(work: Coroutine[Any, Any, T]) -> T:
    with _woken_by_signals():
        return await work


@contextmanager
def _woken_by_signals() -> Iterator[None]:
    """Each signal that has a handler wakes the running loop too: handlers themselves stay as they are."""
    loop = asyncio.get_running_loop()
    if threading.current_thread() is not threading.main_thread():  # it alone heeds signals
        yield
        return
    woken, waking = socket.socketpair()
    with woken, waking:
        woken.setblocking(False)
        waking.setblocking(False)
        if not _read_by(loop, woken, partial(woken.recv, _DRAINED_BYTES)):
            yield
            return
        # Where so many signals are waiting that none fits in any more, the loop is woken all the same.
        before = signal.set_wakeup_fd(waking.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            loop.remove_reader(woken)


def _read_by(loop: asyncio.AbstractEventLoop, readable: socket.socket, read: Callable[[], object]) -> bool:
    """Whether the loop can read sockets so; the one of Windows cannot, and is woken by signals anyway."""
    try:
        loop.add_reader(readable, read)
    except NotImplementedError:
        return False
    return True
