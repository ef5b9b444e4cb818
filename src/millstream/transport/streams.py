"""Answers that are streams: sent one by one, ended by their handler, by the caller, by an error or by a drain.

A handler is asked for its next answer when the last one was taken, so a slow reader holds no more than one. What ends
a stream early finds it between two writes: a write under way is never cancelled, it would break the stream before its
status (see work_stream).
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from typing import Any, Final

from google.protobuf.message import Message

from millstream.domain.errors import RateLimited, Unavailable
from millstream.domain.tracing import trace_id
from millstream.transport import errors
from millstream.transport.context import Context

CURSOR_HEADER: Final = "x-resume-cursor"
"""Trailing metadata of a stream that failed: what its caller resumes with."""
CURSOR_MOST: Final = 2048
"""A longer one is left out there: clients refuse metadata over 8 KiB. The stream's messages have told it."""


class Streams:
    """The streams under way: bounded, and known, so that a server that is going can end them and their callers go on
    at another.

    Args:
        most: Streams at once.
        most_of_tenant: Of them for one tenant.
    """

    def __init__(self, most: int = 1000, most_of_tenant: int = 100) -> None:
        self._most = most
        self._most_of_tenant = most_of_tenant
        self._by_tenant: Counter[str] = Counter()
        self._sendings: set[_Sending] = set()
        self._draining = False

    def __len__(self) -> int:
        return len(self._sendings)

    def drain(self) -> None:
        """End all streams, and those that still come, with UNAVAILABLE."""
        self._draining = True
        for sending in self._sendings:
            sending.drain()

    async def send(
        self, call: Any, context: Context, answers: AsyncGenerator[Message | bytes, None], camel_case: bool = False
    ) -> None:
        """Send a handler's answers; fields that an error names over REST are in `camel_case`. Raises what the handler
        raises, RateLimited where there are too many streams, and Unavailable when the server drains."""
        sending = _Sending(call, context)
        with self._room(context.principal.tenant, sending):
            try:
                async with contextlib.aclosing(answers):
                    await sending.run(answers)
            except Exception as error:
                told = errors.told(error, camel_case)
                await sending.say(errors.rest_body(told, context.correlation_id, trace_id(context.trace)))
                raise

    @contextlib.contextmanager
    def _room(self, tenant: str, sending: "_Sending") -> Iterator[None]:
        if len(self._sendings) >= self._most:
            raise RateLimited(f"this server answers {self._most:,} streams already (max_streams)", retry_after_s=5.0)
        if self._by_tenant[tenant] >= self._most_of_tenant:
            most = f"{self._most_of_tenant:,} streams (max_streams_per_tenant)"
            raise RateLimited(f"the tenant has {most} at this server already; end one of them", retry_after_s=5.0)
        self._by_tenant[tenant] += 1
        self._sendings.add(sending)
        if self._draining:
            sending.drain()
        try:
            yield
        finally:
            self._sendings.discard(sending)
            self._by_tenant[tenant] -= 1
            if not self._by_tenant[tenant]:
                del self._by_tenant[tenant]


class _Sending:
    """One stream. Belongs to the task that serves its call."""

    def __init__(self, call: Any, context: Context) -> None:
        self._call = call
        self._context = context
        self._task = asyncio.current_task()
        self._began = False
        self._asking = False
        self._drained = asyncio.Event()

    def drain(self) -> None:
        """End it, at once where its handler is being waited for."""
        self._drained.set()
        if self._asking and self._task is not None:
            self._task.cancel()

    async def run(self, answers: AsyncGenerator[Message | bytes, None]) -> None:
        """Send until there is no more."""
        while not self._drained.is_set():
            try:
                self._asking = True
                answer = await anext(answers)
            except StopAsyncIteration:
                if self._drained.is_set():
                    break
                return
            except asyncio.CancelledError:
                if not self._drained.is_set() or self._task is None:
                    raise
                self._task.uncancel()
                break
            finally:
                self._asking = False
            await self._write(answer)
        raise Unavailable("the server is going; resume the stream from the last cursor", retry_after_s=0.1)

    async def say(self, error: str) -> None:
        """Tell a reader over HTTP/1.1, which no longer sees a status, of the error that ends its stream."""
        context = self._context
        if self._began and context.rest and context.last_words is not None:
            with contextlib.suppress(Exception):
                await self._write(context.last_words(error))

    async def _write(self, answer: Message | bytes) -> None:
        if not self._began:
            # Not before there is an answer: what goes wrong first is told by a status of its own.
            self._began = True
            told = {"x-correlation-id": self._context.correlation_id, **self._context.headers}
            await self._call.send_initial_metadata(tuple(told.items()))
        # What many are sent was encoded for all of them.
        await self._call.write(answer if isinstance(answer, bytes) else answer.SerializeToString())
