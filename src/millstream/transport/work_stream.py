"""A worker's connection: one reader, one writer, and between them the worker's session.

What grpc.aio asks for (each was found by trying):
- one coroutine writes, ever: everything goes through an outbox, which the writer empties into as few messages as
  possible;
- a `read` or `write` under way is never cancelled and never waited for with a time-out: the stream would be broken
  afterwards. So the reader fills an inbox, and deadlines are kept beside it;
- a finished `write` is no delivery, so the outbox is bounded in bytes, and a worker that does not read is dropped;
- a client that goes away may look like one that ends properly: both close the session.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import grpc
import structlog

from millstream.application.log_intake import WINDOW_BYTES
from millstream.application.views.leases import Cancellation, Lease
from millstream.application.views.reports import ReportResult, Reports
from millstream.domain.errors import RateLimited, TimedOut, ValidationFailed
from millstream.domain.task_logs import LogAck, latest
from millstream.transport.context import Context
from millstream.transport.mapping import task_logs as logs
from millstream.transport.mapping import workers as mapping
from millstream.transport.mapping.reports import Collected
from millstream.transport.pipeline import Stream
from millstream.transport.reading import Reader
from millstream.transport.use_cases import LogIntake, Workers, WorkerSession
from millstream.wire.v1.worker_service_pb2 import WorkRequest, WorkResponse

OUTBOX_BYTES: Final = 16 * 1024 * 1024
"""What may wait for a worker that does not read: over it, and without a message taken for STALLED_S, it is dropped. A
worker with room for many large tasks is sent more than this at once, and reads it in its own time."""
OUTBOX_MOST_BYTES: Final = 256 * 1024 * 1024
"""What may wait for any worker."""
STALLED_S: Final = 10.0
MESSAGE_BYTES: Final = 3 * 1024 * 1024
"""A message to a worker ends here, below the 4 MiB that gRPC clients take by default."""
INBOX_BYTES: Final = 16 * 1024 * 1024
"""What may wait of a worker's messages; over it, the reader stops, and gRPC's flow control slows the worker."""
HELLO_S: Final = 10.0
"""A connection says hello by then."""
LAST_WORDS_S: Final = 5.0
"""How long a worker that has ended its side may take to read the last acknowledgements."""
_SMALL_BYTES: Final = 120

_log: Final = structlog.get_logger("millstream.work")


class Outbox:
    """What a worker is to be told, coalesced until the writer comes by."""

    def __init__(self, correlation_id: str) -> None:
        self._correlation_id = correlation_id
        self._first: WorkResponse | None = None
        self._greeted = False
        self._leases: deque[Lease] = deque()
        self._cancellations: list[Cancellation] = []
        self._refused: list[ReportResult] = []
        self._log_acks: dict[tuple[str, int], LogAck] = {}
        self._ack = 0
        self._drain = False
        self._bytes = 0
        self._taken = 0
        self._watch: asyncio.TimerHandle | None = None
        self.overflown = False
        self.filled = asyncio.Event()
        self.on_overflow: Callable[[], None] = lambda: None

    def push(self, leases: list[Lease], cancellations: list[Cancellation], drain: bool) -> None:
        """Tell the worker; never blocks."""
        self._leases.extend(leases)
        self._cancellations += cancellations
        self._drain |= drain
        self._bytes += sum(lease.size_bytes for lease in leases) + _SMALL_BYTES * len(cancellations)
        self._added()

    def welcome(self, message: WorkResponse) -> None:
        """Greet; comes before all else."""
        self._first = message
        self._added()

    def ack(self, number: int, refused: list[ReportResult]) -> None:
        """Acknowledge all messages up to `number`, but for what was refused."""
        self._ack = max(self._ack, number)
        self._refused += refused
        self._bytes += _SMALL_BYTES * len(refused)
        self._added()

    def ack_logs(self, acks: list[LogAck]) -> None:
        """Tell how far lines are stored: of an attempt the latest only, but for why some were refused."""
        for ack in acks:
            key = (ack.task_id, ack.attempt)
            self._log_acks[key] = latest(self._log_acks.get(key), ack)
        self._bytes += _SMALL_BYTES * len(acks)
        self._added()

    def take(self) -> bytes | None:
        """The next message, or None where there is nothing to say yet; the first is the greeting."""
        self._taken += 1
        if not self._greeted:
            first, self._first = self._first, None
            self._greeted = first is not None
            return first.SerializeToString() if first is not None else None
        out = WorkResponse()
        size = 0
        while self._leases:
            next_bytes = self._leases[0].size_bytes
            if size + next_bytes > MESSAGE_BYTES and len(out.leases):
                break
            size += next_bytes
            mapping.put_lease(out.leases.add(), self._leases.popleft())
        if not self._leases:
            self._take_small(out)
        self._bytes -= min(size, self._bytes) if self._leases else self._bytes
        raw = out.SerializeToString()
        return raw or None

    def _take_small(self, out: WorkResponse) -> None:
        for cancellation in self._cancellations:
            mapping.put_cancellation(out.cancellations.add(), cancellation)
        for result in self._refused:
            mapping.put_result(out.refused.add(), result, self._correlation_id)
        for ack in self._log_acks.values():
            logs.put_ack(out.log_acks.add(), ack, self._correlation_id)
        self._log_acks = {}
        out.ack, out.drain = self._ack, self._drain
        self._cancellations, self._refused = [], []
        self._ack, self._drain = 0, False

    def close(self) -> None:
        """Nobody takes any more."""
        if self._watch is not None:
            self._watch.cancel()

    def _added(self) -> None:
        self.filled.set()
        if self._bytes > OUTBOX_MOST_BYTES:
            self._overflow()
        elif self._bytes > OUTBOX_BYTES and self._watch is None:
            self._look_later()

    def _look_later(self) -> None:
        self._watch = asyncio.get_running_loop().call_later(STALLED_S, self._look, self._taken)

    def _look(self, taken: int) -> None:
        self._watch = None
        if self._bytes <= OUTBOX_BYTES:
            return
        if self._taken == taken:
            self._overflow()
        else:
            self._look_later()

    def _overflow(self) -> None:
        if not self.overflown:
            self.overflown = True
            self.on_overflow()


class Inbox:
    """A worker's messages in the order they came."""

    def __init__(self) -> None:
        self._raw: deque[bytes] = deque()
        self._bytes = 0
        self._room = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.heard_at = self._loop.time()
        self.ended = False
        self.filled = asyncio.Event()

    async def fill(self, stream: Stream) -> None:
        """Read until the worker ends or goes away. Runs as a task of its own and is never cancelled."""
        with contextlib.suppress(Exception, asyncio.CancelledError):
            while not self.ended:
                raw = await stream.read()
                if raw is grpc.aio.EOF:
                    break
                self.heard_at = self._loop.time()
                self._raw.append(raw)
                self._bytes += len(raw)
                self.filled.set()
                while self._bytes > INBOX_BYTES and not self.ended:
                    self._room.clear()
                    await self._room.wait()
        self.end()

    def put_back(self, raw: list[bytes]) -> None:
        """Return messages that were taken but not used."""
        self._raw.extendleft(reversed(raw))
        self._bytes += sum(map(len, raw))

    def end(self) -> None:
        """There will be no more."""
        self.ended = True
        self.filled.set()
        self._room.set()

    async def take(self, silence_s: float) -> list[bytes]:
        """All messages that wait, at least one; [] at the end. Raises TimedOut after so much silence."""
        while not self._raw and not self.ended:
            self.filled.clear()
            left = self.heard_at + silence_s - self._loop.time()
            if left <= 0:
                raise TimedOut(f"nothing was heard of the worker for {silence_s:g} s")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self.filled.wait()
        raw = list(self._raw)
        self._raw.clear()
        self._bytes = 0
        self._room.set()
        return raw


_NOTHING: Final = Reports()


class WorkStream:
    """Serves one worker's connection."""

    def __init__(
        self, stream: Stream, context: Context, reader: Reader, workers: Workers, intake: LogIntake, version: str
    ) -> None:
        self._stream = stream
        self._intake = intake
        self._context = context
        self._reader = reader
        self._workers = workers
        self._version = version
        self._inbox = Inbox()
        self._outbox = Outbox(context.correlation_id)
        self._outbox.on_overflow = self._inbox.end
        self._closing = False
        self._reading: asyncio.Task[None] | None = None

    async def serve(self) -> None:
        """Serve until either side ends."""
        # Never cancelled: it ends with the RPC, and to cancel its read would break the stream before its status.
        self._reading = asyncio.create_task(self._inbox.fill(self._stream), name="work-reader")
        writing = asyncio.create_task(self._write(), name="work-writer")
        try:
            async with contextlib.AsyncExitStack() as stack:
                await self._converse(stack)
        except Exception:
            await self._flush(writing, LAST_WORDS_S / 5)
            raise
        else:
            await self._flush(writing, 0 if self._outbox.overflown else LAST_WORDS_S)
        finally:
            self._inbox.end()
            self._outbox.close()
            writing.cancel()
        if self._outbox.overflown:
            raise RateLimited("the worker does not read; it was dropped, and its tasks go to others")

    async def _converse(self, stack: contextlib.AsyncExitStack) -> None:
        first = await self._first()
        session = await self._workers.open(self._context.principal, mapping.hello_of(first.hello), self._outbox.push)
        stack.push_async_callback(session.close)
        self._logs = self._intake.open(
            self._context.principal, logs.reader_of(self._intake.now_us), self._outbox.ack_logs
        )
        stack.callback(self._logs.close)
        self._outbox.welcome(self._welcome(session))
        first.ClearField("hello")
        await self._report(session, [first])
        while raw := await self._inbox.take(session.lease_s):
            if self._outbox.overflown:
                return
            session.heard()
            messages: list[Any] = [self._reader.parse(each) for each in raw]
            await self._report(session, messages)

    async def _first(self) -> WorkRequest:
        raw = await self._inbox.take(HELLO_S)
        if not raw:
            raise ValidationFailed.of("hello", "the first message must say hello", "REQUIRED")
        first: Any = self._reader.read(raw[0], trusted=False)
        if not first.HasField("hello"):
            raise ValidationFailed.of("hello", "the first message must say hello", "REQUIRED")
        self._inbox.put_back(raw[1:])
        out: WorkRequest = first
        return out

    def _welcome(self, session: WorkerSession) -> WorkResponse:
        out = WorkResponse()
        out.welcome.session_id = session.id
        out.welcome.server_version = self._version
        out.welcome.lease.FromMilliseconds(int(session.lease_s * 1000))
        out.welcome.log_window_bytes = WINDOW_BYTES
        for ref in session.held:
            out.welcome.held.add(task_id=ref.task_id, attempt=ref.attempt)
        return out

    async def _report(self, session: WorkerSession, messages: list[WorkRequest]) -> None:
        """Store what the messages report, all in one, and acknowledge the last of them."""
        collected = Collected(self._reader.rules)
        for message in messages:
            if message.HasField("hello"):
                raise ValidationFailed.of("hello", "belongs into the first message alone")
            collected.add(message)
        if collected.drain:
            session.drain()
        if collected.credit:
            session.add_credit(collected.credit)
        if collected.streamed:
            session.stream(collected.streamed)
        reports = collected.reports()
        refused = collected.refused
        if reports != _NOTHING:
            results = await session.report(reports)
            refused += [each for each in results if each.error is not None or each.cancel_requested]
        if collected.number or refused:
            self._outbox.ack(collected.number, refused)
        # After all else, and without waiting: lines delay nothing.
        for message in messages:
            if message.logs:
                self._logs.put(logs.by_task(message.logs))
        if collected.log_ends:
            self._logs.ended(collected.log_ends)

    async def _write(self) -> None:
        outbox = self._outbox
        try:
            while True:
                message = outbox.take()
                if message is not None:
                    await self._stream.write(message)
                elif self._closing:
                    return
                else:
                    outbox.filled.clear()
                    await outbox.filled.wait()
                    # A commit fills it with the next tasks first and acknowledges what was reported a moment later:
                    # after one turn of the loop both go in one message.
                    await asyncio.sleep(0)
        except Exception as gone:
            _log.debug("worker is gone", reason=repr(gone))
            self._inbox.end()

    async def _flush(self, writing: "asyncio.Task[None]", wait_s: float) -> None:
        """Let the writer say its last words, but wait for no one who does not listen."""
        self._closing = True
        self._outbox.filled.set()
        await asyncio.wait({writing}, timeout=wait_s)
