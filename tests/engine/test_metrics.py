"""What the service tells of itself in numbers is what happened (WM-12)."""

import asyncio
from collections import Counter

import asyncpg
import pytest
from tests.engine.database import Database
from tests.engine.servers import Start, eventually
from tests.engine.test_run_watching import Watch, attached
from tests.engine.test_task_logs import Sender, Watched, leased, lines
from tests.engine.test_watching import Watch as ArtifactWatch
from tests.engine.workers import Worker, chain_worker
from tests.engine.world import CHAIN, ROOT, agent, order, register

from millstream.application import run_feed
from millstream.application.ids import new_id
from millstream.application.ports import Conflicted, Disconnected, Refused, TooSlow
from millstream.application.views.reports import Streamed
from millstream.application.views.task_logs import LogQuery
from millstream.application.views.tasks import NewTask
from millstream.domain.errors import RateLimited
from millstream.domain.runs import EventType
from millstream.domain.struct_wire import encode_value
from millstream.wiring import Service


async def shown(service: Service) -> dict[str, float]:
    """The metrics of a server, by name with labels and without "millstream_"."""
    await service.system.gauge()
    service.core.metrics.settle()
    written = service.core.metrics.exposition().decode().splitlines()
    pairs = (line.removeprefix("millstream_").rpartition(" ") for line in written if not line.startswith("#"))
    return {name: float(value) for name, _, value in pairs}


async def all_closed(service: Service) -> None:
    """Return when no stream is counted as open: the end of one is noticed a turn of the loop later."""

    async def closed() -> bool:
        return not any(value for name, value in (await shown(service)).items() if name.startswith("streams_open"))

    await eventually(closed, "that no stream is open")


async def test_events_runs_and_the_time_of_tasks_are_measured(start: Start, database: Database) -> None:
    """Every event once, by its type, whatever path stored it; and some of the leases and attempts."""
    here, _ = await start()
    await register(here, CHAIN)
    async with chain_worker(here):
        await asyncio.gather(*(here.artifacts.publish_sync(ROOT, order(), None, 20) for _ in range(5)))
    stored = Counter(EventType(row["type"]).name for row in await database.rows("SELECT type FROM event"))
    found = await shown(here)
    assert {name: found[f'events_total{{type="{name}"}}'] for name in stored} == stored
    assert found['runs_ended_total{status="COMPLETED"}'] == stored["RUN_COMPLETED"] == 5
    assert 0 < found["task_wait_seconds_count"] <= stored["TASK_STARTED"]
    assert 0 < found["attempt_seconds_count"] <= stored["TASK_COMPLETED"]
    assert found["task_wait_seconds_sum"] < found['task_wait_seconds_bucket{le="+Inf"}'] * 60


async def test_a_task_that_had_to_wait_is_seen_to_have_waited(start: Start, database: Database) -> None:
    here, _ = await start()
    await here.tasks.create(ROOT, NewTask("late"), None)
    await database.pass_time(100)
    async with Worker(here, kinds=["late"]) as worker:
        lease = await worker.take()
        await database.pass_time(40)
        await worker.complete(lease)
    found = await shown(here)
    assert 100 <= found["task_wait_seconds_sum"] < 130
    assert 40 <= found["attempt_seconds_sum"] < 70


async def test_what_had_to_be_decided_anew_is_counted(start: Start) -> None:
    here, there = await start()
    await register(here, ("Order",), agent("slow", "Order"))
    assert (await shown(here))["batches_undone_total"] + (await shown(there))["batches_undone_total"] == 0
    run_id = new_id()
    for each in (here, there, here):
        # The first still has the run as it left it.
        await each.artifacts.publish(ROOT, order(correlation_id=run_id), None)
    assert (await shown(here))["batches_undone_total"] == 1
    assert (await shown(there))["batches_undone_total"] == 0


async def listening(service: Service) -> bool:
    """Whether all who watch artifacts at a server are told of what comes."""
    return all(each.attached for watchers in service.core.feed._watchers.values() for each in watchers)


async def test_streams_are_counted_by_their_kind(start: Start) -> None:
    """Those that are open, what they sent, and how late what came live was; a history has no delay."""
    here, _ = await start()
    await register(here, ("Order",), agent("slow", "Order"))
    run_id = new_id()
    await here.artifacts.publish(ROOT, order(correlation_id=run_id), None)
    watches = {"run": Watch(run_id), "run_tree": Watch(run_id, deep=True), "run_tasks": Watch(run_id, tasks=True)}
    artifacts = ArtifactWatch()
    async with (
        watches["run"].at(here) as run,
        watches["run_tree"].at(here) as tree,
        watches["run_tasks"].at(here) as tasks,
        artifacts.at(here) as published,
    ):
        await asyncio.gather(run(3), tree(3), tasks(1))
        before = await shown(here)
        waiting = asyncio.gather(run(2), tree(2), tasks(1), published(1))
        await attached(here)
        await eventually(lambda: listening(here), "that the watch of artifacts waits for what comes")
        await here.artifacts.publish(ROOT, order(correlation_id=run_id), None)
        await waiting
        found = await shown(here)
    for stream, items in {"run": 5, "run_tree": 5, "run_tasks": 2, "artifacts": 1}.items():
        assert found[f'streams_open{{stream="{stream}"}}'] == 1, stream
        assert found[f'stream_messages_total{{message="item",stream="{stream}"}}'] == items, stream
        assert found[f'stream_messages_total{{message="heartbeat",stream="{stream}"}}'] == 1, stream
        assert before[f'stream_delay_seconds_count{{stream="{stream}"}}'] == 0, stream
        assert found[f'stream_delay_seconds_count{{stream="{stream}"}}'] > 0, stream
        assert found[f'stream_delay_seconds_sum{{stream="{stream}"}}'] < 60, stream
    await all_closed(here)


async def test_readers_who_are_too_slow_are_counted(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_feed, "INBOX_ITEMS", 10)
    here, _ = await start()
    await register(here, ("Order",), agent("slow", "Order"))
    run_id = new_id()
    await here.artifacts.publish(ROOT, order(correlation_id=run_id), None)
    async with Watch(run_id).at(here) as more:
        await more(3)
        going_on = asyncio.ensure_future(more(2))
        await attached(here)
        for _ in range(10):
            await here.artifacts.publish(ROOT, order(correlation_id=run_id), None)
        await going_on
        with pytest.raises(RateLimited, match="too slow"):
            await more(20)
    await all_closed(here)
    assert (await shown(here))['streams_too_slow_total{stream="run"}'] == 1


async def test_values_that_readers_get_and_miss_are_counted(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_feed, "INBOX_ITEMS", 10)
    here, _ = await start()
    run_id = (await here.tasks.create(ROOT, NewTask("a"), None)).task.run_id
    stream = here.run_watching.watch(ROOT, run_id)
    async with Worker(here, kinds=["a"]) as worker:
        lease = await worker.take()
        [await anext(stream) for _ in range(4)]
        waiting = asyncio.ensure_future(anext(stream))
        await attached(here)
        for n in range(1, 101):
            worker.session.stream([Streamed(lease.task.id, 1, n, encode_value(n))])
        await worker.complete(lease)
        sent = [await waiting, *[each async for each in stream]]
    got = sum(each.streamed is not None for each in sent)
    found = await shown(here)
    assert found['stream_messages_total{message="value",stream="run"}'] == got < 10
    assert found["stream_values_passed_over_total"] == 100 - got


async def test_lines_that_tasks_log_are_counted(start: Start) -> None:
    """What is stored, what is cut, what is sent twice only once; and the streams of them."""
    here, _ = await start(max_log_lines_per_task=120)
    async with leased(here) as (_, lease):
        sender = Sender(here)
        await sender.send(lines(lease, 1, 100))
        watch, of_run = Watched(here, LogQuery(task_id=lease.task.id)), Watched(here, LogQuery(lease.task.run_id))
        await asyncio.gather(watch.begin(), of_run.begin())
        await asyncio.gather(watch.more(100), of_run.more(100))
        going_on = asyncio.ensure_future(watch.more(1))
        await sender.send(lines(lease, 1, 110))
        await going_on
        await sender.send(lines(lease, 111, 200))
        await sender.send(lines(lease, 201, 300))
        found = await shown(here)
        assert found['log_lines_total{outcome="stored"}'] == 120
        assert found['log_lines_total{outcome="cut"}'] == 180
        assert found['streams_open{stream="task_logs"}'] == found['streams_open{stream="run_logs"}'] == 1
        assert found['stream_messages_total{message="item",stream="task_logs"}'] == 101
        assert found['stream_messages_total{message="item",stream="run_logs"}'] == 100
        assert found['stream_delay_seconds_count{stream="task_logs"}'] > 0
        await asyncio.gather(watch.close(), of_run.close())
    await all_closed(here)


async def test_lines_that_wait_and_find_no_room_are_counted(start: Start) -> None:
    here, _ = await start()
    async with leased(here) as (_, lease):
        sender, last = Sender(here), 60_000
        for n in range(0, last, 1000):
            sender.put(lines(lease, n + 1, n + 1000))
        waits = here.log_intake.bytes
        assert (await shown(here))["log_waiting_bytes"] == waits > 0
        ack = await sender.told()
        while not ack.again:
            ack = await sender.told()
        found = await shown(here)
        assert 0 < found["log_batches_passed_over_total"] < 60
        assert found['log_lines_total{outcome="stored"}'] >= ack.offset


@pytest.mark.parametrize(
    ("statement", "error"),
    [
        ("SELECT 1 / 0", "conflict"),
        ("SELECT pg_terminate_backend(pg_backend_pid())", "lost"),
        ("SELECT repeat('x', 4)::int", "refused"),
        ("SELECT pg_sleep(60)", "slow"),
        ("SELECT nothing", "other"),
    ],
)
async def test_statements_that_fail_are_counted_by_their_fault(start: Start, statement: str, error: str) -> None:
    here, _ = await start()
    assert (await shown(here))["database_seconds_count"] > 0, "its start asked for something"
    with pytest.raises((Conflicted, Disconnected, Refused, TooSlow, asyncpg.UndefinedColumnError)):
        await here.core.stores.database.fetch_within(0.2, statement)
    found = await shown(here)
    assert {name: value for name, value in found.items() if name.startswith("database_errors_total")} == {
        f'database_errors_total{{error="{error}"}}': 1
    }
