"""What tasks log, on its way to the service: bounded, in batches, and kept until it is acknowledged.

Code may log from any thread, and never waits. Where lines come faster than they go, those for which there is no room
are left out, and one line says in their place how many they were.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Final

from google.protobuf.struct_pb2 import Value

from millstream.sdk.errors import PayloadError
from millstream.sdk.frames import Fence, frame
from millstream.sdk.payload import JsonValue, fill_value
from millstream.v1 import task_log_pb2 as wire
from millstream.v1.worker_service_pb2 import WorkRequest

TASK_BYTES: Final = 1024 * 1024
"""What may wait of an attempt."""
ALL_BYTES: Final = 8 * 1024 * 1024
"""What may wait of all."""
BATCH_BYTES: Final = 64 * 1024
BATCH_LINES: Final = 100
MESSAGE_BYTES: Final = 128 * 1024
"""Lines in a message: a report behind them waits no longer than for these."""
ATTEMPT_SHARE: Final = 4
"""An attempt may have one in so many of the window's bytes on their way."""
DELAY_S: Final = 0.05
"""How long lines wait for others, unless there is a batch."""
LINE_BYTES: Final = 32 * 1024
"""The contract's limit on a text, and on the fields."""
FIELD_DEPTH: Final = 20
"""Containers in containers of a field; the service takes no line with more than 30."""
_MOST_ACKED: Final = 2_000_000_000
_LINES: Final = wire.LogBatch.LINES_FIELD_NUMBER << 3 | 2
_LOGS: Final = WorkRequest.LOGS_FIELD_NUMBER << 3 | 2
_LOGS_TAG: Final = bytes((_LOGS & 0x7F | 0x80, _LOGS >> 7))
_LOG: Final = logging.getLogger("millstream.worker")


class AttemptLog:
    """The log of one attempt. Lines are numbered 1, 2, 3, ... as they are taken."""

    __slots__ = ("_buffer", "acked", "closed", "dropped", "ended", "fence", "lines", "sent", "sent_bytes", "size")

    def __init__(self, buffer: "LogBuffer", fence: Fence) -> None:
        self._buffer = buffer
        self.fence = fence
        self.lines: deque[bytes] = deque()
        self.size = 0
        self.acked = 0
        self.sent = 0
        self.sent_bytes = 0
        self.dropped = 0
        self.closed = False
        self.ended = False
        """The service takes no more of it."""

    def write(
        self, level: int, message: str, fields: Mapping[str, JsonValue], at_s: float | None = None, logger: str = ""
    ) -> None:
        """Takes a line, or counts it where there is no room. Never blocks, never raises; from any thread.

        Args:
            level: a number of `LogLine.Level`.
            fields: JSON; what is too large is left out.
            at_s: seconds since the epoch. Default: now.
        """
        line = wire.LogLine(level=level, message=_fitting(message), logger=_fitting(logger[:128]))  # type: ignore[arg-type]
        line.time.FromMicroseconds(int((time.time() if at_s is None else at_s) * 1e6))
        if fields:
            _put_fields(line, fields)
        self._buffer.add(self, frame(_LINES, line.SerializeToString()))

    def close(self) -> int:
        """The attempt has ended: the number of its last line."""
        return self._buffer.close(self)

    @property
    def last(self) -> int:
        """Number of the last line."""
        return self.acked + len(self.lines)


class LogBuffer:
    """The logs of a worker's attempts.

    Args:
        ready: called when there is something to send; on the loop that was bound.
    """

    def __init__(self) -> None:
        self.ready: Callable[[], object] = lambda: None
        self._lock = threading.Lock()
        self._logs: dict[Fence, AttemptLog] = {}
        self._size = 0
        self._sent_bytes = 0
        self._window = 0
        self._refused = False
        self._unsent = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waking = self._hurrying = False
        self._settled = asyncio.Event()
        self._settled.set()

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """To the loop on which lines are sent."""
        self._loop = loop

    def open(self, fence: Fence) -> AttemptLog:
        """The log of an attempt."""
        with self._lock:
            return self._logs.setdefault(fence, AttemptLog(self, fence))

    def add(self, log: AttemptLog, line: bytes) -> None:
        """Takes a line. From any thread."""
        with self._lock:
            if self._refused or log.ended or log.closed:
                return
            if log.size + len(line) > TASK_BYTES or self._size + len(line) > ALL_BYTES:
                log.dropped += 1
                return
            if log.dropped:
                self._mark(log)
            self._take(log, line)
            urgent = self._unsent >= BATCH_BYTES
            wake = not (self._hurrying if urgent else self._waking)
            self._waking, self._hurrying = True, self._hurrying or urgent
        if wake and self._loop is not None:
            self._loop.call_soon_threadsafe(self._wake, urgent)

    def close(self, log: AttemptLog) -> int:
        """No more comes of an attempt: the number of its last line."""
        with self._lock:
            if log.dropped and not (log.ended or self._refused):
                self._mark(log)
            log.closed = True
            last = log.last
            if not log.lines:
                self._forget(log)
        return last

    def discard(self, fence: Fence) -> None:
        """The lease was lost: what waits of its log is of no use."""
        with self._lock:
            log = self._logs.get(fence)
            if log is not None:
                self._end(log)

    # -- sending ----------------------------------------------------------------------------------------------

    def take(self) -> list[bytes]:
        """What is to go in the next message, as its fields: batches of several attempts in turn."""
        frames: list[bytes] = []
        size = 0
        with self._lock:
            for log in list(self._logs.values()) if self._unsent else ():
                if size >= MESSAGE_BYTES or self._sent_bytes >= self._window:
                    break
                if self._may_go(log) and not self._behind(log) and (found := self._batch(log)):
                    frames.append(found)
                    size += len(found)
                    # Its turn comes again behind the others.
                    self._logs[log.fence] = self._logs.pop(log.fence)
        return frames

    @property
    def waits(self) -> bool:
        """Whether there is more that may go now."""
        if not self._unsent or self._sent_bytes >= self._window:
            return False
        with self._lock:
            return any(log.sent < len(log.lines) and self._may_go(log) for log in self._logs.values())

    def acknowledge(self, ack: wire.LogAck) -> None:
        """The service tells how far it has stored the lines of an attempt."""
        with self._lock:
            log = self._logs.get(Fence(ack.task_id, ack.attempt))
            if log is None:
                return
            if ack.HasField("error"):
                _LOG.info("the log of task %s, attempt %d was refused: %s", ack.task_id, ack.attempt, ack.error.message)
                self._end(log)
                return
            if ack.offset < log.acked:
                # It asks for what it had acknowledged: nobody has that any more.
                if ack.again:
                    self._end(log)
                return
            self._stored(log, min(ack.offset, log.last))
            if ack.again:
                self._rewind(log)
            if log.closed and not log.lines:
                self._forget(log)
        if self.waits:
            self.ready()

    def restart(self, window: int) -> None:
        """For a new connection: what was not acknowledged goes again. `window`: bytes that may be on their way; 0:
        the service takes none."""
        with self._lock:
            self._window, self._refused = window, not window
            for log in list(self._logs.values()):
                if self._refused:
                    self._end(log)
                else:
                    self._rewind(log)
        if self.waits:
            self.ready()

    async def settled(self) -> None:
        """Waits until everything is acknowledged."""
        await self._settled.wait()

    # -- inside, under the lock -------------------------------------------------------------------------------

    def _take(self, log: AttemptLog, line: bytes) -> None:
        log.lines.append(line)
        log.size += len(line)
        self._size += len(line)
        self._unsent += len(line)
        if self._settled.is_set():
            self._settled.clear()

    def _mark(self, log: AttemptLog) -> None:
        cut, log.dropped = log.dropped, 0
        text = f"{cut:,} {'line was' if cut == 1 else 'lines were'} cut here: they came faster than they could be sent"
        line = wire.LogLine(level=wire.LogLine.WARN, message=text, cut=min(cut, _MOST_ACKED))
        line.time.FromMicroseconds(int(time.time() * 1e6))
        self._take(log, frame(_LINES, line.SerializeToString()))

    def _may_go(self, log: AttemptLog) -> bool:
        """One that floods has a part of the window: the lines of others do not wait behind its own."""
        return log.sent_bytes < self._window / ATTEMPT_SHARE

    def _behind(self, log: AttemptLog) -> bool:
        """An earlier attempt at the task has lines to send: once this one has logged, they would not be taken."""
        return any(
            other.fence.task_id == log.fence.task_id
            and other.fence.attempt < log.fence.attempt
            and other.sent < len(other.lines)
            for other in self._logs.values()
        )

    def _batch(self, log: AttemptLog) -> bytes:
        """The next lines of an attempt, as a field of the message; b"" where there are none."""
        if log.sent >= len(log.lines):
            return b""
        head = wire.LogBatch(task_id=log.fence.task_id, attempt=log.fence.attempt, offset=log.acked + log.sent + 1)
        parts = [head.SerializeToString()]
        size = 0
        for line in islice(log.lines, log.sent, log.sent + BATCH_LINES):
            if size and size + len(line) > BATCH_BYTES:
                break
            parts.append(line)
            size += len(line)
        log.sent += len(parts) - 1
        self._move(log, size)
        return _LOGS_TAG + frame(0, b"".join(parts))[1:]

    def _move(self, log: AttemptLog, size: int) -> None:
        """So many bytes more of it are on their way."""
        log.sent_bytes += size
        self._sent_bytes += size
        self._unsent -= size

    def _stored(self, log: AttemptLog, offset: int) -> None:
        while log.acked < offset:
            line = log.lines.popleft()
            log.acked += 1
            log.size -= len(line)
            self._size -= len(line)
            if log.sent:
                log.sent -= 1
                log.sent_bytes -= len(line)
                self._sent_bytes -= len(line)
            else:
                self._unsent -= len(line)
        self._settle()

    def _rewind(self, log: AttemptLog) -> None:
        self._move(log, -log.sent_bytes)
        log.sent = 0

    def _end(self, log: AttemptLog) -> None:
        log.ended, log.dropped = True, 0
        self._stored(log, log.last)
        self._forget(log)

    def _forget(self, log: AttemptLog) -> None:
        self._logs.pop(log.fence, None)
        self._settle()

    def _settle(self) -> None:
        if not self._size:
            self._settled.set()

    # -- on the loop ------------------------------------------------------------------------------------------

    def _wake(self, urgent: bool) -> None:
        if urgent:
            self._go()
        elif self._loop is not None:
            self._loop.call_later(DELAY_S, self._go)

    def _go(self) -> None:
        self._waking = self._hurrying = False
        if self.waits:
            self.ready()


def _fitting(text: str) -> str:
    """A text that the contract takes: of foreign code, it may hold anything."""
    data = text.encode("utf-8", "replace")
    if len(data) <= LINE_BYTES:
        return data.decode()
    return data[: LINE_BYTES - 16].decode("utf-8", "ignore") + " ... (cut)"


def _put_fields(line: wire.LogLine, fields: Mapping[str, JsonValue]) -> None:
    """Fields as they are, but for those that are no JSON, or too deep: their text."""
    for name, value in fields.items():
        field = line.fields.fields[_fitting(str(name))]
        try:
            fill_value(field, value)
            if _deep(field, FIELD_DEPTH):
                field.string_value = _fitting(_text(value))
        except (PayloadError, ValueError, TypeError, RecursionError):
            field.string_value = _fitting(_text(value))
    if line.fields.ByteSize() > LINE_BYTES:
        line.fields.Clear()
        line.fields.update({"cut": f"the fields were over {LINE_BYTES:,} bytes"})


def _deep(value: Value, levels: int) -> bool:
    """Whether containers in it are nested deeper than that."""
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        return levels == 0 or any(_deep(item, levels - 1) for item in value.struct_value.fields.values())
    if kind == "list_value":
        return levels == 0 or any(_deep(item, levels - 1) for item in value.list_value.values)
    return False


def _text(value: object) -> str:
    """What foreign code has to say of itself, if it can."""
    try:
        return str(value)
    except Exception as error:
        return f"a {type(value).__name__} that has no text: {type(error).__name__}"
