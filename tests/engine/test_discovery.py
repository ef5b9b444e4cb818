"""Workers and what they serve, as any server tells of them. (FV-6)"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
from tests.engine.database import Database
from tests.engine.servers import Start, eventually, killed
from tests.engine.workers import Worker
from tests.engine.world import ROOT, agent, principal, types

from millstream.application.ids import new_id
from millstream.application.paging import PageRequest
from millstream.application.views.tasks import NewTask
from millstream.domain.errors import NotFound, ValidationFailed
from millstream.domain.workers import TASK_KIND, WORKFLOW_KIND, KindQuery, KindSpec, KnownKind, KnownWorker, WorkerQuery
from millstream.store import workers as rows
from millstream.store.tables.servers import lane as lane_table
from millstream.store.tables.workers import worker as worker_table
from millstream.wiring import Service

RESIZE = KindSpec("resize", TASK_KIND, "1.2", "makes it small", '{"type":"object"}', '{"type":"string"}')
ORDER = KindSpec("order", WORKFLOW_KIND, "2")


def worker(service: Service, *specs: KindSpec, **fields: Any) -> Worker:
    """A worker that serves kinds of tasks, and says so much of them."""
    kinds = [*fields.pop("kinds", ()), *(spec.name for spec in specs if spec.category == TASK_KIND)]
    made = Worker(service, kinds=kinds, **fields)
    made._hello = dataclasses.replace(made._hello, specs=specs)
    return made


async def workers(service: Service, tenant: str = "acme", **query: str) -> list[KnownWorker]:
    return (await service.discovery.workers(principal(tenant=tenant), WorkerQuery(**query), PageRequest())).items


async def kinds(service: Service, tenant: str = "acme", **query: Any) -> list[KnownKind]:
    return (await service.discovery.kinds(principal(tenant=tenant), KindQuery(**query), PageRequest())).items


async def listed(service: Service, *expected: str) -> list[KnownWorker]:
    """The workers, once they stand so."""
    found: list[KnownWorker] = []

    async def as_expected() -> bool:
        found[:] = await workers(service)
        return [each.status for each in found] == [*expected]

    await eventually(as_expected, f"workers {expected}")
    return found


async def test_a_worker_is_known_to_every_server_with_all_it_serves(start: Start) -> None:
    """FV-6: its kinds with versions and schemas, its agents, queues and slots, and where it is connected."""
    here, there = await start()
    spec = agent("maker", "Order", queue="own")
    serving = worker(
        here, RESIZE, ORDER, kinds=["bare"], agents=(spec,), known=types("Order"), queues=("a", "b"), slots=7
    )
    async with serving:
        (found,) = await listed(there, "ONLINE")
        assert (found.worker_id, found.name, found.slots, found.used) == (serving.id, serving._hello.name, 7, 0)
        assert (found.queues, found.agents) == (("a", "b"), ("maker",))
        assert {each.code for each in found.kinds} == {"1:1.2:resize", "2:2:order", "1::bare"}
        assert found.server
        assert (found.left_us, found.truncated) == (0, False)
        whole = await there.discovery.worker(ROOT, serving.id)
        assert {each.name: each for each in whole.kinds}["resize"] == RESIZE
        shown = {each.spec.code: each for each in await kinds(there)}
        assert sorted(shown) == ["1:1.2:resize", "1::bare", "2:2:order"]
        resize = shown["1:1.2:resize"]
        assert (resize.spec, resize.count, resize.queues) == (RESIZE, 1, ("a", "b"))
        assert [each.worker_id for each in resize.workers] == [serving.id]
        assert [each.spec.name for each in await kinds(there, category=WORKFLOW_KIND)] == ["order"]
        assert [each.spec.name for each in await kinds(there, name="bare")] == ["bare"]


async def test_other_tenants_see_nothing(start: Start) -> None:
    """FV-6"""
    here, _ = await start()
    async with worker(here, RESIZE) as serving:
        await listed(here, "ONLINE")
        assert (await workers(here, "umbrella"), await kinds(here, "umbrella")) == ([], [])
        with pytest.raises(NotFound):
            await here.discovery.worker(principal(tenant="umbrella"), serving.id)


async def test_the_slots_in_use_and_the_last_heartbeat_are_noted_with_the_renewals(
    start: Start, database: Database
) -> None:
    """FV-6, FV-19: by one statement for all workers of a server, and by none where nothing was heard."""
    here, there = await start()
    async with worker(here, RESIZE, slots=5) as serving:
        (before,) = await listed(there, "ONLINE")
        task = (await here.tasks.create(ROOT, NewTask(kind="resize"), None)).task
        lease = await serving.take()
        await database.pass_time(20)
        serving.session.heard()
        await here.loops.renew()
        (found,) = await workers(there)
        assert (found.used, found.slots) == (1, 5)
        assert found.heard_us >= before.heard_us + 20_000_000
        assert here.loops._upkeep.signs_of_life() == []
        assert lease.task.id == task.id
        await serving.complete(lease)
        await here.loops.renew()
        assert (await workers(there))[0].used == 0


async def test_a_worker_that_drains_and_goes_is_shown_so_until_its_retention_has_passed(
    start: Start, database: Database
) -> None:
    """FV-6: DRAINING, OFFLINE, and forgotten with what only it served."""
    here, there = await start(worker_retention_s=3600)
    serving = await worker(here, RESIZE).open()
    await listed(there, "ONLINE")
    serving.session.drain()
    await listed(there, "DRAINING")
    await serving.close()
    (found,) = await listed(there, "OFFLINE")
    assert found.left_us >= found.connected_us > 0
    assert [each.code for each in found.kinds] == [RESIZE.code]
    (kind,) = await kinds(there)
    assert (kind.count, kind.workers, kind.spec) == (0, (), RESIZE)
    assert await kinds(there, status="ONLINE") == []
    assert [each.spec for each in await kinds(there, status="OFFLINE")] == [RESIZE]
    await database.pass_time(3000)
    await there.loops.sweep()
    assert len(await workers(there)) == 1
    await database.pass_time(1000)
    await there.loops.sweep()
    assert (await workers(there), await kinds(there)) == ([], [])
    with pytest.raises(NotFound):
        await there.discovery.worker(ROOT, serving.id)


async def test_what_another_worker_serves_is_not_forgotten_with_the_one_that_went(
    start: Start, database: Database
) -> None:
    here, there = await start(worker_retention_s=60)
    async with worker(here, RESIZE):
        went = await worker(there, RESIZE, KindSpec("other")).open()
        await listed(here, "ONLINE", "ONLINE")
        await went.close()
        await listed(here, "OFFLINE", "ONLINE")
        await database.pass_time(100)
        await here.loops.sweep()
        assert [each.spec.name for each in await kinds(here)] == ["resize"]


async def test_a_worker_that_comes_back_is_listed_once(start: Start, database: Database) -> None:
    """FV-6: at the server that has it now, whichever end was noticed first."""
    here, there = await start()
    first = await worker(here, RESIZE).open()
    await listed(here, "ONLINE")
    again = await worker(there, RESIZE, worker_id=first.id).open()
    await listed(here, "ONLINE")
    await first.close()

    async def noticed() -> bool:
        return len(await database.rows("SELECT session FROM worker")) == 1

    await eventually(noticed, "the end of the old connection")
    (found,) = await listed(here, "ONLINE")
    assert found.connected_us == again.session._session.connected_us
    assert (await kinds(here))[0].count == 1
    await again.close()
    await listed(here, "OFFLINE")
    async with worker(here, RESIZE, worker_id=first.id):
        await listed(there, "ONLINE")


async def test_the_workers_of_a_server_that_was_killed_are_offline(start: Start, database: Database) -> None:
    """FV-6, FV-19: when it was not seen for 15 s, and still when nothing of it is left."""
    here, there = await start()
    await worker(here, RESIZE).open()
    await listed(there, "ONLINE")
    await killed(here)
    await database.pass_time(16)
    await database.execute("UPDATE lane SET seen_us = seen_us - 16000000 WHERE id IN (SELECT lane FROM worker)")
    (dead,) = await workers(there)
    assert (dead.status, dead.used) == ("OFFLINE", 0)
    assert dead.left_us > 0
    assert (await kinds(there))[0].count == 0
    await database.execute("UPDATE lane SET seen_us = seen_us - 60000000 WHERE id IN (SELECT lane FROM worker)")
    await there.loops.sweep()
    assert await database.value("SELECT count(*) FROM worker") == 0
    (dead,) = await workers(there)
    assert (dead.status, dead.kinds) == ("OFFLINE", (KindSpec("resize", TASK_KIND, "1.2"),))


async def test_the_workers_of_a_server_that_stops_are_offline_at_once(start: Start, database: Database) -> None:
    """FV-6: unless they have gone to another one by then."""
    here, there = await start()
    stays = await worker(here, RESIZE).open()
    goes = await worker(here, RESIZE).open()
    await listed(there, "ONLINE", "ONLINE")
    await worker(there, RESIZE, worker_id=goes.id).open()

    async def moved() -> bool:
        return len(await database.rows("SELECT session FROM worker")) == 3

    await eventually(moved, "the worker's new connection")
    await here.core.peers._leave()
    found = {each.worker_id: each.status for each in await workers(there)}
    assert found == {stays.id: "OFFLINE", goes.id: "ONLINE"}


async def test_a_worker_that_is_not_heard_of_for_a_lease_is_offline(start: Start, database: Database) -> None:
    """FV-19: also where its server may be seen for longer than that."""
    here, there = await start(lease_s=2)
    async with worker(here, RESIZE) as serving:
        await listed(there, "ONLINE")
        await database.pass_time(3)
        assert [each.status for each in await workers(there)] == ["OFFLINE"]
        serving.session.heard()
        await here.loops.renew()
        assert [each.status for each in await workers(there)] == ["ONLINE"]


async def test_workers_that_start_and_die_in_a_circle_fill_nothing(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "LEFT_MOST", 2)
    here, _ = await start()
    names = []
    for number in range(4):
        async with worker(here, KindSpec(f"kind{number}")) as serving:
            names.append(serving.id)
            await listed(here, *["ONLINE", *["OFFLINE"] * number])
        await listed(here, *["OFFLINE"] * (number + 1))
    await here.loops.sweep()
    assert [each.worker_id for each in await workers(here)] == names[:1:-1]


async def test_what_a_worker_does_not_say_of_a_kind_stays_as_another_said_it(start: Start) -> None:
    here, there = await start()
    async with worker(here, RESIZE):
        await listed(here, "ONLINE")
        async with worker(there, KindSpec("resize", TASK_KIND, "1.2")):
            await listed(here, "ONLINE", "ONLINE")
            (kind,) = await kinds(here)
            assert (kind.spec, kind.count) == (RESIZE, 2)
        better = dataclasses.replace(RESIZE, description="makes it smaller")
        async with worker(there, better):
            await listed(here, "ONLINE", "OFFLINE", "ONLINE")
            assert (await kinds(here))[0].spec == better


async def test_no_more_kinds_are_listed_than_a_tenant_may_have(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "KINDS_MOST", 1)
    here, _ = await start()
    async with worker(here, RESIZE):
        await listed(here, "ONLINE")
        async with worker(here, RESIZE, KindSpec("other")):
            await listed(here, "ONLINE", "ONLINE")
            (kind,) = await kinds(here)
            assert (kind.spec.name, kind.count) == ("resize", 2)


@pytest.mark.parametrize("style", ["pages", "tokens"])
async def test_lists_are_paged_and_filtered(start: Start, style: str) -> None:
    here, there = await start()
    opened = []
    for number in range(5):
        service = (here, there)[number % 2]
        opened.append(await worker(service, KindSpec(f"kind{number}"), queues=(f"q{number}",)).open())
    await listed(here, *["ONLINE"] * 5)
    assert await _all(here, "workers", WorkerQuery(), style) == [each.id for each in reversed(opened)]
    assert await _all(here, "kinds", KindQuery(), style) == [f"kind{number}" for number in range(5)]
    for query in (
        WorkerQuery(kind="kind3"),
        WorkerQuery(queue="q3"),
        WorkerQuery(name=opened[3]._hello.name),
        WorkerQuery("ONLINE", "kind3", "q3"),
    ):
        assert await _all(here, "workers", query, style) == [opened[3].id]
    assert await _all(here, "workers", WorkerQuery("OFFLINE"), style) == []
    for each in opened:
        await each.close()


async def _all(service: Service, what: str, query: Any, style: str) -> list[str]:
    found: list[str] = []
    number, token = 1, ""
    while True:
        by_page = style == "pages"
        request = PageRequest(page=number, page_size=2) if by_page else PageRequest(page_size=2, page_token=token)
        page = await getattr(service.discovery, what)(ROOT, query, request)
        found += [each.worker_id if isinstance(each, KnownWorker) else each.spec.name for each in page.items]
        if by_page:
            assert page.info.total is not None
            if len(found) >= page.info.total:
                return found
        token, number = page.info.next_page_token or "", number + 1
        if not by_page and not token:
            return found


def test_no_column_of_a_worker_has_the_name_of_one_of_its_server() -> None:
    """WM-7: servers of the release before read both tables by bare names, which must stay unambiguous."""
    assert not set(worker_table.c.keys()) & set(lane_table.c.keys())


@pytest.mark.parametrize(
    ("specs", "field"),
    [
        ([KindSpec("other")], "hello.kind_specs[0].kind"),
        ([RESIZE, KindSpec("resize", TASK_KIND, "2")], "hello.kind_specs[1]"),
        ([ORDER, ORDER], "hello.kind_specs[1]"),
    ],
)
async def test_a_hello_that_describes_what_it_does_not_serve_is_refused(
    start: Start, specs: Sequence[KindSpec], field: str
) -> None:
    here, _ = await start()
    bad = Worker(here, kinds=["resize"], worker_id=new_id())
    bad._hello = dataclasses.replace(bad._hello, specs=tuple(specs))
    with pytest.raises(ValidationFailed) as refused:
        await bad.open()
    assert refused.value.details[0].field == field
    assert await workers(here) == []
