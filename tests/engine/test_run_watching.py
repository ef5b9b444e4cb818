"""Watching runs: every event once, in order, at whichever server, and however often the watch breaks."""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any

import pytest
from tests.engine.database import Database
from tests.engine.servers import Roles, Start, eventually
from tests.engine.test_graph_runs import adding, define, know, step
from tests.engine.test_traces import CALL
from tests.engine.workers import Worker, chain_worker
from tests.engine.world import CHAIN, ROOT, TENANT, agent, data_of, events_of, order, principal, register, types
from tests.unit.test_events_page import documented

from millstream.application import following, run_feed, run_tree
from millstream.application.ids import new_id
from millstream.application.run_topics import RunSent
from millstream.application.tracing import CALL_TRACE
from millstream.application.views.reports import Streamed
from millstream.application.views.tasks import NewTask
from millstream.application.workflow_runs import NewRun
from millstream.domain.artifacts import Visibility
from millstream.domain.children import child_id
from millstream.domain.errors import NotFound, RateLimited, ValidationFailed
from millstream.domain.principals import Principal
from millstream.domain.runs import EventType
from millstream.domain.struct_wire import decode_value, encode_value
from millstream.domain.tracing import trace_id
from millstream.domain.workflows import Definition, StepKind
from millstream.wiring import Service

PATIENCE_S = 20.0
DOCUMENTED = documented()


class Watch:
    """A watch that collects what it is sent, and can be broken off and resumed."""

    def __init__(self, run_id: str, who: Principal = ROOT, **wanted: bool) -> None:
        self.run_id = run_id
        self.who = who
        self.wanted = wanted
        self.cursor = ""
        self.ended = False
        self.sent: list[RunSent] = []

    @property
    def found(self) -> list[tuple[str, int]]:
        """Run and number of each event."""
        return [(sent.event.run_id, sent.event.seq) for sent in self.sent if sent.event]

    @property
    def names(self) -> list[str]:
        return [EventType(sent.event.type).name for sent in self.sent if sent.event]

    def runs_of(self, name: str) -> list[str]:
        """The run of each event of that name."""
        return [sent.event.run_id for sent in self.sent if sent.event and EventType(sent.event.type).name == name]

    @contextlib.asynccontextmanager
    async def at(self, service: Service) -> AsyncIterator[Callable[[int], Coroutine[Any, Any, None]]]:
        """Watch at a server for the length of the block, which asks for so many events."""
        stream = service.run_watching.watch(self.who, self.run_id, self.cursor, **self.wanted)
        async with contextlib.aclosing(stream):
            async with asyncio.timeout(PATIENCE_S):
                self.take(await anext(stream))

            async def more(count: int) -> None:
                wanted = len(self.found) + count
                async with asyncio.timeout(PATIENCE_S):
                    while len(self.found) < wanted:
                        self.take(await anext(stream))

            yield more

    async def to_end(self, service: Service) -> None:
        """Watch at a server until the stream ends."""
        stream = service.run_watching.watch(self.who, self.run_id, self.cursor, **self.wanted)
        async with contextlib.aclosing(stream), asyncio.timeout(PATIENCE_S):
            async for sent in stream:
                self.take(sent)
        assert self.ended

    def take(self, sent: RunSent) -> None:
        assert not self.ended
        self.cursor, self.ended = sent.cursor, sent.ended
        if sent.event is not None:
            self.sent.append(sent)
            assert set(data_of(sent.event)) <= DOCUMENTED[sent.event.type.name], sent.event


async def tree_of(database: Database, root: str) -> set[tuple[str, int]]:
    """Run and number of each stored event of a run and its descendants."""
    rows = await database.rows(
        f"""WITH RECURSIVE tree(id) AS (SELECT '{root}'::uuid UNION SELECT run.id FROM run JOIN tree
        ON run.parent_id = tree.id) SELECT run_id::text, seq FROM event JOIN tree ON run_id = id"""
    )
    return {(row["run_id"], row["seq"]) for row in rows}


def check_order(watch: Watch) -> None:
    """Each run's events are in order, without a gap or a double, and none comes before the event that began its run."""
    at: dict[str, int] = defaultdict(int)
    begun = {watch.run_id}
    for sent in watch.sent:
        event = sent.event
        assert event is not None
        assert event.run_id in begun
        assert event.seq == at[event.run_id] + 1
        at[event.run_id] = event.seq
        if event.type is EventType.TASK_CREATED and run_tree.ANNOUNCES in event.data:
            begun |= {child_id(event.task_id, n) for n in range(1, 5)}


def check_times(watch: Watch) -> None:
    """History is told by time, too; that of a run, and of a child behind its parent, never goes back where it was
    stored by servers whose clocks differ a little."""
    times: dict[str, int] = defaultdict(int)
    told = 0
    for sent in watch.sent:
        event = sent.event
        assert event is not None
        at_us = times[event.run_id] = max(times[event.run_id], event.at_us)
        assert at_us >= told
        told = at_us
        if event.type is EventType.TASK_CREATED and run_tree.ANNOUNCES in event.data:
            times |= {child_id(event.task_id, n): at_us for n in range(1, 5)}


async def test_a_run_is_watched_from_its_first_event_to_its_end(start: Start) -> None:
    """FV-7: history, what comes, the end; at the server where it happens and at the other."""
    here, there = await start()
    await register(here, CHAIN)
    run_id = new_id()
    await here.artifacts.publish(ROOT, order(correlation_id=run_id), None)
    watches = [Watch(run_id), Watch(run_id)]
    async with chain_worker(there), asyncio.TaskGroup() as group:
        group.create_task(watches[0].to_end(here))
        group.create_task(watches[1].to_end(there))
    stored = [(run_id, event.seq) for event in await events_of(here, run_id)]
    for watch in watches:
        assert watch.found == stored
        assert watch.names[-1] == "RUN_COMPLETED"
    late = Watch(run_id)
    await late.to_end(there)
    assert late.found == stored
    # Nobody is left, and nothing is kept.
    assert (len(here.core.run_feed), len(there.core.run_feed)) == (0, 0)


async def test_what_follows_comes_without_being_asked_for(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """By wake-ups, not by a poll: here from memory, there told by the other server."""
    here, there = await start()
    await register(here, ("Order",), agent("slow", "Order"))
    reads = counted(here, monkeypatch)
    run_id = new_id()
    await here.artifacts.publish(ROOT, order(correlation_id=run_id), None)
    first, second = Watch(run_id), Watch(run_id)
    async with first.at(here) as more_here, second.at(there) as more_there:
        await asyncio.gather(more_here(3), more_there(3))
        await known_as_watching(there, here)
        before = len(reads)
        for service in (here, there):
            monkeypatch.setattr(service.core.run_feed, "poll", nothing)
        await here.artifacts.publish(ROOT, order(correlation_id=run_id), None)
        await asyncio.gather(more_here(2), more_there(2))
    assert first.found == second.found
    assert len(reads) == before


async def nothing() -> None:
    """In place of what must not be needed."""


def counted(service: Service, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is read of events for those who watch at a server."""
    found: list[Any] = []
    store = service.core.run_feed.store
    events_of_runs = store.events_of

    async def reading(*args: Any) -> Any:
        found.append(args)
        return await events_of_runs(*args)

    monkeypatch.setattr(store, "events_of", reading)
    return found


async def known_as_watching(watching: Service, other: Service) -> None:
    """Return when the other server knows that runs are watched at this one."""

    async def known() -> bool:
        return watching.engine.lane_id in other.core.peers._interests.get((TENANT, "", "watches runs"), ())

    await eventually(known, "that a server is known to watch")


async def test_a_thousand_watchers_share_the_reading(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """One query for an event that another server stored, however many watch, of one run or of many."""
    here, there = await start()
    await register(here, ("Order",), agent("slow", "Order"))
    runs = [new_id() for _ in range(100)]
    await asyncio.gather(*(here.artifacts.publish(ROOT, order(correlation_id=each), None) for each in runs))
    watches = [Watch(runs[0]) for _ in range(100)] + [Watch(each) for each in runs]
    async with contextlib.AsyncExitStack() as stack:
        mores = [await stack.enter_async_context(watch.at(there)) for watch in watches]
        await asyncio.gather(*(more(3) for more in mores))
        await known_as_watching(there, here)
        monkeypatch.setattr(there.core.run_feed, "poll", nothing)
        reads = counted(there, monkeypatch)
        await asyncio.gather(*(here.artifacts.publish(ROOT, order(correlation_id=each), None) for each in runs))
        await asyncio.gather(*(more(2) for more in mores))
    assert len(reads) < 20
    assert all(watch.found == [(watch.run_id, n) for n in range(1, 6)] for watch in watches)
    shared = [watch.sent[-1] for watch in watches[:101]]
    assert all(sent is shared[0] for sent in shared)


async def test_a_lost_wake_up_is_found_by_the_poll(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = await start()
    await register(here, ("Order",), agent("slow", "Order"))
    run_id = new_id()
    await here.artifacts.publish(ROOT, order(correlation_id=run_id), None)
    monkeypatch.setattr(here.core.peers, "send", lambda lane, message: None)
    watch = Watch(run_id)
    async with watch.at(there) as more:
        await more(3)
        await here.artifacts.publish(ROOT, order(correlation_id=run_id), None)
        await more(2)
    assert watch.found == [(run_id, n) for n in range(1, 6)]


@pytest.mark.parametrize("after", [0, 1, 4, 10])
async def test_a_watch_goes_on_behind_a_number(start: Start, after: int) -> None:
    """The cursor of a run alone is the number of its event."""
    here, there = await start()
    await register(here, CHAIN)
    async with chain_worker(here):
        run_id = (await here.artifacts.publish_sync(ROOT, order(), None, 20)).correlation_id
    watch = Watch(run_id)
    watch.cursor = str(after)
    await watch.to_end(there)
    stored = [(run_id, event.seq) for event in await events_of(here, run_id)]
    assert len(stored) > 10
    assert watch.found == stored[after:]
    assert watch.cursor == str(len(stored))


async def test_a_cursor_that_is_none_is_refused(start: Start, database: Database) -> None:
    here, _ = await start()
    await register(here, ("Order",))
    run_id = (await here.artifacts.publish(ROOT, order(), None)).correlation_id
    other = (await here.artifacts.publish(ROOT, order(), None)).correlation_id
    deep = Watch(other, deep=True)
    await deep.to_end(here)
    refusals: tuple[tuple[str, dict[str, bool], str], ...] = (
        ("x", {}, "is no cursor"),
        ("99", {}, f"is ahead of run {run_id}, of which event 3 is the last"),
        ("1", {"deep": True}, "of the run alone"),
        ("AA", {"deep": True}, "is no cursor"),
        ("!", {"deep": True}, "is no cursor"),
        (deep.cursor, {}, "is no cursor"),
        (deep.cursor, {"deep": True}, f"of a stream of run {other}"),
    )
    for cursor, wanted, words in refusals:
        watch = Watch(run_id, ROOT, **wanted)
        watch.cursor = cursor
        with pytest.raises(ValidationFailed, match=words):
            await watch.to_end(here)


async def test_other_tenants_learn_nothing(start: Start) -> None:
    """A run of another tenant is watched no more than one that there is not."""
    here, _ = await start()
    await register(here, ("Order",))
    run_id = (await here.artifacts.publish(ROOT, order(), None)).correlation_id
    told = []
    for each, cursor in ((run_id, ""), (new_id(), ""), (run_id, "2"), (new_id(), "2")):
        watch = Watch(each, principal(tenant="other"))
        watch.cursor = cursor
        with pytest.raises((NotFound, ValidationFailed)) as caught:
            await watch.to_end(here)
        told.append((type(caught.value), str(caught.value).replace(each, "")))
    assert told[0] == told[1]
    assert told[2] == told[3]


async def test_history_beyond_retention_is_said_to_be_gone(start: Start, database: Database) -> None:
    """FV-7: not an empty stream, and not "no such run": whoever has a cursor had it."""
    here, _ = await start()
    await register(here, ("Order",))
    watch = Watch((await here.artifacts.publish(ROOT, order(), None)).correlation_id)
    await watch.to_end(here)
    await here.core.stores.maintenance.drop_runs(1 << 60, 1 << 60, 100)
    watch.ended = False
    with pytest.raises(ValidationFailed) as caught:
        await watch.to_end(here)
    assert [(each.field, each.code) for each in caught.value.details] == [("cursor", "EXPIRED")]


async def test_a_slow_reader_is_told_where_to_go_on(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others go on meanwhile; nothing is kept for it beyond the bound, and resumed it misses nothing."""
    monkeypatch.setattr(run_feed, "INBOX_ITEMS", 10)
    here, _ = await start()
    await register(here, ("Order",), agent("slow", "Order"))
    run_id = new_id()
    await here.artifacts.publish(ROOT, order(correlation_id=run_id), None)
    slow, other = Watch(run_id), Watch(run_id)
    async with other.at(here) as other_more, slow.at(here) as more:
        await asyncio.gather(other_more(3), more(3))
        going_on = asyncio.ensure_future(more(2))
        await here.artifacts.publish(ROOT, order(correlation_id=run_id), None)
        await asyncio.gather(other_more(2), going_on)
        for _ in range(10):
            # Nobody asks the slow one's stream for more.
            await here.artifacts.publish(ROOT, order(correlation_id=run_id), None)
            await other_more(2)
        (topic,) = here.core.run_feed._topics.values()
        assert sorted(len(inbox.items) for inbox in topic.watchers) == [0, 0]
        with pytest.raises(RateLimited, match="too slow"):
            await more(1)
    async with slow.at(here) as more:
        await more(20)
    assert slow.found == other.found == [(run_id, n) for n in range(1, 26)]


async def test_a_quiet_watch_shows_that_it_lives(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "HEARTBEAT_S", 0.01)
    here, _ = await start()
    await register(here, ("Order",), agent("slow", "Order"))
    run_id = new_id()
    await here.artifacts.publish(ROOT, order(correlation_id=run_id), None)
    beats = []
    async with contextlib.aclosing(here.run_watching.watch(ROOT, run_id)) as stream:
        async for sent in stream:
            if sent.event is None:
                beats.append(sent.cursor)
            if len(beats) > 2:
                break
    assert beats == ["0", "3", "3"]


async def test_a_reopened_cascade_is_watched_on(start: Start) -> None:
    """Who watched until it ended goes on behind the last event."""
    here, there = await start()
    await register(here, ("Order",))
    watch = Watch((await here.artifacts.publish(ROOT, order(), None)).correlation_id)
    await watch.to_end(there)
    await here.artifacts.publish(ROOT, order(correlation_id=watch.run_id), None)
    watch.ended = False
    await watch.to_end(there)
    assert watch.found == [(watch.run_id, event.seq) for event in await events_of(here, watch.run_id)]
    assert watch.names.count("RUN_COMPLETED") == 2


async def test_events_name_the_trace_of_their_run(start: Start) -> None:
    """FV-13: of a run that belongs to one, and of its child, those by which a run and a task begin."""
    here, there = await start()
    know(Roles(here, there), Definition("child", (step("inner"),), version=1))
    define(Roles(here, there), step("a"), step("b", "a", kind=StepKind.WORKFLOW, target="child"))
    token = CALL_TRACE.set(CALL)
    async with Worker(here, kinds=["a", "inner"], handler=adding):
        run_id = (await there.workflow_runs.execute_sync(ROOT, NewRun("w"), None, 10)).run.id
    CALL_TRACE.reset(token)
    watch = Watch(run_id, deep=True)
    await watch.to_end(there)
    named = [sent.event for sent in watch.sent if sent.event and "trace_id" in sent.event.data]
    begins = [EventType.RUN_CREATED, EventType.TASK_CREATED, EventType.TASK_CREATED]
    assert [event.type for event in named] == [*begins, *begins[:2]]
    assert {data_of(event)["trace_id"] for event in named} == {trace_id(CALL)}


async def test_only_what_happens_to_tasks(start: Start) -> None:
    """FV-13"""
    here, there = await start()
    await register(here, CHAIN)
    async with chain_worker(here):
        run_id = (await here.artifacts.publish_sync(ROOT, order(), None, 20)).correlation_id
    watch, every = Watch(run_id, tasks=True), Watch(run_id)
    await watch.to_end(there)
    await every.to_end(there)
    assert set(watch.names) == {"TASK_CREATED", "TASK_STARTED", "TASK_COMPLETED"}
    assert watch.names == [name for name in every.names if name.startswith("TASK_")]


async def test_artifacts_stay_hidden_in_events(start: Start) -> None:
    """As in the list of events: the number is told, and not what it is about."""
    here, _ = await start()
    await register(here, ("Order",))
    run_id = new_id()
    hidden = Visibility("Private", agents=("nobody",))
    await here.artifacts.publish(ROOT, order(correlation_id=run_id, visibility=hidden), None)
    blind = Principal("blind", TENANT, frozenset({"runs.read", "artifacts.read"}))
    shown = {}
    for who in (ROOT, blind):
        watch = Watch(run_id, who)
        await watch.to_end(here)
        events, _ = await here.runs.events(who, run_id, 0, 100)
        assert [sent.event for sent in watch.sent] == events
        shown[who.name] = [event.artifact_id for event in events if event.type is EventType.ARTIFACT_PUBLISHED]
    assert all(shown["root"])
    assert shown["blind"] == [""]


async def test_what_a_task_streams_is_hidden_with_what_it_was_given(start: Start) -> None:
    """FL-12: as its logs and its output, at every server; of another task of the run it is shown."""
    here, there = await start()
    blind = Principal("blind", TENANT, frozenset({"tasks.read", "runs.read", "artifacts.read"}))
    run_id = new_id()
    async with Worker(here, agents=(agent("left", "Order"),), known=types("Order")) as worker:
        hidden = Visibility("Private", agents=("left",))
        await here.artifacts.publish(ROOT, order(1, correlation_id=run_id, visibility=hidden), None)
        secret = await worker.take()
        await here.artifacts.publish(ROOT, order(2, correlation_id=run_id), None)
        open_ = await worker.take()
        watching = [
            (who, service.run_watching.watch(who, run_id)) for who in (ROOT, blind) for service in (here, there)
        ]
        for _, stream in watching:
            # The beginning, and for each of the two its artifact, the task, and the lease of that.
            [await anext(stream) for _ in range(8)]
        count = {ROOT.name: 20, blind.name: 10}
        waiting = [asyncio.ensure_future(_streamed(stream, count[who.name])) for who, stream in watching]
        await asyncio.gather(attached(here), attached(there))
        await known_as_watching(there, here)
        for n in range(1, 11):
            for lease in (secret, open_):
                worker.session.stream([Streamed(lease.task.id, lease.attempt, n, encode_value("a word"))])
        for (who, _), found in zip(watching, await asyncio.gather(*waiting), strict=True):
            told = [(each.streamed.task_id, each.streamed.index) for each in found if each.streamed]
            of_open = [(open_.task.id, n) for n in range(1, 11)]
            assert [each for each in told if each[0] == open_.task.id] == of_open
            assert len(told) == count[who.name]
        for lease in (secret, open_):
            await worker.complete(lease)
        for _, stream in watching:
            assert not any([each.streamed async for each in stream])


def define_tree(roles: Roles) -> None:
    """A workflow that begins two of another, which begins one of a third, one after the other."""
    know(roles, Definition("leaf", (step("c"),), version=1))
    child: dict[str, Any] = {"kind": StepKind.WORKFLOW}
    know(roles, Definition("child", (step("b"), step("leaf", "b", target="leaf", **child)), version=3))
    define(
        roles, step("a"), step("one", "a", target="child", **child), step("two", "one", target="child", **child),
        step("both", target="leaf", **child),
    )  # fmt: skip


async def test_descendants_are_watched_with_a_run(spread: Roles, database: Database) -> None:
    """FV-7 consolidated: also those that began after the watch did, and theirs."""
    define_tree(spread)
    started = await spread.publisher.workflow_runs.execute(ROOT, NewRun("w"), None)
    watch, elsewhere = Watch(started.run.id, deep=True), Watch(started.run.id, deep=True)
    async with asyncio.TaskGroup() as group:
        group.create_task(watch.to_end(spread.publisher))
        group.create_task(elsewhere.to_end(spread.worker))
        async with watch.at(spread.publisher):
            pass
        group.create_task(work(spread.worker, 6))
    stored = await tree_of(database, started.run.id)
    assert len({run_id for run_id, _ in stored}) == 6
    late = Watch(started.run.id, deep=True)
    await late.to_end(spread.worker)
    for each in (watch, elsewhere, late):
        assert len(each.found) == len(stored)
        assert set(each.found) == stored
        check_order(each)
    check_times(late)


async def work(service: Service, count: int, kinds: Sequence[str] = ("a", "b", "c")) -> None:
    """Complete so many tasks."""
    async with Worker(service, kinds=kinds) as worker:
        for _ in range(count):
            await worker.complete(await worker.take())


@pytest.mark.parametrize("few", [64, 0])
async def test_a_watch_of_a_tree_is_resumed_from_every_place(
    spread: Roles, database: Database, monkeypatch: pytest.MonkeyPatch, few: int
) -> None:
    """Behind each event, at either server: exactly the rest. Told anew each time, and by what changed."""
    monkeypatch.setattr(run_tree, "FEW", few)
    define_tree(spread)
    started = await spread.publisher.workflow_runs.execute(ROOT, NewRun("w"), None)
    live = Watch(started.run.id, deep=True)
    async with asyncio.TaskGroup() as group:
        group.create_task(live.to_end(spread.publisher))
        group.create_task(work(spread.worker, 6))
    stored = await tree_of(database, started.run.id)
    late = Watch(started.run.id, deep=True)
    await late.to_end(spread.worker)
    for whole in (live, late):
        for n, sent in enumerate(whole.sent):
            rest = Watch(started.run.id, deep=True)
            rest.cursor = sent.cursor
            await rest.to_end((spread.publisher, spread.worker)[n % 2])
            assert len(rest.found) == len(stored) - n - 1
            assert {*rest.found, *whole.found[: n + 1]} == stored


async def test_what_a_task_streams_reaches_who_watches(roles: Roles) -> None:
    """In order, at every server, beside the events and without a place among them; who comes later has missed it."""
    define(roles, step("a"))
    run_id = (await roles.publisher.workflow_runs.execute(ROOT, NewRun("w"), None)).run.id
    streams = {
        service: [roles.publisher, roles.worker][n].run_watching.watch(ROOT, run_id, deep=bool(n))
        for n, service in enumerate(("here", "there"))
    }
    async with Worker(roles.worker, kinds=["a"]) as worker:
        lease = await worker.take()
        for stream in streams.values():
            # The beginning, and two events and that of the lease: from then on it waits.
            [await anext(stream) for _ in range(4)]
        waiting = {name: asyncio.ensure_future(_streamed(stream, 50)) for name, stream in streams.items()}
        await asyncio.gather(*(attached(each) for each in (roles.publisher, roles.worker)))
        if roles.publisher is not roles.worker:
            await known_as_watching(roles.publisher, roles.worker)
        for n in range(1, 51):
            worker.session.stream([Streamed(lease.task.id, lease.attempt, n, encode_value(f"token {n}"))])
            worker.session.stream([Streamed(lease.task.id, lease.attempt + 1, n, encode_value("not mine"))])
        found = {name: await each for name, each in waiting.items()}
        for sent in found.values():
            assert [(each.streamed.index, decode_value(each.streamed.value)) for each in sent if each.streamed] == [
                (n, f"token {n}") for n in range(1, 51)
            ]
            assert {each.run_id for each in sent} == {run_id}
        assert {each.cursor for each in found["here"]} == {"3"}
        await worker.complete(lease)
        for stream in streams.values():
            rest = [each async for each in stream]
            assert not any(each.streamed for each in rest)
            assert rest[-1].ended
    late = Watch(run_id)
    await late.to_end(roles.publisher)
    assert not any(each.streamed for each in late.sent)


async def attached(service: Service) -> None:
    """Return when all who watch at a server wait for what comes."""

    async def waits() -> bool:
        topics = service.core.run_feed._topics.values()
        return all(inbox.attached and not inbox.items for topic in topics for inbox in topic.watchers)

    await eventually(waits)


async def _streamed(stream: Any, count: int) -> list[RunSent]:
    found: list[RunSent] = []
    async with asyncio.timeout(PATIENCE_S):
        while len(found) < count:
            sent = await anext(stream)
            if sent.streamed:
                found.append(sent)
    return found


async def test_a_flood_of_what_is_streamed_takes_no_room_from_events(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is slow misses some of it, and no event."""
    monkeypatch.setattr(run_feed, "INBOX_ITEMS", 10)
    here, _ = await start()
    run_id = (await here.tasks.create(ROOT, NewTask("a"), None)).task.run_id
    stream = here.run_watching.watch(ROOT, run_id)
    async with Worker(here, kinds=["a"]) as worker:
        lease = await worker.take()
        [await anext(stream) for _ in range(4)]
        waiting = asyncio.ensure_future(anext(stream))
        await attached(here)
        for n in range(1, 1001):
            worker.session.stream([Streamed(lease.task.id, 1, n, encode_value(n))])
        await worker.complete(lease)
        rest = [await waiting, *[each async for each in stream]]
    indexes = [each.streamed.index for each in rest if each.streamed]
    assert indexes == [*range(1, len(indexes) + 1)]
    assert len(indexes) < 10
    assert [each.event.type.name for each in rest if each.event] == ["TASK_COMPLETED", "RUN_COMPLETED"]
    assert rest[-1].ended


async def test_descendants_beyond_retention_are_said_to_be_gone_where_they_were_begun(
    spread: Roles, database: Database
) -> None:
    """Of a child that was sent in part the rest is missing; one that was sent to its end is not needed any more."""
    define_tree(spread)
    started = await spread.publisher.workflow_runs.execute(ROOT, NewRun("w"), None)
    live = Watch(started.run.id, deep=True)
    async with asyncio.TaskGroup() as group:
        group.create_task(live.to_end(spread.publisher))
        group.create_task(work(spread.worker, 6))
    child = next(run_id for run_id, _ in live.found if run_id != started.run.id)
    of_child = [n for n, (run_id, _) in enumerate(live.found) if run_id == child]
    await database.execute(f"DELETE FROM event WHERE run_id = '{child}'; DELETE FROM run WHERE id = '{child}'")
    partly, whole = Watch(started.run.id, deep=True), Watch(started.run.id, deep=True)
    partly.cursor = live.sent[of_child[1]].cursor
    with pytest.raises(ValidationFailed) as caught:
        await partly.to_end(spread.worker)
    assert [(each.field, each.code) for each in caught.value.details] == [("cursor", "EXPIRED")]
    whole.cursor = live.sent[of_child[-1]].cursor
    await whole.to_end(spread.worker)
    assert sorted(whole.found) == sorted(live.found[of_child[-1] + 1 :])


async def test_a_descendant_that_went_while_it_was_watched_is_left_out(spread: Roles, database: Database) -> None:
    """FV-7: who comes later is sent what there is, then what comes, to the end."""
    here = spread.publisher
    define_tree(spread)
    started = await here.workflow_runs.execute(ROOT, NewRun("w"), None)
    first, second = Watch(started.run.id, deep=True), Watch(started.run.id, deep=True)
    async with first.at(here) as more:
        # The first task, and the one of the child that begins beside it: that has ended, and the root knows of it.
        await work(spread.worker, 2, ["a", "c"])
        while first.runs_of("TASK_COMPLETED").count(started.run.id) < 2:
            await more(1)
        (child,) = first.runs_of("RUN_COMPLETED")
        await database.execute(f"DELETE FROM event WHERE run_id = '{child}'; DELETE FROM run WHERE id = '{child}'")
        async with asyncio.TaskGroup() as group:
            group.create_task(second.to_end(here))
            group.create_task(work(spread.worker, 4))
    assert set(second.found) == await tree_of(database, started.run.id)
