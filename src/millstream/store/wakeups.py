"""Wake-ups between servers: LISTEN and NOTIFY, coalesced.

A wake-up is a hint. It goes to the servers that asked for it, on a channel of each one's own; what a lost one
left is found by the safety poll. The first of a burst is sent at once, the rest together at least 2 ms later,
because each NOTIFY takes a lock over the whole instance. None waits for the disk: a hint need not outlive a crash.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable
from typing import Any

import asyncpg

from millstream.store.connections import Database, Record, connect

log = logging.getLogger(__name__)

GAP_S = 0.002
OFFERED_BYTES = 256 * 1024
"""What may wait of that which may be lost."""
_MOST_BYTES = 7000
"""NOTIFY takes less than 8,000 bytes."""
_NOTIFY = "SELECT pg_notify(c, p) FROM unnest($1::text[], $2::text[]) u(c, p)"

Message = tuple[str, ...]
"""("ready", tenant, queue, kind), ("ended", run), ("cancel" or "lost", task, attempt), ("registry", tenant),
("stored", tenant) of watched artifacts, ("event", run) of watched runs, ("logged", run) of watched logs,
("stream", run, task, attempt, index, value),
("pauses",), ("log levels",) or ("peers",)."""


def channel(lane: str) -> str:
    """The channel of a lane."""
    return "millstream_" + lane.replace("-", "")


class Wakeups:
    """Sends wake-ups to other lanes and receives this lane's own."""

    def __init__(self, url: str, database: Database, lane: str, receive: Callable[[Message], None]) -> None:
        self._url = url
        self._database = database
        self._lane = lane
        self._receive = receive
        self._waiting: dict[str, dict[Message, None]] = {}
        self._filled = asyncio.Event()
        self._offered = 0
        self._connection: asyncpg.Connection[Record] | None = None
        self.passed_over: Callable[[], None] = lambda: None
        """Called when something that was offered is not sent."""
        self.listening = asyncio.Event()
        """Set while wake-ups from others are heard."""

    def offer(self, lane: str, message: Message) -> None:
        """Send something that may be lost, as it is where too much waits already."""
        size = sum(map(len, message))
        if self._offered + size <= OFFERED_BYTES:
            self._offered += size
            self.send(lane, message)
        else:
            self.passed_over()

    def send(self, lane: str, message: Message) -> None:
        """Wake a lane; equal messages that wait count once."""
        self._waiting.setdefault(lane, {})[message] = None
        self._filled.set()

    async def run_sender(self) -> None:
        """Send what waits, until cancelled."""
        while True:
            await self._filled.wait()
            self._filled.clear()
            waiting, self._waiting = self._waiting, {}
            self._offered = 0
            channels, payloads = [], []
            for lane, messages in waiting.items():
                for payload in _payloads(list(messages)):
                    channels.append(channel(lane))
                    payloads.append(payload)
            try:
                await (self._connection or self._database).execute(_NOTIFY, channels, payloads)
            except Exception as error:
                log.warning("a wake-up was not sent; the safety poll will find it", exc_info=error)
            await asyncio.sleep(GAP_S)

    async def run_receiver(self) -> None:
        """Listen until cancelled, connecting again when the connection is lost."""
        while True:
            connection: asyncpg.Connection[Record] | None = None
            lost = asyncio.Event()
            try:
                connection = await connect(self._url, {"tcp_user_timeout": "5000", "synchronous_commit": "off"})
                connection.add_termination_listener(lambda _, lost=lost: lost.set())
                await connection.add_listener(channel(self._lane), self._heard)
                self._connection = connection
                self.listening.set()
                await lost.wait()
            except Exception as error:
                log.debug("not listening: %s", error)
            finally:
                self.listening.clear()
                self._connection = None
                if connection is not None:
                    with contextlib.suppress(Exception):
                        connection.terminate()
            await asyncio.sleep(0.2)

    def _heard(self, connection: Any, pid: int, name: str, payload: object) -> None:
        for message in json.loads(str(payload)):
            try:
                self._receive(tuple(message))
            except Exception:
                log.exception("a wake-up was not understood")


def _payloads(messages: list[Message]) -> list[str]:
    """JSON arrays of messages, each below NOTIFY's limit."""
    found: list[str] = []
    part: list[str] = []
    size = 2
    for message in messages:
        text = json.dumps(message)
        if part and size + len(text) > _MOST_BYTES:
            found.append(f"[{','.join(part)}]")
            part, size = [], 2
        part.append(text)
        size += len(text) + 1
    found.append(f"[{','.join(part)}]")
    return found
