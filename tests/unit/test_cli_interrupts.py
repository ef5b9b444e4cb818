"""Ctrl-C at a command that waits for the service."""

import asyncio
import signal
import sys
import threading
from collections.abc import Iterator

import pytest

from millstream.cli.connect import call
from millstream.sdk import Client

PATIENCE_S = 10.0


@pytest.fixture
def one_at_a_time() -> Iterator[None]:
    """SIGINT as at the start of a program; and a thread runs until it waits for something."""
    handler, interval = signal.signal(signal.SIGINT, signal.default_int_handler), sys.getswitchinterval()
    sys.setswitchinterval(1_000)
    yield
    sys.setswitchinterval(interval)
    signal.signal(signal.SIGINT, handler)


@pytest.mark.usefixtures("one_at_a_time")
def test_ctrl_c_ends_a_command_that_sleeps() -> None:
    """Whichever thread the system gives the signal to; nothing else happens that would wake the main one."""
    waits, ended = threading.Event(), threading.Event()
    loops: list[asyncio.AbstractEventLoop] = []
    in_time: list[bool] = []

    async def work(_: Client) -> None:
        loops.append(asyncio.get_running_loop())
        waits.set()
        await asyncio.Event().wait()

    def interrupt() -> None:
        # The other thread goes on after this only when it sleeps.
        waits.wait()
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
        in_time.append(ended.wait(PATIENCE_S))
        if not in_time[0]:
            loops[0].call_soon_threadsafe(lambda: None)

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            call("127.0.0.1:1", None, work)
    finally:
        ended.set()
        thread.join()
    assert in_time == [True]


@pytest.mark.usefixtures("one_at_a_time")
def test_a_second_ctrl_c_does_not_wait_for_the_end_of_the_first() -> None:
    async def work(_: Client) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
            await asyncio.Event().wait()
        finally:
            signal.raise_signal(signal.SIGINT)
            pytest.fail("went on")

    with pytest.raises(KeyboardInterrupt):
        call("127.0.0.1:1", None, work)


@pytest.mark.usefixtures("one_at_a_time")
def test_nothing_of_it_stays_behind() -> None:
    before = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(before)

    async def work(_: Client) -> int:
        return signal.set_wakeup_fd(-1)

    assert call("127.0.0.1:1", None, work) != before
    assert signal.set_wakeup_fd(before) == before
