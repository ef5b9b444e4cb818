"""Watching what tasks log: the lines there are, then those that come, to the end of the task or run."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from typing import Final, Protocol

from millstream.application.engine.clock import Clock
from millstream.application.engine.waiting import Waiters
from millstream.application.following import Following, StreamMeter, StreamMeters
from millstream.application.log_feed import LogFeed, Wakeups, wake
from millstream.application.paging import decode_token, encode_token, fitting, token_number, token_of
from millstream.application.sight import Sight
from millstream.application.task_logs import LogReads as _LogReads
from millstream.application.task_logs import RunReads
from millstream.application.views.task_logs import LogEntry, LogQuery
from millstream.domain.errors import NotFound, ValidationFailed
from millstream.domain.principals import Principal

READ_AT_ONCE: Final = 500
READ_BYTES: Final = 512 * 1024
LATE_US: Final = 2_000_000
"""Lines of an ended task may come so late, where its worker has not told which is the last."""
EXPIRED: Final = "EXPIRED"


class LogReads(_LogReads, Protocol):
    """What is read of logs; see store.task_logs."""

    async def log_end(self, task_id: str) -> tuple[int, bool]: ...


@dataclass(frozen=True, slots=True)
class SentLine:
    """A line, None for a sign of life; and the cursor that goes on behind it. `ended`: the last, nothing more comes."""

    entry: LogEntry | None
    cursor: str
    ended: bool = False


class LogWatch(Following[SentLine]):
    """One watch under way. It holds no more than a page: what is not read waits in the store."""

    def __init__(
        self,
        behind: "LogWatching",
        principal: Principal,
        query: LogQuery,
        day: int,
        inbox: Wakeups,
        meter: StreamMeter,
    ) -> None:
        super().__init__(inbox, meter)
        self._wakeups = inbox
        self._behind = behind
        self._principal = principal
        self._query = query
        self._day = day
        self._kind = f"log of {query.run_id}"
        self._seq = 0
        self._over = False
        self._over_at_us = 0

    async def start(self, cursor: str) -> None:
        """Begin behind a cursor, or with the first line. Raises ValidationFailed on a cursor that is none of this
        run's log, or behind which lines are gone."""
        if not cursor:
            return
        self._seq = decode_token(cursor, token_of(self._kind), token_number, field="cursor")[1]
        whole = LogQuery(self._query.run_id)
        following = await self._behind.logs.lines(whole, self._day, self._seq, 0, 1)
        if following and following[0].seq != self._seq + 1:
            raise ValidationFailed.of(
                "cursor",
                "lines behind it are gone, for their retention is over; start without it",
                EXPIRED,
            )

    def last(self) -> SentLine:
        """That nothing more comes."""
        return replace(self._beat(), ended=True)

    def _beat(self) -> SentLine:
        return SentLine(None, encode_token(self._kind, self._seq))

    async def _catch_up(self) -> AsyncGenerator[SentLine, None]:
        self._wakeups.attach()
        async for sent in self._look():
            yield sent

    async def _listen(self) -> AsyncGenerator[SentLine, None]:
        if self._wakeups.take() or self._is_due():
            async for sent in self._look():
                yield sent

    def _measure_live(self, sent: SentLine) -> None:
        if sent.entry is not None:
            self._meter.fresh_item(self._behind.clock.now_us() - sent.entry.line.at_us)

    async def _look(self) -> AsyncGenerator[SentLine, None]:
        """Read all there is. Whether more can come is asked first: so nothing comes in between."""
        over = await self._ends()
        more = True
        while more:
            found = await self._behind.logs.lines(self._query, self._day, self._seq, 0, READ_AT_ONCE)
            page = fitting(found, READ_AT_ONCE, lambda entry: entry.size_bytes, READ_BYTES)
            more = len(found) > len(page)
            for entry in await self._behind.seen(self._principal, page):
                self._seq = entry.seq
                yield SentLine(entry, encode_token(self._kind, entry.seq))
            if page:
                self._seq = page[-1].seq
        self._over = over

    @property
    def _ended(self) -> bool:
        return self._over

    @property
    def _due_s(self) -> float | None:
        if not self._over_at_us:
            return None
        return max((self._over_at_us - self._behind.clock.now_us()) / 1e6, 0.01)

    def _is_due(self) -> bool:
        return 0 < self._over_at_us <= self._behind.clock.now_us()

    async def _ends(self) -> bool:
        """Whether no line comes any more."""
        finished_us, complete = await self._behind.finished(self._principal, self._query)
        if complete:
            return True
        self._over_at_us = finished_us + LATE_US if finished_us else 0
        return self._is_due()


class LogWatching:
    """The use case of watching logs."""

    def __init__(
        self, clock: Clock, waiters: Waiters, feed: LogFeed, reads: RunReads, logs: LogReads, meters: StreamMeters
    ) -> None:
        self.clock = clock
        self.logs = logs
        self._waiters = waiters
        self._feed = feed
        self._reads = reads
        self._sight = Sight(reads)
        self._meters = meters

    async def watch(self, principal: Principal, query: LogQuery, cursor: str) -> AsyncGenerator[SentLine, None]:
        """Lines of a task, or of all tasks of a run: those there are, then those that come; the first is a cursor
        alone, and so is each heartbeat. Ends, and says so, when the task or run has ended and all its lines were sent.

        Raises NotFound, and ValidationFailed on a cursor that is none.
        """
        meter = self._meters.meter("task_logs" if query.task_id else "run_logs")
        query, day = await self._subject(principal, query)
        async with self._feed.following(principal.tenant, query.run_id) as inbox:
            with self._waiters.wait(query.task_id or query.run_id) as ended:
                ended.add_done_callback(lambda _: wake(inbox))
                watch = LogWatch(self, principal, query, day, inbox, meter)
                await watch.start(cursor)
                async for sent in watch.run():
                    yield sent
                yield watch.last()

    async def _subject(self, principal: Principal, query: LogQuery) -> tuple[LogQuery, int]:
        """The query with its run, and the day on which that began."""
        if query.run_id:
            run = await self._reads.run(principal.tenant, query.run_id)
            if run is None:
                raise NotFound(f"there is no run {query.run_id}")
            return query, run.day
        task = await self._reads.task(principal.tenant, query.task_id)
        if task is None:
            raise NotFound(f"there is no task {query.task_id}")
        return replace(query, run_id=task.run_id), task.day

    async def finished(self, principal: Principal, query: LogQuery) -> tuple[int, bool]:
        """When the task or run ended (0: not yet), and whether it is known that all its lines are stored."""
        if not query.task_id:
            run = await self._reads.run(principal.tenant, query.run_id)
            return (run.finished_us, False) if run is not None else (0, True)
        task = await self._reads.task(principal.tenant, query.task_id)
        if task is None:
            return 0, True
        if not task.finished_us:
            return 0, False
        attempt, complete = await self.logs.log_end(task.id)
        return task.finished_us, complete and attempt == task.attempt

    async def seen(self, principal: Principal, entries: list[LogEntry]) -> list[LogEntry]:
        """Those of tasks of which the caller may see all that they were given."""
        whole = await self._sight.whole_tasks(principal, {entry.task_id for entry in entries}, self.clock.now_us())
        return [entry for entry in entries if entry.task_id in whole]
