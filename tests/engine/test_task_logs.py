"""What tasks log: stored once and in order, whichever server it comes to; read; bounded; dropped in time (DC-6)."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from tests.engine.database import Database
from tests.engine.servers import PATIENCE_S, Roles, Start, eventually, killed
from tests.engine.workers import Worker
from tests.engine.world import AT_ONCE, ROOT, TENANT, agent, order, principal, seconds, types

from millstream.application import log_feed, log_watches
from millstream.application.log_intake import SOURCE_BYTES
from millstream.application.log_topics import LogTopic
from millstream.application.paging import PageRequest
from millstream.application.views.leases import Lease
from millstream.application.views.task_logs import LogEntry, LogQuery
from millstream.application.views.tasks import NewTask
from millstream.domain.artifacts import Visibility
from millstream.domain.errors import LeaseLost, MillstreamError, NotFound, RateLimited, ValidationFailed
from millstream.domain.principals import Principal
from millstream.domain.struct_wire import encode_struct
from millstream.domain.task_logs import LogAck, LogBatch, LogLine
from millstream.runtime.peers import WATCHES_LOGS
from millstream.wiring import Service

DAY_S = 86_400


class Sender:
    """Sends lines as a connection does; what stands for their bytes is their place in a list, and as long as they."""

    def __init__(self, service: Service, who: Principal = ROOT) -> None:
        self._batches: list[LogBatch] = []
        self.source = service.log_intake.open(who, lambda raw: self._batches[int.from_bytes(raw[:4])], self._tell)
        self.acks: asyncio.Queue[LogAck] = asyncio.Queue()

    def _tell(self, acks: list[LogAck]) -> None:
        for ack in acks:
            self.acks.put_nowait(ack)

    def put(self, batch: LogBatch) -> None:
        self._batches.append(batch)
        raw = (len(self._batches) - 1).to_bytes(4).ljust(sum(each.size_bytes for each in batch.lines))
        self.source.put([(batch.task_id, raw)])

    async def send(self, batch: LogBatch) -> LogAck:
        """Send it, and hear how far it is stored."""
        self.put(batch)
        return await self.told()

    async def told(self) -> LogAck:
        async with asyncio.timeout(PATIENCE_S):
            return await self.acks.get()


def lines(lease: Lease, first: int, last: int, level: int = 2, **fields: int) -> LogBatch:
    made = [LogLine(level, f"line {n}", 1_000_000 * n, **fields) for n in range(first, last + 1)]  # type: ignore[arg-type]
    return LogBatch(lease.task.id, lease.attempt, first, made)


async def read(service: Service, task_id: str, who: Principal = ROOT, **query: Any) -> list[LogEntry]:
    wanted = LogQuery(task_id=task_id, **query)
    return (await service.task_logs.of_task(who, wanted, PageRequest(page_size=1000))).items


@contextlib.asynccontextmanager
async def leased(service: Service, **fields: object) -> AsyncIterator[tuple[Worker, Lease]]:
    """A task in a worker's hands."""
    async with Worker(service, kinds=["talk"]) as worker:
        await service.tasks.create(ROOT, NewTask("talk", retry=AT_ONCE, **fields), None)  # type: ignore[arg-type]
        yield worker, await worker.take()


async def test_lines_are_stored_in_order_and_read_by_any_server(spread: Roles) -> None:
    """DC-6, WM-5"""
    async with leased(spread.worker) as (_, lease):
        sender = Sender(spread.worker)
        full = LogLine(4, "it broke", 5, "shop", encode_struct({"order": "o-1"}))
        assert await sender.send(LogBatch(lease.task.id, 1, 1, [full])) == LogAck(lease.task.id, 1, 1)
        assert (await sender.send(lines(lease, 2, 5))).offset == 5
        found = await read(spread.publisher, lease.task.id)
        assert [(each.seq, each.offset, each.attempt) for each in found] == [(n, n, 1) for n in range(1, 6)]
        assert (found[0].line, found[0].run_id) == (full, lease.task.run_id)


async def test_what_is_sent_twice_over_two_servers_is_stored_once(start: Start) -> None:
    """DC-6: a worker that comes to another server sends again what was not acknowledged."""
    first, second = await start()
    async with leased(first) as (_, lease):
        one, other = Sender(first), Sender(second)
        await one.send(lines(lease, 1, 100))
        one.put(lines(lease, 101, 200))
        assert (await other.send(lines(lease, 51, 250))).offset in (250, 100)
        await one.told()
        assert (await other.send(lines(lease, 101, 250))).offset == 250
        assert [each.offset for each in await read(first, lease.task.id)] == [*range(1, 251)]


async def test_lines_behind_a_gap_are_asked_for_again(start: Start) -> None:
    """DC-6"""
    first, _ = await start()
    async with leased(first) as (_, lease):
        sender = Sender(first)
        assert await sender.send(lines(lease, 2, 5)) == LogAck(lease.task.id, 1, 0, again=True)
        assert (await sender.send(lines(lease, 1, 5))).offset == 5


async def test_an_attempt_that_is_over_logs_no_more(start: Start, database: Database) -> None:
    """DC-6, engine-rules 9: late lines of an ended task are taken, those of an earlier attempt are not."""
    first, _ = await start()
    async with leased(first) as (worker, lease):
        sender = Sender(first)
        await sender.send(lines(lease, 1, 2))
        await worker.fail(lease)
        second = await worker.take()
        assert (await sender.send(lines(lease, 3, 3))).offset == 3
        await sender.send(lines(second, 1, 1))
        refused = await sender.send(lines(lease, 4, 4))
        assert (refused.offset, type(refused.error)) == (0, LeaseLost)
        await worker.complete(second)
        assert (await sender.send(lines(second, 1, 3))).offset == 3
        await database.pass_time(601)
        assert isinstance((await sender.send(lines(second, 4, 4))).error, LeaseLost)
        found = await read(first, lease.task.id)
        assert [(each.attempt, each.offset) for each in found] == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3)]
        assert [each.seq for each in await read(first, lease.task.id, attempt=2)] == [4, 5, 6]


async def test_a_worker_that_lost_its_lease_logs_no_more(start: Start, database: Database) -> None:
    """DC-6, engine-rules 9: even where the attempt that runs has nothing to say."""
    first, _ = await start()
    async with leased(first) as (worker, lease):
        sender = Sender(first)
        await worker.fail(lease)
        second = await worker.take()
        await database.pass_time(11)
        assert isinstance((await sender.send(lines(lease, 1, 1))).error, LeaseLost)
        early = LogBatch(lease.task.id, second.attempt + 1, 1, lines(lease, 1, 1).lines)
        assert isinstance((await sender.send(early)).error, LeaseLost)


async def test_nobody_logs_or_reads_for_another_tenant(start: Start) -> None:
    """WM-9: neither is told whether there is such a task."""
    first, _ = await start()
    stranger = principal("eve", "other")
    async with leased(first) as (_, lease):
        await Sender(first).send(lines(lease, 1, 1))
        assert isinstance((await Sender(first, stranger).send(lines(lease, 1, 9))).error, NotFound)
        for call in (
            first.task_logs.of_task(stranger, LogQuery(task_id=lease.task.id), PageRequest()),
            first.task_logs.of_run(stranger, LogQuery(lease.task.run_id), PageRequest()),
            first.task_logs.of_task(ROOT, LogQuery(task_id=lease.task.id), PageRequest(), lease.task.id),
        ):
            with pytest.raises(NotFound):
                await call
        assert len(await read(first, lease.task.id)) == 1


async def test_more_than_is_kept_is_cut_with_one_mark(start: Start) -> None:
    """DC-6: which says how many, however they came."""
    first, _ = await start(max_log_lines_per_task=120)
    async with leased(first) as (worker, lease):
        sender = Sender(first)
        assert (await sender.send(lines(lease, 1, 130))).offset == 130
        assert (await sender.send(lines(lease, 121, 1000))).offset == 1000
        found = await read(first, lease.task.id)
        assert [each.offset for each in found] == [*range(1, 122)]
        assert (found[-1].line.cut, found[-1].line.level) == (880, 3)
        assert found[-1].line.message.startswith("880 lines were cut: of a task 120 lines are kept")
        await worker.fail(lease)
        await sender.send(lines(await worker.take(), 1, 200))
        found = await read(first, lease.task.id, attempt=2)
        assert (len(found), found[-1].line.cut) == (101, 100)


async def test_lines_are_found_by_level_text_time_and_task(start: Start) -> None:
    """WM-5, FV-12"""
    first, _ = await start()
    async with leased(first) as (_, lease):
        sender = Sender(first)
        await sender.send(lines(lease, 1, 10))
        await sender.send(lines(lease, 11, 12, level=4))
        task_id = lease.task.id

        async def offsets(**query: Any) -> list[int]:
            return [each.offset for each in await read(first, task_id, **query)]

        assert await offsets(levels=(3, 4)) == [11, 12]
        assert await offsets(text="LINE 1") == [1, 10, 11, 12]
        assert await offsets(text="%") == []
        assert await offsets(text="line_1") == []
        assert await offsets(since_us=9_000_000, until_us=11_000_000) == [9, 10]
        assert await offsets(newest_first=True, attempt=1) == [*range(12, 0, -1)]
        page = await first.task_logs.of_run(ROOT, LogQuery(lease.task.run_id), PageRequest(page_size=5))
        assert (page.info.total, len(page.items)) == (12, 5)
        rest = PageRequest(page_size=5, page_token=page.info.next_page_token)
        assert [
            each.offset for each in (await first.task_logs.of_run(ROOT, LogQuery(lease.task.run_id), rest)).items
        ] == [6, 7, 8, 9, 10]
        flat = await first.task_logs.of_task(ROOT, LogQuery(task_id=task_id), PageRequest(limit=3, offset=10))
        assert ([each.offset for each in flat.items], flat.info.total) == ([11, 12], 12)
        # What has a meaning in a pattern stands for itself: "_", "%" and the signs that escape them.
        odd = ("a_b", "a/b", "a\\b", "a%b", "axb ab")
        said = [LogLine(2, message, 20_000_000) for message in odd]
        await sender.send(LogBatch(lease.task.id, lease.attempt, 13, said))
        assert [await offsets(text=each) for each in odd] == [[13], [14], [15], [16], [17]]


async def test_tasks_of_a_run_share_its_numbers(start: Start) -> None:
    """DC-6: a run's lines are numbered without gaps over all its tasks, written by two servers at once."""
    first, second = await start()
    async with Worker(first, agents=(agent("left", "Order"), agent("right", "Order")), known=types("Order")) as worker:
        await first.artifacts.publish(ROOT, order(), None)
        leases = await worker.take_many(2)
        one, other = Sender(first), Sender(second)
        for n in range(0, 50, 10):
            one.put(lines(leases[0], n + 1, n + 10))
            other.put(lines(leases[1], n + 1, n + 10))
        for _ in range(5):
            await one.told()
            await other.told()
        run_id = leases[0].task.run_id
        found = (await second.task_logs.of_run(ROOT, LogQuery(run_id), PageRequest(page_size=1000))).items
        assert [each.seq for each in found] == [*range(1, 101)]
        for lease in leases:
            of_task = [each for each in found if each.task_id == lease.task.id]
            assert [each.offset for each in of_task] == [*range(1, 51)]
            assert of_task == await read(first, lease.task.id)


async def test_a_flood_of_one_worker_lets_others_have_their_turn(start: Start) -> None:
    """DC-6: lines of another worker are stored before the flood's last ones are."""
    first, _ = await start()
    async with leased(first) as (worker, loud):
        await first.tasks.create(ROOT, NewTask("talk"), None)
        quiet = await worker.take()
        flood, other = Sender(first), Sender(first)
        for n in range(0, 20_000, 1000):
            flood.put(lines(loud, n + 1, n + 1000))
        assert (await other.send(lines(quiet, 1, 1))).offset == 1
        assert flood.acks.qsize() < 20
        for _ in range(20):
            last = await flood.told()
        assert last.offset == 20_000


async def test_what_there_is_no_room_for_is_asked_for_again(start: Start) -> None:
    """DC-6: a worker that sends without waiting for acknowledgements costs no memory, and loses nothing."""
    first, _ = await start()
    async with leased(first) as (_, lease):
        sender, stored, last = Sender(first), 0, 60_000
        while stored < last:
            for n in range(stored, last, 1000):
                sender.put(lines(lease, n + 1, min(n + 1000, last)))
            ack = await sender.told()
            while not ack.again and ack.offset < last:
                ack = await sender.told()
            stored = max(stored, ack.offset)
            assert first.log_intake.bytes <= 2 * SOURCE_BYTES
        assert (await read(first, lease.task.id, newest_first=True))[0].seq == last


async def test_what_cannot_be_stored_fails_alone(start: Start) -> None:
    """FL-10: a batch that the database refuses fails, its neighbours do not."""
    first, _ = await start()
    async with leased(first) as (_, lease):
        sender, other = Sender(first), Sender(first)
        other.put(LogBatch(lease.task.id, 1, 1, [LogLine(2, "a\0b", 1)]))
        sender.put(LogBatch("no-uuid", 1, 1, [LogLine(2, "x", 1)]))
        sender.put(lines(lease, 1, 2))
        assert isinstance((await sender.told()).error, MillstreamError)
        assert (await sender.told()).offset == 2
        assert isinstance((await other.told()).error, MillstreamError)


async def test_partitions_are_made_ahead_and_dropped_whole(start: Start, database: Database) -> None:
    """DC-6: lines go when their time is over, whatever became of their run; what is young stays."""
    first, _ = await start(log_retention_days=2, run_retention_days=30)
    async with leased(first) as (_, lease):
        sender = Sender(first)
        await sender.send(lines(lease, 1, 3))
        await database.pass_time(2 * DAY_S)
        await sender.send(lines(lease, 4, 5))
        await first.loops.sweep()
        assert [each.offset for each in await read(first, lease.task.id)] == [1, 2, 3, 4, 5]
        await database.pass_time(1 * DAY_S)
        await first.loops.sweep()
        assert [(each.offset, each.seq) for each in await read(first, lease.task.id)] == [(4, 4), (5, 5)]
        days = [
            int(row["name"].removeprefix("task_log_d"))
            for row in await database.rows(
                "SELECT inhrelid::regclass::text AS name FROM pg_inherits WHERE inhparent = 'task_log'::regclass"
            )
        ]
        today = await database.now_us() // seconds(DAY_S)
        assert sorted(days) == [*range(today - 2, today + 4)]
        # The server was away for long: a partition is made when it is needed, and the log goes on.
        await database.pass_time(20 * DAY_S)
        assert (await sender.send(lines(lease, 6, 7))).offset == 7
        await first.loops.sweep()
        assert [each.offset for each in await read(first, lease.task.id)] == [6, 7]
        assert await database.value("SELECT count(*) FROM task_log_end") == 1


async def test_lines_of_a_task_are_shown_to_those_who_may_see_what_it_was_given(start: Start) -> None:
    """FL-12: as its output is."""
    first, _ = await start()
    reader = Principal("blind", TENANT, frozenset({"tasks.read", "runs.read"}))
    async with Worker(first, agents=(agent("left", "Order"),), known=types("Order")) as worker:
        for visibility in (Visibility(), Visibility("Private", agents=("left",))):
            await first.artifacts.publish(ROOT, order(visibility=visibility), None)
            lease = await worker.take()
            await Sender(first).send(lines(lease, 1, 2))
            shown = 2 if visibility.kind == "Public" else 0
            assert len(await read(first, lease.task.id)) == 2
            assert len(await read(first, lease.task.id, reader)) == shown
            whole = await first.task_logs.of_run(reader, LogQuery(lease.task.run_id), PageRequest())
            assert len(whole.items) == shown


class Watched:
    """A watch that collects what it is sent."""

    def __init__(self, service: Service, query: LogQuery, cursor: str = "", who: Principal = ROOT) -> None:
        self._stream = service.log_watching.watch(who, query, cursor)
        self.cursor = cursor
        self.found: list[LogEntry] = []
        self.ended = False

    async def begin(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            first = await anext(self._stream)
        assert first.entry is None

    async def more(self, count: int) -> None:
        """So many lines more."""
        async with asyncio.timeout(PATIENCE_S):
            wanted = len(self.found) + count
            while len(self.found) < wanted:
                sent = await anext(self._stream)
                self.cursor = sent.cursor
                if sent.entry is not None:
                    self.found.append(sent.entry)

    async def rest(self) -> None:
        """To its end."""
        async with asyncio.timeout(PATIENCE_S):
            async for sent in self._stream:
                self.cursor, self.ended = sent.cursor, sent.ended
                if sent.entry is not None:
                    self.found.append(sent.entry)

    async def close(self) -> None:
        await self._stream.aclose()

    @property
    def seqs(self) -> list[int]:
        return [each.seq for each in self.found]


async def test_a_watch_sends_what_there_is_and_what_comes_to_the_end(spread: Roles) -> None:
    """DC-6: at another server than the lines come to; it ends when the last line is there."""
    async with leased(spread.worker) as (worker, lease):
        sender = Sender(spread.worker)
        await sender.send(lines(lease, 1, 1200))
        watch = Watched(spread.publisher, LogQuery(task_id=lease.task.id))
        await watch.begin()
        await watch.more(1200)
        await sender.send(lines(lease, 1201, 1203))
        await watch.more(3)
        await worker.complete(lease)
        sender.put(lines(lease, 1204, 1205))
        sender.source.ended([(lease.task.id, 1, 1205)])
        await watch.rest()
        assert (watch.seqs, watch.ended) == ([*range(1, 1206)], True)


async def test_a_watch_goes_on_at_another_server(start: Start) -> None:
    """DC-6: nothing lost, nothing doubled, however often it breaks off."""
    first, second = await start()
    async with leased(first) as (_, lease):
        sender, cursor = Sender(first), ""
        found: list[int] = []
        for n in range(0, 60, 10):
            await sender.send(lines(lease, n + 1, n + 10))
            watch = Watched((first, second)[n // 10 % 2], LogQuery(lease.task.run_id), cursor)
            await watch.begin()
            await watch.more(7 if n < 50 else 60 - len(found))
            found += watch.seqs
            cursor = watch.cursor
            await watch.close()
        assert found == [*range(1, 61)]
        assert not first.log_feed.watched
        assert not second.log_feed.watched


async def test_a_watch_of_what_has_ended_ends(start: Start, database: Database) -> None:
    """DC-6: at once where the last line is known or the end is long ago; else when late lines would have come."""
    first, _ = await start()
    async with leased(first) as (worker, lease):
        await Sender(first).send(lines(lease, 1, 3))
        watch = Watched(first, LogQuery(lease.task.run_id))
        await watch.begin()
        await watch.more(3)
        await worker.complete(lease)
        await watch.rest()
        assert (watch.seqs, watch.ended) == ([1, 2, 3], True)
        await database.pass_time(3)
        again = Watched(first, LogQuery(task_id=lease.task.id, levels=(4,)))
        await again.begin()
        await again.rest()
        assert (again.found, again.ended) == ([], True)


def counted(service: Service, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a server reads of the database from here on."""
    found: list[str] = []
    pool = service.core.stores.database

    def counting(read: Any) -> Any:
        async def reading(*arguments: Any) -> Any:
            found.append(str(arguments))
            return await read(*arguments)

        return reading

    for name in ("fetch", "fetch_within", "fetchrow", "fetchval"):
        monkeypatch.setattr(pool, name, counting(getattr(pool, name)))
    return found


async def known_as_following(following: Service, other: Service) -> None:
    """Return when the other server knows that logs are followed at this one."""

    async def known() -> bool:
        return following.engine.lane_id in other.core.peers._interests.get((TENANT, *WATCHES_LOGS), ())

    await eventually(known, "that a server is known to follow logs")


async def test_a_thousand_watchers_of_a_log_share_the_reading(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """DC-6: all get all lines in order, and how much is read depends neither on how many they are nor on what they look
    for. The lines come to another server."""
    monkeypatch.setattr(log_feed, "POLL_S", 3600.0)
    here, there = await start()
    async with leased(here) as (worker, lease):
        sender, of_task = Sender(here), LogQuery(task_id=lease.task.id)
        await sender.send(lines(lease, 1, 5))
        watches = [Watched(there, of_task) for _ in range(1000)]
        picky = [Watched(there, replace(of_task, **asked)) for asked in ({"levels": (4,)}, {"text": "LINE 10"})]
        whole = Watched(there, LogQuery(lease.task.run_id))
        for at in range(0, 1000, 100):
            await asyncio.gather(*(watch.begin() for watch in watches[at : at + 100]))
            await asyncio.gather(*(watch.more(5) for watch in watches[at : at + 100]))
        await asyncio.gather(*(watch.begin() for watch in (*picky, whole)))
        await known_as_following(there, here)
        following = asyncio.gather(whole.more(105), *(watch.rest() for watch in (*watches, *picky)))
        await asyncio.sleep(0)
        reads = counted(there, monkeypatch)
        for n in range(6, 106, 10):
            await sender.send(lines(lease, n, n + 9, level=4 if n == 96 else 2))
        await worker.complete(lease)
        sender.source.ended([(lease.task.id, 1, 105)])
        await following
        assert {tuple(watch.seqs) for watch in (*watches, whole)} == {tuple(range(1, 106))}
        assert [watch.seqs for watch in picky] == [[*range(96, 106)], [10, *range(100, 106)]]
        assert all(watch.ended for watch in (*watches, *picky))
        assert len({id(watch.found[-1]) for watch in watches}) == 1
        # Twelve times something came, of which each takes five statements; and what the server reads anyway.
        assert len(reads) < 200, reads
        await whole.close()
        assert not there.log_feed.watched


async def test_watchers_of_many_logs_are_read_for_together(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """DC-6: lines of many runs, of tasks and of whole runs, by as many statements as for one."""
    monkeypatch.setattr(log_feed, "POLL_S", 3600.0)
    here, _ = await start()
    count = 60
    async with Worker(here, kinds=["talk"]) as worker:
        for _ in range(count):
            await here.tasks.create(ROOT, NewTask("talk"), None)
        leases = await worker.take_many(count)
        sender = Sender(here)
        watches = [
            Watched(here, LogQuery(task_id=lease.task.id) if n % 2 else LogQuery(lease.task.run_id))
            for n, lease in enumerate(leases)
        ]
        await asyncio.gather(*(watch.begin() for watch in watches))
        following = asyncio.gather(*(watch.more(30) for watch in watches))
        await asyncio.sleep(0)
        reads = counted(here, monkeypatch)
        for n in (1, 11, 21):
            for lease in leases:
                sender.put(lines(lease, n, n + 9))
        await following
        assert all(watch.seqs == [*range(1, 31)] for watch in watches)
        assert len(reads) < 150, reads
        for watch in watches:
            await watch.close()


async def test_what_watchers_may_see_is_asked_once_for_all_who_are_alike(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FL-12: lines are shown to those who may see what their task was given, and to no others."""
    first, _ = await start()
    blind = Principal("blind", TENANT, frozenset({"tasks.read", "runs.read"}))
    reads, asked = first.core.stores.reads, []
    seen_tasks = reads.seen_tasks

    async def counting(*arguments: Any) -> set[str]:
        asked.append(arguments)
        return await seen_tasks(*arguments)

    monkeypatch.setattr(reads, "seen_tasks", counting)
    async with Worker(first, agents=(agent("left", "Order"),), known=types("Order")) as worker:
        for visibility, shown in ((Visibility(), [1, 2]), (Visibility("Private", agents=("left",)), [])):
            await first.artifacts.publish(ROOT, order(visibility=visibility), None)
            lease = await worker.take()
            sender, query = Sender(first), LogQuery(task_id=lease.task.id)
            watches = [Watched(first, query, who=blind) for _ in range(20)]
            everyone = [*watches, Watched(first, query)]
            await asyncio.gather(*(watch.begin() for watch in everyone))
            following = asyncio.gather(*(watch.rest() for watch in everyone))
            (topic,) = first.log_feed._topics.values()

            async def live(topic: LogTopic = topic) -> bool:
                return len(topic.followers) == 21 and all(inbox.attached for inbox in topic.followers)

            await eventually(live, "that all are up to date")
            asked.clear()
            await sender.send(lines(lease, 1, 2))
            await worker.complete(lease)
            sender.source.ended([(lease.task.id, 1, 2)])
            await following
            assert {tuple(watch.seqs) for watch in watches} == {tuple(shown)}
            assert everyone[-1].seqs == [1, 2]
            assert len(asked) == 1


async def test_who_follows_another_task_of_the_run_misses_nothing(start: Start) -> None:
    """DC-6: while one task is followed alone, only its lines are read; then come others, and the whole run."""
    first, _ = await start()
    async with Worker(first, agents=(agent("left", "Order"), agent("right", "Order")), known=types("Order")) as worker:
        await first.artifacts.publish(ROOT, order(), None)
        left, right = await worker.take_many(2)
        sender = Sender(first)
        queries = (LogQuery(task_id=left.task.id), LogQuery(task_id=right.task.id), LogQuery(left.task.run_id))
        watches: list[Watched] = []
        for n, query in enumerate(queries):
            watches.append(Watched(first, query))
            await watches[-1].begin()
            # They come while the one before is sent what came before.
            for lease in (right, left):
                await sender.send(lines(lease, 10 * n + 1, 10 * n + 10))
        for watch, count in zip(watches, (30, 30, 60), strict=True):
            await watch.more(count)
            assert watch.seqs == sorted(set(watch.seqs))
            await watch.close()
        for watch, lease in zip(watches, (left, right), strict=False):
            assert {each.task_id for each in watch.found} == {lease.task.id}
        assert watches[2].seqs == [*range(1, 61)]


async def test_what_is_rare_is_found_in_a_long_log(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """DC-6: by a watch, which looks through a log bit by bit; then it goes on with what comes."""
    monkeypatch.setattr(log_watches, "LOOK_AT", 50)
    first, _ = await start()
    async with leased(first) as (_, lease):
        sender = Sender(first)
        for n in (1, 123, 124, 377, 378):
            last = {1: 122, 123: 123, 124: 376, 377: 377, 378: 400}[n]
            await sender.send(lines(lease, n, last, level=4 if n == last else 2))
        watch = Watched(first, LogQuery(task_id=lease.task.id, levels=(4,)))
        await watch.begin()
        await watch.more(2)
        await sender.send(lines(lease, 401, 401, level=4))
        await watch.more(1)
        assert watch.seqs == [123, 377, 401]
        await watch.close()


async def test_a_slow_reader_of_a_log_is_told_where_to_go_on(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """DC-6: one that falls far behind; others go on meanwhile, nothing is kept for it beyond the bound, one that is a
    little behind is read for, and resumed the slow one misses nothing."""
    monkeypatch.setattr(log_feed, "PAGES_MOST", 2)
    monkeypatch.setattr(log_watches, "BEHIND_MOST", 50)
    first, _ = await start()
    async with leased(first) as (_, lease):
        sender, query = Sender(first), LogQuery(task_id=lease.task.id)
        slow, late, other = (Watched(first, query) for _ in range(3))
        for watch in (slow, late, other):
            await watch.begin()
        await sender.send(lines(lease, 1, 2))
        await asyncio.gather(*(watch.more(2) for watch in (slow, late, other)))
        going_on = asyncio.gather(slow.more(1), late.more(1), other.more(2))
        (topic,) = first.log_feed._topics.values()

        async def live() -> bool:
            return all(inbox.attached for inbox in topic.followers)

        await eventually(live, "that all are up to date")
        await sender.send(lines(lease, 3, 4))
        await going_on
        for n in range(5, 45, 2):
            # Nobody asks the streams of the other two for more.
            await sender.send(lines(lease, n, n + 1))
            await other.more(2)
        assert [len(inbox.items) for inbox in topic.followers] == [0, 0, 0]
        await late.more(41)
        for n in range(45, 85, 2):
            await sender.send(lines(lease, n, n + 1))
            await asyncio.gather(other.more(2), late.more(2))
        with pytest.raises(RateLimited, match="too slow"):
            await slow.more(81)
        assert slow.seqs == [1, 2, 3, 4]
        again = Watched(first, query, slow.cursor)
        await again.begin()
        await again.more(80)
        assert [*slow.seqs, *again.seqs] == late.seqs == other.seqs == [*range(1, 85)]
        for watch in (late, other, again):
            await watch.close()


async def test_a_watch_waits_for_lines_that_are_known_to_be_missing(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DC-6: of a task, and of its run; what a busy server takes slowly comes behind the end."""
    monkeypatch.setattr(log_feed, "LATE_US", 0)
    first, _ = await start()
    async with leased(first) as (worker, lease):
        sender = Sender(first)
        await sender.send(lines(lease, 1, 2))
        sender.source.ended([(lease.task.id, 1, 4)])
        await sender.told()
        await worker.complete(lease)
        watches = [Watched(first, LogQuery(task_id=lease.task.id)), Watched(first, LogQuery(lease.task.run_id))]
        for watch in watches:
            await watch.begin()
            await watch.more(2)
        # Each that begins has the log looked at again: whether it is over was asked at least twice.
        sender.put(lines(lease, 3, 4))
        for watch in watches:
            await watch.rest()
            assert (watch.seqs, watch.ended) == ([1, 2, 3, 4], True)


async def test_a_watch_of_a_task_ends_though_nobody_told_its_last_line(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DC-6: of one that never logs, too; when late lines would have come."""
    monkeypatch.setattr(log_feed, "LATE_US", 100_000)
    monkeypatch.setattr(log_feed, "POLL_S", 0.05)
    first, _ = await start()
    async with leased(first) as (worker, lease):
        watch = Watched(first, LogQuery(task_id=lease.task.id))
        await watch.begin()
        await worker.complete(lease)
        await watch.rest()
        assert (watch.found, watch.ended) == ([], True)


async def test_what_no_wake_up_told_of_is_found(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """engine-rules 8: a wake-up is a hint."""
    first, second = await start()
    monkeypatch.setattr(first.core.peers, "logged", lambda runs: None)
    async with leased(first) as (_, lease):
        watch = Watched(second, LogQuery(lease.task.run_id))
        await watch.begin()
        await Sender(first).send(lines(lease, 1, 2))
        await watch.more(2)
        assert watch.seqs == [1, 2]
        await watch.close()


async def test_a_cursor_must_be_of_this_log_and_not_too_old(start: Start, database: Database) -> None:
    """FL-10: what is gone is said to be gone."""
    first, _ = await start(log_retention_days=2)
    async with leased(first) as (_, lease):
        sender = Sender(first)
        await sender.send(lines(lease, 1, 3))
        watch = Watched(first, LogQuery(lease.task.run_id))
        await watch.begin()
        await watch.more(1)
        await watch.close()
        await database.pass_time(5 * DAY_S)
        await sender.send(lines(lease, 4, 4))
        await first.loops.sweep()
        for cursor, code in ((watch.cursor, "EXPIRED"), ("nonsense", "INVALID")):
            with pytest.raises(ValidationFailed) as refused:
                await Watched(first, LogQuery(lease.task.run_id), cursor).begin()
            assert [(each.field, each.code) for each in refused.value.details] == [("cursor", code)]
        with pytest.raises(NotFound):
            await Watched(first, LogQuery(lease.task.run_id), who=principal("eve", "other")).begin()


async def test_the_numbers_of_a_run_go_on_however_long_it_was_silent(start: Start, database: Database) -> None:
    """DC-6, FL-10: who follows is sent what comes then, and so is who comes back."""
    first, second = await start(log_retention_days=2)
    async with leased(first) as (worker, lease):
        sender, watch = Sender(first), Watched(first, LogQuery(lease.task.run_id))
        await sender.send(lines(lease, 1, 3))
        await watch.begin()
        await watch.more(3)
        cursor = watch.cursor
        await database.pass_time(5 * DAY_S)
        await first.loops.sweep()
        assert await read(first, lease.task.id) == []
        await sender.send(lines(lease, 4, 5))
        resumed = Watched(second, LogQuery(lease.task.run_id), cursor)
        await resumed.begin()
        for each in (watch, resumed):
            await each.more(2)
            assert each.seqs[-2:] == [4, 5]
            await each.close()
        # Of a run that has ended it is forgotten where its log did.
        await worker.complete(lease)
        await database.pass_time(5 * DAY_S)
        await first.loops.sweep()
        assert await database.value("SELECT count(*) FROM run_log_end") == 0
        with pytest.raises(ValidationFailed) as refused:
            await Watched(second, LogQuery(lease.task.run_id), watch.cursor).begin()
        assert [(each.field, each.code) for each in refused.value.details] == [("cursor", "EXPIRED")]


async def test_what_was_acknowledged_survives_a_server_that_is_killed_in_a_flood(
    start: Start, database: Database
) -> None:
    """DC-6: it is stored, what was not goes to another server, and nothing is there twice."""
    first, second = await start()
    async with leased(second) as (_, lease):
        sender, acked = Sender(first), 0
        for n in range(0, 20_000, 1000):
            sender.put(lines(lease, n + 1, n + 1000))
        while acked < 5000:
            acked = (await sender.told()).offset
        await killed(first)
        while not sender.acks.empty():
            acked = sender.acks.get_nowait().offset
        stored = await database.value("SELECT max(n) FROM task_log")
        assert acked <= stored < 20_000
        other = Sender(second)
        for n in range(acked, 20_000, 1000):
            other.put(lines(lease, n + 1, min(n + 1000, 20_000)))
        while acked < 20_000:
            acked = (await other.told()).offset
        found = await database.rows("SELECT count(*) AS all, count(DISTINCT n) AS once, max(seq) AS last FROM task_log")
        assert found == [{"all": 20_000, "once": 20_000, "last": 20_000}]
