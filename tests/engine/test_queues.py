"""Queues: listed with what stands in them, paused and resumed on all servers."""

import pytest
from tests.engine.database import Database
from tests.engine.servers import Start, eventually
from tests.engine.workers import Worker
from tests.engine.world import FOREVER, ROOT, agent, key, principal, register

from millstream.application.paging import PageRequest
from millstream.application.views.queues import QueueState
from millstream.application.views.tasks import NewTask
from millstream.domain.bounds import Bounds
from millstream.domain.errors import IdempotencyConflict
from millstream.wiring import Service


async def listed(service: Service, tenant: str = "acme") -> dict[str, QueueState]:
    """Queues by name."""
    page = await service.queues.list(principal(tenant=tenant), PageRequest())
    assert [state.queue for state in page.items] == sorted(state.queue for state in page.items)
    return {state.queue: state for state in page.items}


async def test_queues_are_listed_with_what_stands_in_them(start: Start, database: Database) -> None:
    """Ready, in line, scheduled, running, and since when the oldest waits; of the caller's tenant alone."""
    here, there = await start()
    async with Worker(there, kinds=["sums"], queues=["slow", "idle"], slots=2) as worker:
        for _ in range(2):
            await here.tasks.create(ROOT, NewTask("sums", queue="slow", timeouts=FOREVER), None)
        await worker.take_many(2)
        oldest = (await here.tasks.create(ROOT, NewTask("sums", queue="slow"), None)).task
        await here.tasks.create(ROOT, NewTask("sums", queue="slow", priority=9), None)
        await here.tasks.create(ROOT, NewTask("sums", queue="late", delay_us=10**9), None)
        for _ in range(3):
            await here.tasks.create(ROOT, NewTask("nobodys", queue="one", bounds=Bounds("k", 1)), None)

        async def one_called() -> bool:
            return (await listed(there)).get("one", QueueState("one")).ready == 1

        await eventually(one_called)
        found = await listed(there)
        assert {name: (q.ready, q.in_line, q.scheduled, q.running) for name, q in found.items()} == {
            "slow": (2, 0, 0, 2), "late": (0, 0, 1, 0), "one": (1, 2, 0, 0), "idle": (0, 0, 0, 0),
        }  # fmt: skip
        assert found["slow"].oldest_us == oldest.run_at_us
        assert await listed(there, "globex") == {}
        page = await here.queues.list(ROOT, PageRequest(page_size=3))
        rest = await here.queues.list(ROOT, PageRequest(page_size=3, page_token=page.info.next_page_token))
        assert [state.queue for state in [*page.items, *rest.items]] == ["idle", "late", "one", "slow"]


async def test_a_paused_queue_waits_on_all_servers_until_it_is_resumed(start: Start, database: Database) -> None:
    """Its tasks wait, those of others do not, what runs goes on; the list says who paused it and why."""
    here, there = await start()
    async with (
        Worker(here, kinds=["sums"], queues=["slow", "default"]) as one,
        Worker(there, kinds=["sums"], queues=["slow"]) as two,
    ):
        await here.tasks.create(ROOT, NewTask("sums", queue="slow", timeouts=FOREVER), None)
        worker = one if one.seen else two
        running = await worker.take()
        state, replayed = await here.queues.pause(ROOT, "slow", "a move", None)
        assert (state.running, replayed) == (1, False)
        assert state.pause is not None
        assert (state.pause.paused_by, state.pause.reason) == ("root", "a move")

        async def known() -> bool:
            return bool(there.engine.dispatcher._paused)

        await eventually(known, "that the other server knows of the pause")
        waiting = (await there.tasks.create(ROOT, NewTask("sums", queue="slow", bounds=Bounds("k", 1)), None)).task
        also = (await here.tasks.create(ROOT, NewTask("sums", queue="slow"), None)).task
        other = (await here.tasks.create(ROOT, NewTask("sums", bounds=Bounds("k", 1)), None)).task
        assert (await one.take()).task.id == other.id
        await worker.complete(running)
        assert one.leases.empty()
        assert two.leases.empty()
        found = (await listed(there))["slow"]
        assert (found.pause and found.pause.reason, found.ready + found.in_line) == ("a move", 2)
        await one.complete(next(lease for lease in one.seen if lease.task.id == other.id))
        state, _ = await there.queues.resume(ROOT, "slow", None)
        assert state.pause is None

        async def all_taken() -> bool:
            return {waiting.id, also.id} <= {lease.task.id for lease in [*one.seen, *two.seen]}

        await eventually(all_taken, "that what waited was taken")


async def test_a_pause_with_a_key_is_done_once(start: Start) -> None:
    """FL-8: a replay changes nothing; pausing again keeps who did it first."""
    here, there = await start()
    await here.queues.pause(ROOT, "slow", "one", key("k", "PauseQueue"))
    await here.queues.resume(ROOT, "slow", None)
    state, replayed = await there.queues.pause(ROOT, "slow", "one", key("k", "PauseQueue"))
    assert (state.pause, replayed) == (None, True)
    with pytest.raises(IdempotencyConflict):
        await there.queues.pause(ROOT, "slow", "two", key("k", "PauseQueue", "two"))
    await here.queues.pause(ROOT, "slow", "first", None)
    state, _ = await there.queues.pause(principal("other"), "slow", "second", None)
    assert state.pause is not None
    assert (state.pause.paused_by, state.pause.reason) == ("root", "first")


async def test_a_queues_pause_is_no_agents_and_no_other_tenants(start: Start) -> None:
    """An agent's pause is shown with the agent, a queue's with the queue."""
    here, there = await start()
    await register(here, ("Order",), agent("pay", "Order"))
    await here.agents.pause(ROOT, "pay", "", None)
    assert await listed(there) == {}
    await here.queues.pause(ROOT, "default", "", None)
    state = await here.agents.resume(ROOT, "pay", None)
    assert state[0].status == "OFFLINE"
    async with Worker(there, kinds=["sums"], who=principal(tenant="globex")) as worker:
        await there.tasks.create(principal(tenant="globex"), NewTask("sums"), None)
        await worker.take()
