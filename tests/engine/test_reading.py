"""Reading what is stored: lists by what is asked, pages that neither repeat nor miss, counts."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from tests.engine.database import Database
from tests.engine.servers import Start, eventually
from tests.engine.workers import Worker, chain_worker, done
from tests.engine.world import CHAIN, CHAIN_AGENTS, ROOT, agent, made, order, principal, register, types

from millstream.application.ids import new_id
from millstream.application.paging import Page, PageRequest
from millstream.application.views.artifacts import ArtifactQuery
from millstream.application.views.runs import RunQuery
from millstream.application.views.tasks import NewTask, TaskQuery
from millstream.application.views.types import TypeSpec
from millstream.domain.artifacts import Visibility
from millstream.domain.errors import NotFound, TimedOut, ValidationFailed
from millstream.domain.principals import Principal
from millstream.domain.runs import RunKind, RunStatus
from millstream.store import artifacts
from millstream.wiring import Service

ALL = PageRequest(limit=500)


async def found(service: Service, query: ArtifactQuery, who: Principal = ROOT) -> list[str]:
    """Partition keys of the artifacts that a list shows; its total and summary agree."""
    page = await service.artifacts.list(who, query, ALL, False)
    names = [item.artifact.partition_key for item in page.items]
    assert page.info.total == len(names)
    assert (await service.artifacts.summarize(who, query)).total == len(names)
    return names


async def test_artifacts_are_listed_by_what_is_asked(start: Start, database: Database) -> None:
    """FL-12: type, produced_by, correlation_id, tag, from, to, visibility, alone and together; newest first."""
    here, there = await start()
    await register(here, ("Order", "Payment"))
    run_id = new_id()
    publish = here.artifacts.publish
    await publish(ROOT, order(partition_key="a", tags=("red", "blue")), None)
    await database.pass_time(10)
    await publish(ROOT, order(partition_key="b", tags=("red",), correlation_id=run_id), None)
    await database.pass_time(10)
    payment = made("Payment", run_id)
    payment.partition_key, payment.visibility = "c", Visibility("Private", agents=("x",))
    last = await publish(ROOT, payment, None)
    at_us = (await here.artifacts.get(ROOT, last.artifact_id)).created_us
    for query, expected in (
        (ArtifactQuery(), ["c", "b", "a"]),
        (ArtifactQuery(type="Order"), ["b", "a"]),
        (ArtifactQuery(type="Nothing"), []),
        (ArtifactQuery(produced_by="external"), ["c", "b", "a"]),
        (ArtifactQuery(produced_by="payments"), []),
        (ArtifactQuery(correlation_id=run_id), ["c", "b"]),
        (ArtifactQuery(tag="red"), ["b", "a"]),
        (ArtifactQuery(tag="blue"), ["a"]),
        (ArtifactQuery(from_us=at_us), ["c"]),
        (ArtifactQuery(to_us=at_us), ["b", "a"]),
        (ArtifactQuery(visibility="Private"), ["c"]),
        (ArtifactQuery(type="Order", tag="red", correlation_id=run_id, to_us=at_us), ["b"]),
    ):
        assert await found(there, query) == expected, query
    assert await found(there, ArtifactQuery(), principal("spy", "other")) == []


async def test_pages_of_artifacts_neither_repeat_nor_miss(start: Start) -> None:
    """FL-12: by limit and offset, by page, and by token while new ones arrive."""
    here, there = await start()
    await register(here, ("Order",))
    ids = [(await here.artifacts.publish(ROOT, order(n), None)).artifact_id for n in range(7)]
    newest = [*reversed(ids)]
    page = await there.artifacts.list(ROOT, ArtifactQuery(), PageRequest(limit=3, offset=2), False)
    assert [item.artifact.id for item in page.items] == newest[2:5]
    assert (page.info.total, page.info.limit, page.info.offset) == (7, 3, 2)
    page = await there.artifacts.list(ROOT, ArtifactQuery(), PageRequest(page=3, page_size=3), False)
    assert [item.artifact.id for item in page.items] == newest[6:]
    assert (page.info.total_pages, page.info.page) == (3, 3)
    page = await there.artifacts.list(ROOT, ArtifactQuery(), PageRequest(page_size=3, page=1), False)
    seen = [item.artifact.id for item in page.items]
    while page.info.next_page_token:
        await here.artifacts.publish(ROOT, order(99), None)
        request = PageRequest(page_size=3, page_token=page.info.next_page_token)
        page = await there.artifacts.list(ROOT, ArtifactQuery(), request, False)
        seen += [item.artifact.id for item in page.items]
    assert seen == newest
    with pytest.raises(ValidationFailed):
        await here.artifacts.list(ROOT, ArtifactQuery(), PageRequest(page_token="nonsense"), False)
    with pytest.raises(ValidationFailed):
        await here.artifacts.list(ROOT, ArtifactQuery(), PageRequest(page=1, limit=5), False)


async def test_large_artifacts_make_short_pages(start: Start) -> None:
    """Architecture: pages are bounded in bytes, too; nothing is missing."""
    here, _ = await start(large_payload_bytes=1 << 20)
    await register(here, ("Order",))
    for n in range(5):
        await here.artifacts.publish(ROOT, made("Order", n=n, text="x" * 1_000_000), None)
    request, sizes = PageRequest(page_size=5, page=1), []
    while True:
        page = await here.artifacts.list(ROOT, ArtifactQuery(), request, False)
        sizes.append(len(page.items))
        if not page.info.next_page_token:
            break
        request = PageRequest(page_size=5, page_token=page.info.next_page_token)
    assert sum(sizes) == 5
    assert max(sizes) == 3


async def test_a_list_tells_who_consumed_what(start: Start) -> None:
    """FL-12: embed_meta: consumer, run and time of each consumption; only where it is asked for."""
    here, there = await start()
    async with chain_worker(there):
        result = await here.artifacts.publish_sync(ROOT, order(), None, 10)
    page = await there.artifacts.list(ROOT, ArtifactQuery(), ALL, True)
    consumed = {item.artifact.type: item.consumptions for item in page.items}
    assert {name: [taken.consumer for taken in found or ()] for name, found in consumed.items()} == {
        "Order": ["payments"], "Payment": ["shipping"], "Shipment": ["notifier"], "Notification": [],
    }  # fmt: skip
    taken = (consumed["Order"] or [])[0]
    assert (taken.artifact_id, taken.run_id) == (result.artifacts[0].id, result.correlation_id)
    assert taken.consumed_us >= result.artifacts[0].created_us
    plain = await there.artifacts.list(ROOT, ArtifactQuery(), ALL, False)
    assert {item.consumptions for item in plain.items} == {None}


async def test_a_summary_counts(start: Start) -> None:
    """FL-12: total, by type, producer, visibility, tag; the first and the last."""
    here, there = await start()
    async with chain_worker(here):
        await here.artifacts.publish_sync(ROOT, order(tags=("x", "y")), None, 10)
        await here.artifacts.publish_sync(ROOT, order(tags=("x",)), None, 10)
    summary = await there.artifacts.summarize(ROOT, ArtifactQuery())
    assert summary.total == 8
    assert summary.by_type == dict.fromkeys(CHAIN, 2)
    assert summary.by_producer == {"external": 2, **{spec.name: 2 for spec in CHAIN_AGENTS}}
    assert summary.by_visibility == {"Public": 8}
    assert summary.tag_counts == {"x": 2, "y": 1}
    assert 0 < summary.earliest_us < summary.latest_us
    nothing = await there.artifacts.summarize(ROOT, ArtifactQuery(type="Nothing"))
    assert (nothing.total, nothing.by_type, nothing.earliest_us) == (0, {}, 0)


async def test_a_summary_is_of_one_moment(start: Start) -> None:
    """FL-12: its counts agree with each other while others publish."""
    here, there = await start()
    await register(here, ("Order",))

    async def publish() -> None:
        for n in range(40):
            items = [order(f"{n}-{m}", tags=("each",)) for m in range(25)]
            await here.artifacts.publish_batch(ROOT, [*items], [None] * len(items), None)

    publishing, totals = asyncio.create_task(publish()), set()
    while not publishing.done():
        found = await there.artifacts.summarize(ROOT, ArtifactQuery())
        counts = [sum(each.values()) for each in (found.by_type, found.by_producer, found.by_visibility)]
        assert [*counts, found.tag_counts.get("each", 0)] == [found.total] * 4
        totals.add(found.total)
    await publishing
    assert len(totals) > 2, "nothing was published meanwhile"


async def test_a_summary_shows_the_most_used_tags(start: Start) -> None:
    """FL-12: a hundred of them, wherever they stand beside others."""
    here, _ = await start()
    await register(here, ("Order",))
    items = [order(n, tags=(f"tag{n:03}", f"tag{n + 1:03}")) for n in range(150)] + [order(150, tags=("tag149",))]
    await here.artifacts.publish_batch(ROOT, [*items], [None] * len(items), None)
    counted = (await here.artifacts.summarize(ROOT, ArtifactQuery())).tag_counts
    assert len(counted) == 100
    assert (counted["tag149"], counted["tag001"], "tag000" in counted) == (3, 2, False)


async def test_a_summary_that_takes_too_long_is_ended_and_says_what_to_do(
    start: Start, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FL-12: here because the table is locked."""
    here, _ = await start()
    monkeypatch.setattr(artifacts, "SUMMARY_S", 0.05)
    async with database.other() as holder, holder.transaction():
        await holder.execute("LOCK TABLE artifact")
        with pytest.raises(TimedOut) as late:
            await here.artifacts.summarize(ROOT, ArtifactQuery())
    assert "from and to, type" in late.value.message
    assert (await here.artifacts.summarize(ROOT, ArtifactQuery())).total == 0


async def test_summaries_leave_connections_to_other_reads(start: Start, database: Database) -> None:
    """FL-12: of the two that a server has here; those that wait for their turn are answered in the end."""
    here, _ = await start()
    async with database.other() as holder:
        async with holder.transaction():
            await holder.execute("LOCK TABLE artifact")
            waiting = [asyncio.create_task(here.artifacts.summarize(ROOT, ArtifactQuery())) for _ in range(5)]
            await eventually(lambda: blocked(database))
            async with asyncio.timeout(5):
                assert (await here.runs.list(ROOT, RunQuery(), PageRequest())).items == []
            assert not any(each.done() for each in waiting)
        assert {found.total for found in await asyncio.gather(*waiting)} == {0}


async def blocked(database: Database) -> bool:
    """Whether a statement waits for a lock."""
    return bool(await database.value("SELECT count(*) FROM pg_locks WHERE NOT granted"))


async def test_runs_are_listed_by_what_is_asked(start: Start, database: Database) -> None:
    """WM-5, FV-4: status, kind, created_after and created_before; newest first; pages by token."""
    here, there = await start()
    await register(here, ("Order",), agent("waits", "Order"))
    cascades = []
    for n in range(4):
        await database.pass_time(10)
        cascades.append((await here.artifacts.publish(ROOT, order(n), None)).correlation_id)
    single = (await here.tasks.create(ROOT, NewTask("sums"), None)).task.run_id
    await here.runs.cancel(ROOT, cascades[0], "", None)

    async def ids(query: RunQuery) -> list[str]:
        page = await there.runs.list(ROOT, query, PageRequest())
        assert page.info.total == len(page.items)
        return [run.id for run in page.items]

    assert await ids(RunQuery()) == [single, *reversed(cascades)]
    assert await ids(RunQuery(kind=RunKind.SINGLE)) == [single]
    assert await ids(RunQuery(statuses=(RunStatus.CANCELLED,))) == [cascades[0]]
    assert await ids(RunQuery(statuses=(RunStatus.RUNNING,), kind=RunKind.CASCADE)) == [*reversed(cascades[1:])]
    middle_us = (await there.runs.get(ROOT, cascades[2])).created_us
    assert await ids(RunQuery(created_after_us=middle_us)) == [single, cascades[3], cascades[2]]
    assert await ids(RunQuery(created_before_us=middle_us)) == [cascades[1], cascades[0]]
    seen: list[str] = []
    request = PageRequest(page_size=2)
    while True:
        page = await there.runs.list(ROOT, RunQuery(), request)
        seen += [run.id for run in page.items]
        if not page.info.next_page_token:
            break
        request = PageRequest(page_size=2, page_token=page.info.next_page_token)
    assert seen == [single, *reversed(cascades)]
    assert (await there.runs.list(principal("spy", "other"), RunQuery(), PageRequest())).items == []


async def test_events_and_tasks_of_a_run_come_in_pages(start: Start) -> None:
    """FV-4: since_sequence; tasks of a run in the order they were made."""
    here, there = await start()
    agents = [agent(f"agent{n}", "Order") for n in range(5)]
    async with Worker(here, agents=agents, known=types("Order"), handler=done):
        result = await here.artifacts.publish_sync(ROOT, order(), None, 10)
    run_id = result.correlation_id
    everything, rest = await there.runs.events(ROOT, run_id, 0, 100)
    assert rest is None
    some, rest = await there.runs.events(ROOT, run_id, 0, 4)
    assert rest == 4
    more, rest = await there.runs.events(ROOT, run_id, rest, 100)
    assert (some + more, rest) == (everything, None)
    page = await there.runs.tasks(ROOT, TaskQuery(run_id=run_id), PageRequest(page_size=3))
    assert page.info.total == 5
    request = PageRequest(page_size=3, page_token=page.info.next_page_token)
    second = await there.runs.tasks(ROOT, TaskQuery(run_id=run_id), request)
    made_order = [task.agent for task in [*page.items, *second.items]]
    assert made_order == [f"agent{n}" for n in range(5)]
    with pytest.raises(NotFound):
        await there.runs.events(ROOT, new_id(), 0, 10)
    with pytest.raises(NotFound):
        await there.runs.tasks(ROOT, TaskQuery(run_id=new_id()), PageRequest())


async def test_a_large_total_is_an_estimate_and_says_so(start: Start, database: Database) -> None:
    """Contract: beyond 10,000 nobody counts."""
    here, _ = await start()
    insert = """INSERT INTO artifact (tenant, id, run_id, type, visibility_kind) SELECT $2, gen_random_uuid(),
    gen_random_uuid(), 'Order', 'Public' FROM generate_series(1, $1::int)"""
    await database.execute(insert, 12_000, "acme")
    await database.execute(insert, 10_000, "other")
    await database.execute("ANALYZE artifact")
    page = await here.artifacts.list(ROOT, ArtifactQuery(), PageRequest(limit=1), False)
    assert page.info.total_is_estimate
    assert 10_001 <= (page.info.total or 0) < 20_000
    exact = await here.artifacts.list(principal("root", "other"), ArtifactQuery(), PageRequest(limit=1), False)
    assert (exact.info.total, exact.info.total_is_estimate) == (10_000, None)


async def test_agents_and_types_are_listed_by_name(start: Start) -> None:
    """WM-11, FL-13: by name and status, with who serves them on any server."""
    here, there = await start()
    await register(here, ("Order", "Payment"), agent("b", "Order"), agent("a", "Payment"))
    async with Worker(there, kinds=["agent:b"]):
        page = await here.agents.list(ROOT, PageRequest(), "", None)
        assert [(found.agent.spec.name, found.status) for found in page.items] == [("a", "OFFLINE"), ("b", "ONLINE")]
        online = await here.agents.list(ROOT, PageRequest(), "", "ONLINE")
        assert [found.agent.spec.name for found in online.items] == ["b"]
        named = await there.agents.list(ROOT, PageRequest(), "a", None)
        assert [found.agent.spec.name for found in named.items] == ["a"]
        by_id = await there.agents.get(ROOT, named.items[0].agent.id.upper())
        assert by_id.agent.spec.name == "a"
    page_of_types = await there.types.list(ROOT, PageRequest(page_size=1))
    assert [found.name for found in page_of_types.items] == ["Order"]
    request = PageRequest(page_size=1, page_token=page_of_types.info.next_page_token)
    assert [found.name for found in (await here.types.list(ROOT, request)).items] == ["Payment"]


async def test_a_page_token_of_another_list_is_refused(start: Start) -> None:
    """FL-10, FL-12: a damaged one too; else it would go on anywhere, and miss what is there."""
    here, _ = await start()
    await register(here, ("Order", "Payment"), agent("b", "Order"), agent("a", "Payment"))
    for name in ("x", "y"):
        await here.agents.create(ROOT, agent(name, "Order"), None)
        await here.agents.delete(ROOT, name, None)
        await here.types.create(ROOT, TypeSpec("Order", f'{{"title":"{name}"}}'), None)
        await here.types.create(ROOT, TypeSpec("Payment", f'{{"title":"{name}"}}'), None)
        await here.tasks.create(ROOT, NewTask("sums"), None)
        await here.artifacts.publish(ROOT, order(), None)
    lists: dict[str, Callable[[PageRequest], Awaitable[Page[Any]]]] = {
        "agents": lambda page: here.agents.list(ROOT, page, "", None),
        "deleted": lambda page: here.agents.list(ROOT, page, "", "DELETED"),
        "types": lambda page: here.types.list(ROOT, page),
        "versions": lambda page: here.types.versions(ROOT, "Order", page),
        "other versions": lambda page: here.types.versions(ROOT, "Payment", page),
        "runs": lambda page: here.runs.list(ROOT, RunQuery(), page),
        "tasks": lambda page: here.tasks.list(ROOT, TaskQuery(), page),
        "artifacts": lambda page: here.artifacts.list(ROOT, ArtifactQuery(), page, False),
    }
    tokens = {
        name: (await get(PageRequest(page_size=1, page_token=""))).info.next_page_token for name, get in lists.items()
    }
    for name, get in lists.items():
        assert (await get(PageRequest(page_token=tokens[name]))).items
        others = [token for other, token in tokens.items() if other != name]
        for token in (*others, "eyJ", "x", "b3JkZXI", (tokens[name] or "")[:-4], f"{tokens[name]}AAAA"):
            assert token
            with pytest.raises(ValidationFailed) as refused:
                await get(PageRequest(page_token=token))
            assert [fault.field for fault in refused.value.details] == ["page_token"]


async def test_pages_of_deleted_agents_miss_none_of_one_name(start: Start) -> None:
    """FL-12: each has its place, by its id."""
    here, there = await start()
    await register(here, ("Order",))
    gone = set()
    for name in ("a", "b", "a", "a-b", "a"):
        state, _ = await here.agents.create(ROOT, agent(name, "Order"), None)
        await here.agents.delete(ROOT, name, None)
        gone.add(state.agent.id)
    seen: list[str] = []
    token: str | None = ""
    while token is not None:
        page = await there.agents.list(ROOT, PageRequest(page_size=2, page_token=token), "", "DELETED")
        seen += [state.agent.id for state in page.items]
        token = page.info.next_page_token
    assert len(seen) == len(gone)
    assert {*seen} == gone


async def test_the_gauges_tell_what_waits(start: Start, database: Database) -> None:
    """Operations: queue depth, oldest ready task, leases, waiters."""
    here, _ = await start()
    seen: dict[str, float] = {}
    here.system._set = seen.__setitem__
    async with Worker(here, kinds=["sums"]) as worker:
        await here.tasks.create(ROOT, NewTask("sums"), None)
        await worker.take()
        await here.tasks.create(ROOT, NewTask("nobody"), None)
        await register(here, ("Order",), agent("waits", "Order"))
        call = asyncio.create_task(here.artifacts.publish_sync(ROOT, order(), None, 5))
        await eventually(lambda: _waits(here))
        await database.pass_time(100)
        await here.system.gauge()
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
    assert (seen["leases"], seen["waiters"], seen["workers_connected"]) == (1, 1, 1)
    assert seen["tasks_ready"] >= 1
    assert 100 <= seen["oldest_ready_task_seconds"] < 200


async def _waits(service: Service) -> bool:
    return len(service.engine.waiters) == 1
