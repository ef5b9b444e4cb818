"""Watching: every artifact once, whichever server stores it or serves the watch, and however often it breaks."""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
from tests.engine.database import Database
from tests.engine.servers import Start, acquainted, eventually, killed, server
from tests.engine.test_visibility_matrix import KINDS, PRIVATE, PUBLISHER, READERS, publish_all, reader
from tests.engine.workers import chain_worker
from tests.engine.world import CHAIN, ROOT, TENANT, made, order, principal, register, seconds

from millstream.application import feed as feed_module
from millstream.application import following, watch_kinds, watches
from millstream.application.ids import new_id
from millstream.application.views.artifacts import Sent
from millstream.application.watch_cursor import WatchCursor
from millstream.application.watches import WatchFilter
from millstream.domain.artifacts import Artifact, NewArtifact, Visibility
from millstream.domain.errors import ValidationFailed
from millstream.domain.principals import Principal
from millstream.store.feed import packed
from millstream.wiring import Service

ALL = WatchFilter()
PATIENCE_S = 20.0


class Watch:
    """A watch that collects what it is sent, and can be broken off and resumed."""

    def __init__(self, who: Principal = ROOT, wanted: WatchFilter = ALL) -> None:
        self.who = who
        self.wanted = wanted
        self.cursor = ""
        self.found: list[Artifact] = []

    @property
    def ids(self) -> list[str]:
        return [artifact.id for artifact in self.found]

    @property
    def names(self) -> set[str]:
        return {artifact.partition_key for artifact in self.found}

    @contextlib.asynccontextmanager
    async def at(self, service: Service) -> AsyncIterator[Callable[[int], Coroutine[Any, Any, None]]]:
        """Watch at a server for the length of the block, which asks for so many artifacts."""
        stream = service.watching.watch(self.who, self.wanted, self.cursor)
        async with contextlib.aclosing(stream):
            async with asyncio.timeout(PATIENCE_S):
                self.take(await anext(stream))

            async def more(count: int) -> None:
                wanted = len(self.found) + count
                async with asyncio.timeout(PATIENCE_S):
                    while len(self.found) < wanted:
                        self.take(await anext(stream))

            yield more

    def take(self, sent: Sent) -> None:
        self.cursor = sent.cursor
        if sent.artifact is not None:
            self.found.append(sent.artifact)


async def publish(service: Service, count: int = 1, who: Principal = ROOT, **fields: Any) -> list[str]:
    """Publish so many orders, each in a cascade of its own; their ids."""
    return [(await service.artifacts.publish(who, order(n, **fields), None)).artifact_id for n in range(count)]


async def test_a_watch_sends_what_is_stored_from_its_first_word_on(start: Start) -> None:
    """At both servers, whichever watches: from the first message on, and nothing of before."""
    here, there = await start()
    await register(here, ("Order",))
    await publish(here, 3)
    watch = Watch()
    async with watch.at(there) as more:
        ids = [*await publish(here, 3), *await publish(there, 3)]
        await more(6)
    assert sorted(watch.ids) == sorted(ids)
    assert [each for each in watch.ids if each in ids[:3]] == ids[:3]
    assert [each for each in watch.ids if each in ids[3:]] == ids[3:]


async def test_a_cascade_is_watched_with_all_that_agents_make(start: Start) -> None:
    here, there = await start()
    await register(here, CHAIN)
    watch = Watch()
    async with chain_worker(there), watch.at(here) as more:
        await here.artifacts.publish(ROOT, order(), None)
        await more(4)
    assert [artifact.type for artifact in watch.found] == [*CHAIN]


async def test_filters_choose(start: Start) -> None:
    """Types, producers, tags, visibility, cascade: any of those given, and all of what is given."""
    here, _ = await start()
    await register(here, ("Order", "Payment", "Note"))
    run_id = new_id()
    items = {
        "order": order(correlation_id=run_id, tags=("a",)),
        "payment": made("Payment", run_id),
        "note": made("Note"),
        "hidden": order(tags=("b", "c"), visibility=PRIVATE),
    }
    filters = {
        WatchFilter(types=frozenset({"Order", "Note"})): {"order", "note", "hidden"},
        WatchFilter(tags=frozenset({"a", "b"})): {"order", "hidden"},
        WatchFilter(correlation_id=run_id): {"order", "payment"},
        WatchFilter(produced_by=frozenset({"nobody"})): set(),
        WatchFilter(visibility=frozenset({"Private"})): {"hidden"},
        WatchFilter(types=frozenset({"Order"}), tags=frozenset({"c"})): {"hidden"},
    }
    for name, item in items.items():
        item.partition_key = name
    end = NewArtifact("Note", partition_key="end")
    async with contextlib.AsyncExitStack() as stack:
        opened = []
        for wanted in [*filters]:
            watch = Watch(wanted=wanted)
            opened.append((watch, await stack.enter_async_context(watch.at(here))))
        every = Watch()
        all_more = await stack.enter_async_context(every.at(here))
        for item in (*items.values(), end):
            await here.artifacts.publish(ROOT, item, None)
        await all_more(5)
        for watch, more in opened:
            # All were handed out with the same reading; who matches nothing more would wait for ever.
            expected = filters[watch.wanted] | ({"end"} if watch.wanted.matches(every.found[-1]) else set())
            await more(len(expected))
            assert watch.names == expected


async def test_nothing_is_lost_or_doubled_while_many_publish_and_the_watch_breaks_off_again_and_again(
    start: Start, owner_path: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Publishers at both servers, one by one, in batches and into one cascade; watches cut anywhere, also in the midst
    of a batch, resumed at the other server: each artifact once, those of each publisher in its order."""
    monkeypatch.setattr(feed_module, "ROWS_READ", 3)
    monkeypatch.setattr(watch_kinds, "ROWS_READ", 3)
    monkeypatch.setattr(feed_module, "LOADED_MOST", 5)
    monkeypatch.setattr(watch_kinds, "LOADED_MOST", 5)
    here, there = await start(owner_path=owner_path)
    await register(here, ("Order",))
    chance = random.Random(7)
    shared = (await here.artifacts.publish(ROOT, order(), None)).correlation_id
    stored: dict[int, list[str]] = {}

    async def one_by_one(number: int, service: Service, correlation_id: str) -> None:
        for n in range(60):
            given = await service.artifacts.publish(ROOT, order(n, correlation_id=correlation_id), None)
            stored.setdefault(number, []).append(given.artifact_id)

    async def in_batches(number: int, service: Service) -> None:
        for _ in range(6):
            batch = await service.artifacts.publish_batch(ROOT, [order(n) for n in range(50)], [None] * 50, None)
            stored.setdefault(number, []).extend(each.artifact_id for each in batch.results)  # type: ignore[union-attr]

    publishers = [one_by_one(n, (here, there)[n % 2], shared if n % 3 == 0 else "") for n in range(6)]
    publishers += [in_batches(6, here), in_batches(7, there)]
    total = 6 * 60 + 2 * 300
    followers = [Watch(), Watch(), Watch(reader("anyone"))]

    async def follow(watch: Watch, number: int) -> None:
        breaks = 0
        while len(watch.found) < total:
            async with watch.at((here, there)[(breaks + number) % 2]) as more:
                await more(min(chance.choice((0, 1, 2, 7, 33, 150)), total - len(watch.found)))
            breaks += 1
        assert breaks > 10

    first = [watch.at(here) for watch in followers]
    for opened in first:
        # Its first word is the cursor from which on all is watched.
        async with opened:
            pass
    async with asyncio.timeout(60):
        await asyncio.gather(*publishers, *(follow(watch, number) for number, watch in enumerate(followers)))
    for watch in followers:
        assert Counter(watch.ids) == Counter(each for ids in stored.values() for each in ids)
        for ids in stored.values():
            mine = set(ids)
            assert [each for each in watch.ids if each in mine] == ids


async def test_what_is_committed_late_comes_late_and_once(start: Start, database: Database) -> None:
    """Rule 3: a transaction that was begun first and committed last has older ids and times than what was sent already;
    also behind a cursor from in between."""
    here, there = await start()
    await register(here, ("Order",))
    (first,) = await publish(here)
    async with database.other() as stalled:
        transaction = stalled.transaction()
        await transaction.start()
        late = new_id()
        await stalled.execute(
            """INSERT INTO artifact (tenant, id, run_id, seq, type, version, payload, produced_by, visibility_kind,
            visibility, partition_key, created_us, published_by)
            SELECT tenant, $1::text::uuid, run_id, 77, type, version, payload, produced_by, visibility_kind,
            visibility, 'late', created_us, published_by FROM artifact WHERE id = $2::text::uuid""",
            late,
            first,
        )
        item = await here.artifacts.get(ROOT, first)
        item.id = late
        lane = new_id()
        await stalled.execute(
            "INSERT INTO commit_batch (lane, n, at_us, artifacts) VALUES ($1::text::uuid, 5, $2, $3)",
            lane,
            await database.now_us(),
            packed([item]),
        )
        watch, other = Watch(), Watch()
        async with watch.at(here) as more, other.at(there) as other_more:
            ids = await publish(there, 2)
            await more(2)
            await other_more(1)
            assert all(each > late for each in ids)
            await transaction.commit()
            (last,) = await publish(here)
            await more(2)
        async with other.at(here) as other_more:
            await other_more(3)
    for each in (watch, other):
        assert Counter(each.ids) == Counter([*ids, late, last])


async def test_another_server_goes_on_where_a_killed_one_stopped(start: Start, database: Database) -> None:
    """kill -9 of the server that serves the watch, and of the one that stores: what it stored is in the feed."""
    here, there = await start()
    await register(here, ("Order",))
    watch = Watch()
    async with server(database) as third:
        await acquainted(here, there, third)
        async with watch.at(third) as more:
            before = await publish(third, 5)
            await more(2)
        after_ids = await publish(third, 3)
        await killed(third)
    # Its lane is swept as one that is gone, but what it stored is kept for those who resume.
    await database.execute("UPDATE lane SET seen_us = 0 WHERE id = $1::text::uuid", third.engine.lane_id)
    await here.loops.sweep()
    async with watch.at(there) as more:
        await more(6)
        (last,) = await publish(here)
        await more(1)
    assert watch.ids == [*before, *after_ids, last]


async def test_a_slow_watcher_holds_little_and_misses_nothing(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its inbox is bounded; what does not fit it reads from the store, in its own time."""
    monkeypatch.setattr(feed_module, "INBOX_ROWS", 5)
    here, there = await start()
    await register(here, ("Order",))
    watch = Watch()
    async with watch.at(here) as more:
        ids = await publish(here, 1)
        await more(1)
        for number in range(40):
            ids += await publish((here, there)[number % 2], 1)
            for watchers in here.core.feed._watchers.values():
                assert all(len(each.items) <= 5 for each in watchers)
        await more(40)
        ids += await publish(here, 1)
        await more(1)
    assert Counter(watch.ids) == Counter(ids)


async def test_while_nobody_watches_the_feed_is_not_read(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Publishing costs no statement more, here and at other servers, before a watch and after it."""
    here, there = await start()
    await register(here, ("Order",))
    read: list[str] = []
    rows = here.core.feed._store.rows

    async def noted(*arguments: object) -> object:
        read.append("rows")
        return await rows(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(here.core.feed._store, "rows", noted)
    await publish(here, 3)
    await publish(there, 3)
    await here.loops.poll()
    assert read == []
    watch = Watch()
    async with watch.at(here) as more:
        await publish(there, 1)
        await more(1)
    assert read != []
    read.clear()
    await publish(here, 3)
    await here.loops.poll()
    assert read == []
    assert here.core.feed._places is None


async def test_another_server_is_woken(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule 8: without the safety poll, by the one that stores, once it knows of the watch."""
    here, there = await start()
    await register(here, ("Order",))
    look = there.core.feed.look
    monkeypatch.setattr(there.core.feed, "look", lambda tenants=None: look(tenants) if tenants is not None else None)
    watch = Watch()
    async with watch.at(there) as more:

        async def known() -> bool:
            return here.core.peers._watching

        asked = asyncio.create_task(more(1))
        await eventually(known, "that the other server knows of the watch")
        await publish(here, 1)
        await asked
    assert len(watch.found) == 1


# ---- one cascade


async def test_a_cascade_is_watched_from_its_first_artifact_on(start: Start) -> None:
    """History first, then what comes; one that is not there yet is waited for, and others are nothing to it."""
    here, there = await start()
    await register(here, ("Order",))
    run_id = new_id()
    wanted = WatchFilter(correlation_id=run_id)
    early = Watch(wanted=wanted)
    async with early.at(there) as early_more:
        ids = await publish(here, 5, correlation_id=run_id)
        await publish(here, 3)
        late = Watch(wanted=wanted)
        async with late.at(there) as late_more:
            await late_more(5)
            ids += await publish(there, 3, correlation_id=run_id)
            await late_more(3)
        await early_more(8)
    assert early.ids == late.ids == ids


async def test_a_cascade_is_watched_without_loss_or_double_while_it_is_written_everywhere(
    start: Start, owner_path: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order of its numbers, cut and resumed at both servers, however the writers contend for it."""
    monkeypatch.setattr(watch_kinds, "LOADED_MOST", 7)
    here, there = await start(owner_path=owner_path)
    await register(here, ("Order",))
    run_id = (await here.artifacts.publish(ROOT, order(), None)).correlation_id
    total, breaks = 1 + 4 * 50, 0
    watch = Watch(wanted=WatchFilter(correlation_id=run_id))

    async def follow() -> None:
        nonlocal breaks
        while len(watch.found) < total:
            async with watch.at((here, there)[breaks % 2]) as more:
                await more(min((1, 5, 13)[breaks % 3], total - len(watch.found)))
            breaks += 1

    writers = [publish((here, there)[n % 2], 50, correlation_id=run_id) for n in range(4)]
    async with asyncio.timeout(60):
        await asyncio.gather(follow(), *writers)
    numbers = [artifact.seq for artifact in watch.found]
    assert numbers == sorted(set(numbers))
    assert (len(numbers), breaks > 10) == (total, True)


async def test_what_a_cascade_hides_comes_in_its_time_and_its_cursor_never_expires(
    start: Start, database: Database
) -> None:
    """FL-6: also behind a cursor that is older than any of a tenant's watch may be."""
    here, there = await start(watch_resume_s=60)
    await register(here, ("Order",))
    run_id = new_id()
    await publish(here, 1, PUBLISHER, correlation_id=run_id)
    for name, visibility in (("minute", 60), ("hour", 3600)):
        hidden = Visibility("After", ttl_us=seconds(visibility))
        await publish(here, 1, PUBLISHER, correlation_id=run_id, visibility=hidden, partition_key=name)
    await publish(here, 1, PUBLISHER, correlation_id=run_id, visibility=PRIVATE, partition_key="private")
    watch = Watch(reader("anyone"), WatchFilter(correlation_id=run_id))
    for passed, names in ((0, {""}), (61, {"", "minute"}), (3700, {"", "minute", "hour"})):
        await database.pass_time(passed)
        async with watch.at((here, there)[passed % 2]) as more:
            await more(len(names) - len(watch.found))
        assert watch.names == names
    assert len(watch.found) == 3


async def test_a_cursor_goes_on_with_the_watch_it_is_of(start: Start) -> None:
    here, _ = await start()
    one, other, every = Watch(wanted=WatchFilter(correlation_id=new_id())), new_id(), Watch()
    for watch in (one, every):
        async with watch.at(here):
            pass
    for cursor, wanted, told in (
        (one.cursor, WatchFilter(correlation_id=other), "of the cascade"),
        (every.cursor, WatchFilter(correlation_id=other), "of all cascades"),
        (one.cursor, ALL, "of the cascade"),
    ):
        with pytest.raises(ValidationFailed, match=told) as caught:
            await anext(here.watching.watch(ROOT, wanted, cursor))
        assert caught.value.details[0].field == "cursor"


# ---- who sees what, and when


@pytest.mark.parametrize("name", READERS)
async def test_a_watch_shows_what_the_reader_may_see_when_it_may(start: Start, database: Database, name: str) -> None:
    """FL-6, nested After included: at once or as time passes; at servers and by cursors in turn; and once each."""
    here, there = await start()
    who, expected = READERS[name]
    kept, broken = Watch(who), Watch(who)
    async with kept.at(there) as more:
        async with broken.at(here):
            pass
        await publish_all(here)
        for minute, visible in enumerate(expected):
            if minute:
                await database.pass_time(61)
            # Woken by what everybody of the tenant sees; another tenant's watch by its own.
            fields = {"partition_key": f"probe {minute}", "correlation_id": ""}
            if who.tenant != TENANT:
                await register(here, ("Order",), tenant=who.tenant) if not minute else None
            await here.artifacts.publish(principal("prober", who.tenant), order(**fields), None)
            wanted = visible | {f"probe {n}" for n in range(minute + 1)}
            await more(len(wanted) - len(kept.found))
            assert kept.names == wanted
            async with broken.at((here, there)[minute % 2]) as broken_more:
                await broken_more(len(wanted) - len(broken.found))
            assert broken.names == wanted
    for watch in (kept, broken):
        assert max(Counter(watch.ids).values()) == 1
        assert len(watch.found) == len(expected[-1]) + 3


async def test_what_was_hidden_before_a_watch_began_comes_with_it(start: Start, database: Database) -> None:
    """FL-6, rule 13: a watch begins with a moment, and shows all that becomes visible behind it."""
    here, _ = await start()
    await register(here, ("Order",))
    for name in ("after", "after-private", "public"):
        await here.artifacts.publish(PUBLISHER, order(visibility=KINDS[name], partition_key=name), None)
    watch = Watch(reader("anyone"))
    async with watch.at(here) as more:
        await publish(here, 1)
        await more(1)
        await database.pass_time(61)
        await publish(here, 1)
        await more(2)
    assert watch.names == {"after", ""}


async def test_many_that_become_visible_come_in_that_order_and_once(
    start: Start, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than a watch keeps in memory: the rest is read when these are sent, also with new ones in between."""
    monkeypatch.setattr(watches, "HELD_MOST", 4)
    monkeypatch.setattr(watches, "LOADED_MOST", 3)
    here, there = await start()
    await register(here, ("Order",))
    watch, whole = Watch(reader("anyone")), Watch(reader("anyone"))
    hidden: dict[int, list[str]] = {}
    async with whole.at(there) as more:
        async with watch.at(here):
            pass
        for number in range(30):
            ttl = 10 + number % 5
            found = await publish(here, 1, PUBLISHER, visibility=Visibility("After", ttl_us=seconds(ttl)))
            hidden.setdefault(ttl, []).extend(found)
        passed = 0
        for ttl in (5, 11, 12, 20):
            await database.pass_time(ttl - passed)
            passed = ttl
            probe = await publish((here, there)[ttl % 2], 1)
            hidden.setdefault(0, []).extend(probe)
            due = sum(len(ids) for after_s, ids in hidden.items() if 0 < after_s <= ttl)
            await more(due + len(hidden[0]) - len(whole.found))
            for part in (due // 2, due - due // 2):
                async with watch.at((here, there)[part % 2]) as some:
                    target = min(len(whole.found), len(watch.found) + part + 1)
                    await some(target - len(watch.found))
    async with watch.at(here) as some:
        await some(34 - len(watch.found))
    for each in (watch, whole):
        assert Counter(each.ids) == Counter(artifact_id for ids in hidden.values() for artifact_id in ids)
    by_time = [artifact_id for ttl in range(10, 15) for artifact_id in hidden[ttl]]
    assert [each for each in whole.ids if each not in hidden[0]] == by_time


# ---- cursors


@pytest.mark.parametrize("cursor", ["x", "é", "AQ", "A" * 400, "AgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "A" * 34])
async def test_what_is_no_cursor_is_a_field_error(start: Start, cursor: str) -> None:
    here, _ = await start()
    with pytest.raises(ValidationFailed) as caught:
        await anext(here.watching.watch(ROOT, ALL, cursor))
    assert caught.value.details[0].field == "cursor"
    assert here.core.feed.watched == set()


async def test_a_cursor_shows_nothing_before_its_time(start: Start, database: Database) -> None:
    """FL-6: one that was made up for tomorrow is refused."""
    here, _ = await start()
    forged = WatchCursor({}, await database.now_us() + seconds(3600)).encode()
    with pytest.raises(ValidationFailed):
        await anext(here.watching.watch(reader("anyone"), ALL, forged))


async def test_a_cursor_that_is_too_old_is_refused_and_the_feed_kept_until_then(
    start: Start, database: Database
) -> None:
    """It never skips what is gone: while it is taken, all behind it is there."""
    here, there = await start(watch_resume_s=600)
    await register(here, ("Order",))
    watch = Watch()
    async with watch.at(here):
        pass
    ids = await publish(there, 3)
    await database.pass_time(599)
    await here.loops.sweep()
    async with watch.at(here) as more:
        await more(3)
    assert watch.ids == ids
    old = watch.cursor
    await database.pass_time(601)
    with pytest.raises(ValidationFailed) as caught:
        async with watch.at(there):
            pass
    assert caught.value.details[0].code == "EXPIRED"
    assert WatchCursor.decode(old).places
    await database.pass_time(300)
    await here.loops.sweep()
    assert await database.value("SELECT count(*) FROM commit_batch WHERE artifacts <> ''") == 0
    fresh = Watch()
    async with fresh.at(here) as more:
        (last,) = await publish(here)
        await more(1)
    assert fresh.ids == [last]


async def test_a_heartbeat_moves_the_cursor(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who filters much does not fall behind what can be resumed."""
    monkeypatch.setattr(following, "HEARTBEAT_S", 0.01)
    here, _ = await start()
    await register(here, ("Order",))
    stream = here.watching.watch(ROOT, WatchFilter(types=frozenset({"Other"})), "")
    async with contextlib.aclosing(stream), asyncio.timeout(PATIENCE_S):
        first = WatchCursor.decode((await anext(stream)).cursor)
        await publish(here, 1)
        while (beat := WatchCursor.decode((await anext(stream)).cursor)).covers(first.places):
            if beat.at_us > first.at_us and beat.places != first.places:
                break
    assert beat.covers(first.places)
