"""Watching runs, with a store in memory that a test may hold up, or have fail."""

import asyncio
import contextlib
import itertools
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import cast

import pytest

from millstream.adapters.metrics import Metrics
from millstream.application.engine.clock import Clock
from millstream.application.ports import RunHead
from millstream.application.run_feed import RunFeed
from millstream.application.run_topics import RunSent
from millstream.application.run_watches import RunReads, RunWatching
from millstream.application.sight import READ_ALL, Sight, SightReads
from millstream.domain.artifacts import Reader
from millstream.domain.children import child_id
from millstream.domain.errors import Unavailable, ValidationFailed
from millstream.domain.principals import Principal
from millstream.domain.runs import Event, EventType

ROOT = "0190f5e2-0000-7000-8000-000000000000"
TASKS = [f"0190f5e2-0000-7000-9000-{n << 8:012x}" for n in range(1, 1000)]
CHILDREN = [child_id(task, 1) for task in TASKS]
WAITS = '{"kind":"workflow:w","queue":"~child"}'
WHO = Principal("root", "acme", frozenset({"runs.read", READ_ALL}))
BLIND = Principal("blind", "acme", frozenset({"runs.read"}))
PATIENCE_S = 5.0


async def at_once() -> None:
    """Nothing holds a reading up."""


class Store:
    """Events of runs.

    Attributes:
        reads: After which numbers of which runs events were read.
        read: Awaited by each such reading when it has found what it will return.
        asked: Awaited with the runs whose heads are asked for.
    """

    def __init__(self) -> None:
        self.events: dict[str, list[Event]] = {}
        self.reads: list[dict[str, int]] = []
        self.rows = 0
        self.read: Callable[[], Awaitable[None]] = at_once
        self.asked: Callable[[Sequence[str]], Awaitable[None]] = lambda _: at_once()

    def add(self, run_id: str, kind: EventType, task_id: str = "", *, at_us: int = 0, artifact: str = "") -> None:
        of_run = self.events.setdefault(run_id, [])
        data = WAITS if kind is EventType.TASK_CREATED else ""
        of_run.append(Event(run_id, 0, len(of_run) + 1, kind, at_us, task_id, artifact, 0, data))

    async def heads(self, run_ids: Sequence[str]) -> dict[str, RunHead]:
        await self.asked(run_ids)
        return {each: RunHead(len(self.events[each]), False) for each in run_ids if each in self.events}

    async def events_of(
        self, after: Mapping[str, int], limit: int, upto: Mapping[str, int] | None = None
    ) -> list[Event]:
        self.reads.append(dict(after))
        found: list[Event] = []
        for run_id, seq in after.items():
            last = upto[run_id] if upto is not None else 1 << 40
            found += [each for each in self.events.get(run_id, ()) if seq < each.seq <= last][:limit]
        self.rows += len(found)
        await asyncio.sleep(0)
        await self.read()
        return found

    async def branches(self, upto: Mapping[str, int]) -> list[Event]:
        return [each for run_id in upto for each in self.events[run_id] if each.seq <= upto[run_id]]

    async def run(self, tenant: str, run_id: str) -> object:
        return self.events.get(run_id)


class Judging:
    """Judges what a reader may see: nothing of what is hidden.

    Attributes:
        asked: What it was asked about, at once each.
    """

    def __init__(self, *hidden: str) -> None:
        self.hidden = set(hidden)
        self.asked: list[list[str]] = []

    async def seen(self, tenant: str, ids: Sequence[str], reader: Reader, now_us: int) -> set[str]:
        self.asked.append([*ids])
        return {*ids} - self.hidden

    async def seen_tasks(self, tenant: str, task_ids: Sequence[str], reader: Reader, now_us: int) -> set[str]:
        return await self.seen(tenant, task_ids, reader, now_us)

    async def seen_in_runs(self, tenant: str, run_ids: Sequence[str], reader: Reader, now_us: int) -> dict[str, int]:
        raise NotImplementedError


class Server:
    """A feed on a store, and those who watch by it."""

    def __init__(self, store: Store, judging: Judging | None = None) -> None:
        self.feed = RunFeed(store)
        self.clock = Clock()
        sight = Sight(cast(SightReads, judging or Judging()))
        reads, meters = cast(RunReads, store), Metrics().streams
        self._watching = RunWatching(self.clock, self.feed, reads, sight, 7, meters)

    @contextlib.asynccontextmanager
    async def watch(self, cursor: str = "", deep: bool = False, who: Principal = WHO) -> AsyncIterator["Watch"]:
        stream = self._watching.watch(who, ROOT, cursor, deep=deep)
        async with contextlib.aclosing(stream):
            yield Watch(stream)


class Watch:
    """What one who watches was sent."""

    def __init__(self, stream: AsyncIterator[RunSent]) -> None:
        self._stream = stream
        self.sent: list[RunSent] = []

    @property
    def found(self) -> list[tuple[str, int]]:
        """Run and number of each event."""
        return [(each.event.run_id, each.event.seq) for each in self.sent if each.event]

    async def more(self, count: int) -> None:
        """Be sent so many more, signs of life not counted."""
        async with asyncio.timeout(PATIENCE_S):
            while count:
                sent = await anext(self._stream)
                if sent.event or sent.streamed:
                    self.sent.append(sent)
                    count -= 1

    async def to_end(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            self.sent += [each async for each in self._stream if each.event]


@contextlib.asynccontextmanager
async def serving(store: Store, judging: Judging | None = None) -> AsyncIterator[Server]:
    """A server that reads what it is told of."""
    server = Server(store, judging)
    reading = asyncio.create_task(server.feed.run())
    try:
        yield server
    finally:
        reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reading


async def test_what_is_told_of_while_the_run_is_read_is_read_again() -> None:
    """FV-7: no event waits for the poll."""
    store = Store()
    store.add(ROOT, EventType.RUN_CREATED)
    async with serving(store) as server, server.watch() as watch:
        await watch.more(1)
        waiting = asyncio.ensure_future(watch.more(2))

        async def told_of_meanwhile() -> None:
            store.read = at_once
            store.add(ROOT, EventType.RUN_COMPLETED)
            server.feed.look(ROOT)

        store.add(ROOT, EventType.TASK_STARTED)
        store.read = told_of_meanwhile
        server.feed.look(ROOT)
        await waiting
    assert watch.found == [(ROOT, 1), (ROOT, 2), (ROOT, 3)]


async def test_a_fault_while_a_run_is_read_loses_no_wake_up() -> None:
    store = Store()
    store.add(ROOT, EventType.RUN_CREATED)
    async with serving(store) as server, server.watch() as watch:
        await watch.more(1)
        waiting = asyncio.ensure_future(watch.more(1))

        async def away() -> None:
            store.read = at_once
            raise Unavailable("the database is away", retry_after_s=0.1)

        store.add(ROOT, EventType.RUN_COMPLETED)
        store.read = away
        server.feed.look(ROOT)
        await waiting
    assert watch.found == [(ROOT, 1), (ROOT, 2)]


async def test_a_tree_that_was_loaded_half_is_not_learnt_twice() -> None:
    """FV-7: cursors of one who watched meanwhile are good at another server."""
    store = Store()
    store.add(ROOT, EventType.RUN_CREATED)
    for n in range(2):
        store.add(ROOT, EventType.TASK_CREATED, TASKS[n])
        store.add(CHILDREN[n], EventType.RUN_CREATED)
    store.add(CHILDREN[0], EventType.TASK_STARTED)
    begun, goes_on = asyncio.Event(), asyncio.Event()

    async def away(run_ids: Sequence[str]) -> None:
        if CHILDREN[0] in run_ids and not begun.is_set():
            begun.set()
            await goes_on.wait()
            raise Unavailable("the database is away", retry_after_s=0.1)

    store.asked = away
    async with serving(store) as server, serving(store) as other:
        async with server.watch(deep=True) as first, server.watch(deep=True) as second:
            failing = asyncio.ensure_future(first.more(1))
            await begun.wait()
            meanwhile = asyncio.ensure_future(second.more(6))
            await asyncio.sleep(0)
            goes_on.set()
            with pytest.raises(Unavailable):
                await failing
            await meanwhile
        assert len(second.found) == 6
        for n, sent in enumerate(second.sent):
            async with other.watch(sent.cursor, deep=True) as rest:
                await rest.more(5 - n)
            assert {*rest.found, *second.found[: n + 1]} == set(second.found)


async def with_a_child(store: Store) -> None:
    store.add(ROOT, EventType.RUN_CREATED)
    store.add(ROOT, EventType.TASK_CREATED, TASKS[0])
    store.add(CHILDREN[0], EventType.RUN_CREATED)
    store.add(CHILDREN[0], EventType.RUN_COMPLETED)


async def test_a_child_that_went_while_its_tree_was_watched_is_left_out() -> None:
    """FV-7: its retention is over, and the root goes on; whoever comes later is sent what there is, and then waits."""
    store = Store()
    await with_a_child(store)
    async with serving(store) as server, server.watch(deep=True) as first:
        await first.more(4)
        del store.events[CHILDREN[0]]
        async with server.watch(deep=True) as second:
            await second.more(2)
            waiting = asyncio.ensure_future(second.more(1))
            before = len(store.reads)
            for _ in range(100):
                await asyncio.sleep(0)
            assert len(store.reads) - before < 5
            store.add(ROOT, EventType.TASK_STARTED)
            server.feed.look(ROOT)
            await waiting
        assert second.found == [(ROOT, 1), (ROOT, 2), (ROOT, 3)]


async def test_who_was_sent_a_part_of_a_child_that_went_is_told_so() -> None:
    """FV-7: at the server, too, that still knows of it."""
    store = Store()
    await with_a_child(store)
    async with serving(store) as server, server.watch(deep=True) as first:
        await first.more(4)
        assert first.found[2] == (CHILDREN[0], 1)
        del store.events[CHILDREN[0]]
        async with server.watch(first.sent[2].cursor, deep=True) as second:
            with pytest.raises(ValidationFailed) as caught:
                await second.more(1)
    assert [(each.field, each.code) for each in caught.value.details] == [("cursor", "EXPIRED")]


async def test_what_a_restricted_reader_is_sent_is_judged_at_once() -> None:
    """FL-12: one question for a page of history, and one for all that came meanwhile."""
    store, judging = Store(), Judging("hidden")
    for n in range(300):
        store.add(ROOT, EventType.ARTIFACT_PUBLISHED, artifact=f"a{n}" if n % 2 else "hidden")
    async with serving(store, judging) as server, server.watch(who=BLIND) as watch:
        await watch.more(300)
        assert len(judging.asked) == 1
        waiting = asyncio.ensure_future(watch.more(100))
        for n in range(300, 400):
            store.add(ROOT, EventType.ARTIFACT_PUBLISHED, artifact=f"a{n}" if n % 2 else "hidden")
        server.feed.look(ROOT)
        await waiting
    assert len(judging.asked) < 5
    told = [each.event.artifact_id for each in watch.sent if each.event]
    assert told == [f"a{n}" if n % 2 else "" for n in range(400)]


def in_order(sent: Sequence[RunSent]) -> None:
    """Events are by time, and none of a child comes before that by which its parent told of it."""
    events = [each.event for each in sent if each.event]
    assert [event.at_us for event in events] == sorted(event.at_us for event in events)
    begun = {ROOT}
    for event in events:
        assert event.run_id in begun
        if event.type is EventType.TASK_CREATED:
            begun.add(child_id(event.task_id, 1))


@pytest.mark.parametrize("children", [3, 700])
async def test_the_history_of_a_tree_comes_by_time(children: int) -> None:
    """FV-7: as it came live, from wherever it is read; the end of the root at last."""
    store, clock, chance = Store(), itertools.count(1), random.Random(children)
    store.add(ROOT, EventType.RUN_CREATED, at_us=next(clock))
    for n in range(children):
        store.add(ROOT, EventType.TASK_CREATED, TASKS[n], at_us=next(clock))
    left = dict.fromkeys(range(children), 6)
    while left:
        n = chance.choice([*left][:50])
        left[n] -= 1
        kinds = {5: EventType.RUN_CREATED, 0: EventType.RUN_COMPLETED}
        store.add(CHILDREN[n], kinds.get(left[n], EventType.TASK_STARTED), at_us=next(clock))
        if not left[n]:
            del left[n]
            store.add(ROOT, EventType.TASK_COMPLETED, TASKS[n], at_us=next(clock))
    store.add(ROOT, EventType.RUN_COMPLETED, at_us=next(clock))
    count = next(clock) - 1
    async with serving(store) as server:
        async with server.watch(deep=True) as whole:
            await whole.to_end()
        assert len(set(whole.found)) == len(whole.found) == count
        in_order(whole.sent)
        assert store.rows < 3 * count
        for n in chance.sample(range(count - 1), 10):
            async with server.watch(whole.sent[n].cursor, deep=True) as rest:
                await rest.to_end()
            assert rest.found == whole.found[n + 1 :]


async def test_a_child_whose_clock_is_slow_comes_behind_what_its_parent_told_of_it() -> None:
    """Clocks of servers differ."""
    store = Store()
    store.add(ROOT, EventType.RUN_CREATED, at_us=100)
    store.add(ROOT, EventType.TASK_CREATED, TASKS[0], at_us=101)
    store.add(CHILDREN[0], EventType.RUN_CREATED, at_us=50)
    store.add(CHILDREN[0], EventType.RUN_COMPLETED, at_us=51)
    store.add(ROOT, EventType.RUN_COMPLETED, at_us=102)
    async with serving(store) as server, server.watch(deep=True) as watch:
        await watch.to_end()
    assert watch.found == [(ROOT, 1), (ROOT, 2), (CHILDREN[0], 1), (CHILDREN[0], 2), (ROOT, 3)]
