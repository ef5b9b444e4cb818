"""A loop in a thread of its own: results, errors and last words come back, and nothing stays."""

import asyncio
import threading

import pytest

from millstream.adapters.agents.apart import Apart


async def test_work_is_done_in_another_thread() -> None:
    """What it returns and what it raises come back."""
    apart = Apart("apart")

    async def which() -> str:
        return threading.current_thread().name

    async def fails() -> None:
        raise ValueError("so it is")

    assert await apart.run(which) == "apart"
    with pytest.raises(ValueError, match="so it is"):
        await apart.run(fails)
    await apart.close()
    await apart.close()


async def test_who_is_cancelled_waits_for_last_words() -> None:
    """FV-19: as an agent has to be told."""
    apart = Apart("apart")
    begun, said = threading.Event(), []

    async def speaks() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            said.append("last words")

    waiting = asyncio.create_task(apart.run(speaks))
    await asyncio.to_thread(begun.wait)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert said == ["last words"]
    await apart.close()


async def test_what_is_left_ends_with_the_thread() -> None:
    """It is told, and the thread is gone."""
    apart = Apart("left behind")
    begun, ended = threading.Event(), threading.Event()

    async def lasts() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    waiting = asyncio.create_task(apart.run(lasts))
    await asyncio.to_thread(begun.wait)
    await apart.close()
    assert ended.is_set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert "left behind" not in {thread.name for thread in threading.enumerate()}
