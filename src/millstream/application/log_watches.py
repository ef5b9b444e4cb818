"""Watching what tasks log: the lines there are, then those that come, to the end of the task or run."""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Set
from dataclasses import replace
from typing import Final

from millstream.application.engine.clock import Clock
from millstream.application.engine.waiting import Waiters
from millstream.application.following import Following, Inbox, StreamMeter, StreamMeters
from millstream.application.log_feed import LogFeed
from millstream.application.log_topics import LogPage, LogTopic, SentLine, kind_of, wanted
from millstream.application.paging import decode_token, encode_token, fitting, token_number, token_of
from millstream.application.ports import TooSlow
from millstream.application.sight import Sight, restricted
from millstream.application.task_logs import LogReads, RunReads
from millstream.application.views.task_logs import LogEntry, LogQuery
from millstream.domain.errors import NotFound, RateLimited, TimedOut, ValidationFailed
from millstream.domain.principals import Principal

READ_AT_ONCE: Final = 500
READ_BYTES: Final = 512 * 1024
LOOK_AT: Final = 20_000
"""Lines that are looked through at once for those that were asked for."""
BEHIND_MOST: Final = 20_000
"""Lines by which a reader may fall behind and still be read for; about what the busiest task logs in a second."""
EXPIRED: Final = "EXPIRED"


class LogWatch(Following[SentLine]):
    """One watch under way. It holds no more than a page, and the pages that all who follow the run have in common."""

    def __init__(
        self,
        behind: "LogWatching",
        principal: Principal,
        query: LogQuery,
        topic: LogTopic,
        inbox: Inbox[LogPage],
        meter: StreamMeter,
    ) -> None:
        super().__init__(inbox, meter)
        self._box = inbox
        self._behind = behind
        self._principal = principal
        self._query = query
        self._topic = topic
        self._kind = kind_of(query.run_id)
        self._seq = 0
        self._live = False
        self._over = False

    async def start(self, cursor: str) -> None:
        """Begin behind a cursor, or with the first line. Raises ValidationFailed on a cursor that is none of this
        run's log, or behind which lines are gone."""
        if cursor:
            self._seq = decode_token(cursor, token_of(self._kind), token_number, field="cursor")[1]
            whole = LogQuery(self._query.run_id)
            following = await self._behind.logs.lines(whole, self._topic.day, self._seq, 0, 1)
            if following and following[0].seq != self._seq + 1:
                raise _gone()
        await self._behind.feed.up_to_date(self._topic)
        if self._seq > self._topic.place:
            # The run had ended, where its log did was forgotten, and it was begun again: so are its numbers.
            raise _gone()

    def last(self) -> SentLine:
        """That nothing more comes."""
        return replace(self._beat(), ended=True)

    def _beat(self) -> SentLine:
        return SentLine(None, encode_token(self._kind, self._seq))

    @property
    def _ended(self) -> bool:
        return self._over

    async def _catch_up(self) -> AsyncGenerator[SentLine, None]:
        """Read the store up to where the topic is, and from there on the inbox."""
        if self._live and self._topic.place - self._seq > BEHIND_MOST:
            self._meter.too_slow()
            raise RateLimited("the reader is too slow for this log; go on behind the last cursor", retry_after_s=1.0)
        self._live = False
        target = self._topic.attach(self._box)
        while self._seq < target:
            page, place = await self._read(target)
            for entry in await self._behind.seen(self._principal, page):
                self._seq = entry.seq
                yield SentLine(entry, encode_token(self._kind, entry.seq))
            self._seq = place
        if self._box.attached:
            self._live = True
            self._over = self._query.task_id in self._topic.over and not self._box.items

    def _measure_live(self, sent: SentLine) -> None:
        if sent.entry is not None:
            self._meter.fresh_item(self._behind.clock.now_us() - sent.entry.line.at_us)

    async def _read(self, target: int) -> tuple[list[LogEntry], int]:
        """Lines behind the own place, and the place behind them."""
        query, look_at = self._query, LOOK_AT if self._query.sifts else None
        upto = target if look_at is None else min(target, self._seq + look_at)
        async with self._behind.feed.reading:
            try:
                found = await self._behind.logs.lines(query, self._topic.day, self._seq, 0, READ_AT_ONCE, look_at)
            except TooSlow:
                raise TimedOut("the lines could not be looked through in time; go on behind the last cursor") from None
        page = fitting(found, READ_AT_ONCE, lambda entry: entry.size_bytes, READ_BYTES)
        last = page[-1].seq if page else 0
        return page, last if len(found) > len(page) else max(upto, last)

    async def _listen(self) -> AsyncGenerator[SentLine, None]:
        if not self._live:
            return
        for page in self._box.take():
            whole = await self._behind.whole(self._principal, page)
            for sent in page.lines:
                entry = sent.entry
                if entry is None or entry.seq <= self._seq or not wanted(self._query, entry):
                    continue
                if whole is None or entry.task_id in whole:
                    self._seq = entry.seq
                    yield sent
            self._seq = max(self._seq, page.place)
            if self._query.task_id in page.over:
                self._over = True
                return


class LogWatching:
    """The use case of watching logs."""

    def __init__(
        self, clock: Clock, waiters: Waiters, feed: LogFeed, reads: RunReads, logs: LogReads, meters: StreamMeters
    ) -> None:
        self.feed = feed
        self.logs = logs
        self.clock = clock
        self._meters = meters
        self._waiters = waiters
        self._reads = reads
        self._sight = Sight(reads)

    async def watch(self, principal: Principal, query: LogQuery, cursor: str) -> AsyncGenerator[SentLine, None]:
        """Lines of a task, or of all tasks of a run: those there are, then those that come; the first is a cursor
        alone, and so is each heartbeat. Ends, and says so, when the task or run has ended and all its lines were sent.

        Raises NotFound; ValidationFailed on a cursor that is none; RateLimited where the reader falls far behind.
        """
        meter = self._meters.meter("task_logs" if query.task_id else "run_logs")
        query, day = await self._subject(principal, query)
        run_id = query.run_id
        with self._waiters.wait(run_id) as ended:
            ended.add_done_callback(lambda _: self.feed.look([run_id]))
            async with self.feed.following(principal.tenant, run_id, day, query.task_id) as (topic, inbox):
                watch = LogWatch(self, principal, query, topic, inbox, meter)
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

    async def whole(self, principal: Principal, page: LogPage) -> Set[str] | None:
        """Those of the tasks of a page of which the caller may see all that they were given; None: all of them."""
        reader = restricted(principal)
        if reader is None or not page.lines:
            return None
        found = page.whole.get(reader)
        if found is None or (found.done() and (found.cancelled() or found.exception() is not None)):
            found = page.whole[reader] = asyncio.ensure_future(self._whole(principal, page.tasks))
        return await asyncio.shield(found)

    async def seen(self, principal: Principal, entries: list[LogEntry]) -> list[LogEntry]:
        """Those of tasks of which the caller may see all that they were given."""
        whole = await self._whole(principal, {entry.task_id for entry in entries})
        return [entry for entry in entries if entry.task_id in whole]

    async def _whole(self, principal: Principal, task_ids: Iterable[str]) -> Set[str]:
        return await self._sight.whole_tasks(principal, task_ids, self.clock.now_us())


def _gone() -> ValidationFailed:
    kept = "lines behind it are gone, for their retention is over; start without it"
    return ValidationFailed.of("cursor", kept, EXPIRED)
