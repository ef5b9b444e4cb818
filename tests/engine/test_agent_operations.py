"""Agents: updated, deleted, paused and resumed, run by name; who serves them, and what they have done."""

import asyncio

import pytest
from tests.engine.database import Database
from tests.engine.servers import Roles, Start, eventually
from tests.engine.workers import Worker, chain_worker, done
from tests.engine.world import (
    CHAIN,
    CHAIN_AGENTS,
    ROOT,
    agent,
    blind,
    check_all,
    key,
    kinds_of,
    made,
    order,
    payload_of,
    register,
    types,
)

from millstream.application.ids import new_id
from millstream.application.paging import PageRequest
from millstream.application.views.artifacts import ArtifactQuery
from millstream.application.views.leases import Lease
from millstream.application.views.reports import Completion
from millstream.application.views.tasks import NewTask
from millstream.application.views.types import TypeChange
from millstream.domain.artifacts import NewArtifact, Visibility
from millstream.domain.errors import Conflict, IdempotencyConflict, NotFound, ValidationFailed
from millstream.domain.runs import RunStatus
from millstream.wiring import Service


async def publish(service: Service, *news: NewArtifact) -> list[str]:
    """Publish artifacts, each in a cascade of its own; returns their runs."""
    return [(await service.artifacts.publish(ROOT, new, None)).correlation_id for new in news]


async def test_an_update_replaces_what_is_registered(start: Start) -> None:
    """WM-1: the next version; by name or id; an expected version guards against another's change."""
    here, there = await start()
    await register(here, ("Order", "Payment"), agent("maker", "Order"))
    before = (await there.agents.get(ROOT, "maker")).agent
    state, replayed = await there.agents.update(ROOT, before.id, agent("maker", "Payment"), 1, None)
    assert (state.agent.id, state.agent.version, replayed) == (before.id, 2, False)
    (run_id,) = await publish(here, made("Order"))
    assert (await here.runs.get(ROOT, run_id)).task_count == 0
    (run_id,) = await publish(here, made("Payment"))
    assert (await here.runs.get(ROOT, run_id)).task_count == 1
    same, _ = await here.agents.update(ROOT, "maker", agent("", "Payment"), None, None)
    assert same.agent.version == 2
    with pytest.raises(Conflict):
        await here.agents.update(ROOT, "maker", agent("maker", "Order"), 1, None)
    with pytest.raises(ValidationFailed):
        await here.agents.update(ROOT, "maker", agent("other", "Order"), None, None)
    with pytest.raises(NotFound):
        await here.agents.update(ROOT, "nobody", agent("nobody", "Order"), None, None)


async def test_an_update_of_what_was_read_is_not_one_of_an_agent_made_anew(start: Start) -> None:
    """WM-1: the name and the version are the same, the id is not."""
    here, there = await start()
    await register(here, ("Order", "Payment"), agent("maker", "Order"))
    read = (await here.agents.get(ROOT, "maker")).agent
    state, _ = await there.agents.update(ROOT, "maker", agent("", "Payment"), 1, None, read.id)
    assert state.agent.version == 2
    await there.agents.delete(ROOT, "maker", None)
    await there.agents.create(ROOT, agent("maker", "Order"), None)
    with pytest.raises(Conflict):
        await here.agents.update(ROOT, "maker", agent("", "Payment"), 1, None, read.id)
    assert (await here.agents.get(ROOT, "maker")).agent.version == 1


async def test_an_update_s_key_guards_it(start: Start) -> None:
    """FL-8: once, whatever came after it."""
    here, there = await start()
    await register(here, ("Order", "Payment"), agent("maker", "Order"))
    guard = key("k", "UpdateAgent")
    await here.agents.update(ROOT, "maker", agent("maker", "Payment"), None, guard)
    _, replayed = await there.agents.update(ROOT, "maker", agent("maker", "Payment"), None, guard)
    assert replayed
    with pytest.raises(IdempotencyConflict):
        await there.agents.update(ROOT, "maker", agent("maker", "Order"), None, key("k", "UpdateAgent", "other"))


async def test_a_deleted_agent_is_activated_no_more(spread: Roles, database: Database) -> None:
    """WM-1: soft: tasks it has are worked off, it is listed as DELETED, and its name is free."""
    await register(spread.publisher, ("Order",), agent("maker", "Order"))
    first = (await spread.publisher.agents.get(ROOT, "maker")).agent
    (before,) = await publish(spread.publisher, made("Order"))
    await spread.worker.agents.delete(ROOT, "maker", None)
    (after,) = await publish(spread.publisher, made("Order"))
    assert (await spread.publisher.runs.get(ROOT, after)).task_count == 0
    with pytest.raises(NotFound):
        await spread.publisher.agents.get(ROOT, first.id)
    assert (await spread.publisher.agents.list(ROOT, PageRequest(), "", None)).items == []
    (gone,) = (await spread.publisher.agents.list(ROOT, PageRequest(), "", "DELETED")).items
    assert (gone.agent.id, gone.agent.spec.name, gone.agent.deleted_us > 0) == (first.id, "maker", True)
    async with Worker(spread.worker, kinds=["agent:maker"]) as worker:
        lease = await worker.take()
        assert lease.task.run_id == before
        await worker.complete(lease)
    second, _ = await spread.publisher.agents.create(ROOT, agent("maker", "Order"), None)
    assert (second.agent.id != first.id, second.agent.version) == (True, 1)
    await check_all(database)


async def test_a_deletion_s_key_guards_it(start: Start) -> None:
    """FL-8: a second call with the key does not delete who has the name by then."""
    here, there = await start()
    await register(here, ("Order",), agent("maker", "Order"))
    assert not await here.agents.delete(ROOT, "maker", key("k", "DeleteAgent"))
    await here.agents.create(ROOT, agent("maker", "Order"), None)
    assert await there.agents.delete(ROOT, "maker", key("k", "DeleteAgent"))
    assert (await there.agents.get(ROOT, "maker")).agent.version == 1


async def test_a_paused_agent_starts_nothing_on_any_server(roles: Roles, database: Database) -> None:
    """FL-14: artifacts match, tasks wait; resumed, all of them go to the worker in order."""
    await register(roles.publisher, ("Order",), agent("maker", "Order"))
    async with Worker(roles.worker, kinds=["agent:maker", "sums"]) as worker:
        (running,) = await publish(roles.publisher, made("Order", n=0))
        lease = await worker.take()
        state, _ = await roles.publisher.agents.pause(ROOT, "maker", "upkeep", None)
        assert state.status == "PAUSED"
        assert state.pause is not None
        assert (state.pause.reason, state.pause.paused_by) == ("upkeep", "root")
        await _holds(roles.worker, paused=True)
        runs = await publish(roles.publisher, *(made("Order", n=n) for n in range(1, 4)))
        await worker.complete(lease)
        assert (await roles.publisher.runs.get(ROOT, running)).status is RunStatus.COMPLETED
        # What is not paused goes on; by the time it was leased, the others would have been.
        await roles.publisher.tasks.create(ROOT, NewTask("sums"), None)
        sums = await worker.take()
        assert sums.task.kind == "sums"
        for run_id in runs:
            assert (await kinds_of(roles.worker, run_id))[-1] == "TASK_CREATED"
        await roles.worker.loops.poll()
        state, _ = await roles.publisher.agents.resume(ROOT, "maker", None)
        assert (state.status, state.pause) == ("ONLINE", None)
        leases = [await worker.take() for _ in runs]
        assert [payload_of(each.artifacts[0])["n"] for each in leases] == [1, 2, 3]
        for each in (sums, *leases):
            await worker.complete(each)
    await check_all(database)


async def _holds(service: Service, paused: bool) -> None:
    """Return when the server knows whether the agent is paused: a wake-up told it."""

    async def knows() -> bool:
        return service.engine.dispatcher._is_paused(("acme", "default", "agent:maker")) is paused

    await eventually(knows)


async def test_a_pause_outlives_all_servers(start: Start) -> None:
    """FL-14: it is a row; whoever starts holds to it."""
    here, there = await start()
    await register(here, ("Order",), agent("maker", "Order"))
    await here.agents.pause(ROOT, "maker", "", None)
    await publish(here, made("Order"))
    third, _ = await start()
    assert (await third.agents.get(ROOT, "maker")).status == "PAUSED"
    async with Worker(third, kinds=["agent:maker"]) as worker:
        await third.loops.poll()
        assert not worker.seen
        await there.agents.resume(ROOT, "maker", None)
        await worker.take()


async def test_a_poll_finds_a_pause_that_no_wake_up_told(start: Start, database: Database) -> None:
    """Engine-rules 8: a wake-up is a hint."""
    here, _ = await start()
    await register(here, ("Order",), agent("maker", "Order"))
    await database.execute("INSERT INTO pause (tenant, queue, kind) VALUES ('acme', 'default', '')")
    await here.loops.poll()
    async with Worker(here, kinds=["agent:maker"]) as worker:
        await publish(here, made("Order"))
        await here.loops.poll()
        assert not worker.seen
        await database.execute("DELETE FROM pause")
        await here.loops.poll()
        await worker.take()


async def test_an_agent_is_run_by_name(roles: Roles, database: Database) -> None:
    """FL-13: one task has all inputs, nobody else is activated by them; what the agent makes cascades as ever."""
    await register(roles.publisher, CHAIN, *CHAIN_AGENTS)
    async with chain_worker(roles.worker) as worker:
        result = await roles.publisher.agents.run(
            ROOT, "shipping", [made("Payment", n=1), made("Payment", n=2)], None, 10
        )
        assert result.completed
        assert [item.type for item in result.artifacts] == ["Shipment"]
        assert [lease.task.agent for lease in worker.seen] == ["shipping", "notifier"]
        assert [payload_of(item)["n"] for item in worker.seen[0].artifacts] == [1, 2]
    await check_all(database)


async def test_a_run_by_name_replays(spread: Roles, database: Database) -> None:
    """FL-8: the same answer, and nothing runs again."""
    await register(spread.publisher, CHAIN, *CHAIN_AGENTS)
    guard = key("k", "RunAgent")
    async with chain_worker(spread.worker) as worker:
        first = await spread.publisher.agents.run(ROOT, "payments", [order()], guard, 10)
        second = await spread.worker.agents.run(ROOT, "payments", [order()], guard, 10)
        assert len(worker.seen) == 3
    assert (second.replayed, second.correlation_id) == (True, first.correlation_id)
    assert [item.id for item in second.artifacts] == [item.id for item in first.artifacts]
    await check_all(database)


async def test_a_run_by_name_that_made_more_than_fits_says_so_and_how_to_list_the_rest(spread: Roles) -> None:
    """FL-13, FL-2: nothing is cut in silence; the token lists what the agent made beyond, and a replay has it too."""
    guard = key("k", "RunAgent")
    texts = [str(n) * 200_000 for n in range(10)] + ["x" * 200_000 for _ in range(10)]

    def answer(lease: Lease) -> Completion:
        return done(lease, *[made("Payment", text=text) for text in texts])

    maker = agent("maker", "Order", "Payment")
    async with Worker(spread.worker, agents=[maker], known=types("Order", "Payment"), handler=answer):
        for _ in range(2):
            result = await spread.publisher.agents.run(ROOT, "maker", [order()], guard, 30)
            assert result.completed
            assert 0 < len(result.artifacts) < 20
            found, token = [item.id for item in result.artifacts], result.next_page_token
            while token:
                query = ArtifactQuery(produced_by="maker", correlation_id=result.correlation_id)
                page = await spread.worker.artifacts.list(ROOT, query, PageRequest(page_token=token), False)
                found += [item.artifact.id for item in page.items]
                token = page.info.next_page_token or ""
            assert len(set(found)) == len(found) == 20


async def test_a_run_by_name_tells_of_deprecated_types(spread: Roles) -> None:
    """FL-13: as a publish does; of each type of the inputs once."""
    await register(spread.publisher, ("Order", "Payment"), agent("maker", ("Order", "Payment")))
    async with Worker(spread.worker, kinds=["agent:maker"], handler=done):
        result = await spread.publisher.agents.run(ROOT, "maker", [made("Order")], None, 10)
        assert result.notice == ""
        change = TypeChange("Payment", deprecated=True, deprecation="use Order")
        await spread.publisher.types.update(ROOT, change, None)
        inputs = [made("Payment"), made("Order"), made("Payment")]
        guard = key("k", "RunAgent")
        for _ in range(2):
            result = await spread.publisher.agents.run(ROOT, "maker", inputs, guard, 10)
            assert result.notice == "Payment: use Order"


async def test_a_run_by_name_that_takes_too_long_goes_on(start: Start) -> None:
    """FL-3: not completed, and nothing lost."""
    here, _ = await start()
    await register(here, ("Order",), agent("maker", "Order"))
    result = await here.agents.run(ROOT, "maker", [made("Order")], None, 0.01)
    assert (result.completed, result.artifacts) == (False, [])
    assert (await here.runs.get(ROOT, result.correlation_id)).open_tasks == 1


async def test_what_an_agent_does_not_take_is_refused(start: Start) -> None:
    """FL-13: by field; an `events` subscription takes nothing by name, a `direct` one does."""
    here, _ = await start()
    await register(
        here, ("Order", "Payment"), agent("maker", "Order", mode="events"), agent("direct", "Order", mode="direct")
    )
    for inputs, name in (([made("Order")], "maker"), ([made("Order"), made("Payment")], "direct")):
        with pytest.raises(ValidationFailed) as refused:
            await here.agents.run(ROOT, name, inputs, None, 1)
        assert [fault.field for fault in refused.value.details] == [f"inputs[{len(inputs) - 1}].type"]
    with pytest.raises(NotFound):
        await here.agents.run(ROOT, "nobody", [made("Order")], None, 1)
    async with Worker(here, kinds=["agent:direct"], handler=done):
        assert (await here.agents.run(ROOT, "direct", [made("Order")], None, 10)).completed


async def test_the_workers_that_serve_an_agent_are_shown(start: Start) -> None:
    """FL-13: who, where, since when; on every server, and gone when they go."""
    here, there = await start()
    await register(here, ("Order",), agent("maker", "Order"))
    found = (await here.agents.get(ROOT, "maker")).agent

    async def shown(service: Service, count: int) -> bool:
        detail = await service.agents.detail(ROOT, found)
        return detail.worker_count == count == len(detail.workers)

    async with Worker(here, kinds=["agent:maker"]) as one, Worker(there, kinds=["agent:maker", "sums"]) as two:
        for service in (here, there):
            await eventually(lambda service=service: shown(service, 2))  # type: ignore[misc]
        detail = await here.agents.detail(ROOT, found)
        assert {worker.worker_id for worker in detail.workers} == {one.id, two.id}
        assert all(worker.seen_us >= worker.connected_us > 0 for worker in detail.workers)
    await eventually(lambda: shown(here, 0))


async def test_a_worker_that_connected_again_is_one(start: Start, database: Database) -> None:
    """FL-13: though its old connection is not known to be gone: the new one counts."""
    here, there = await start()
    await register(here, ("Order",), agent("maker", "Order"))
    found, name = (await here.agents.get(ROOT, "maker")).agent, new_id()

    async def one() -> bool:
        detail = await here.agents.detail(ROOT, found)
        rows = await database.rows("SELECT connected_us FROM worker ORDER BY connected_us DESC")
        since = [worker.connected_us for worker in detail.workers]
        return len(rows) == 2 and detail.worker_count == 1 and since == [rows[0]["connected_us"]]

    async with (
        Worker(here, kinds=["agent:maker"], worker_id=name),
        Worker(there, kinds=["agent:maker"], worker_id=name),
    ):
        await eventually(one)


async def test_a_history_counts_what_was_made_and_taken_up(spread: Roles) -> None:
    """FL-13: by type; what the reader may not see is not counted."""
    await register(spread.publisher, CHAIN, *CHAIN_AGENTS)
    async with chain_worker(spread.worker):
        await asyncio.gather(*(spread.publisher.artifacts.publish_sync(ROOT, order(n), None, 10) for n in range(3)))
        private = Visibility("Private", ("payments",))
        hidden = NewArtifact("Order", visibility=private)
        await spread.publisher.artifacts.publish_sync(ROOT, hidden, None, 10)
    found, history = await spread.worker.agents.history(ROOT, "payments")
    assert found.spec.name == "payments"
    assert (history.produced, history.consumed, history.truncated) == ({"Payment": 4}, {"Order": 4}, False)
    _, seen = await spread.worker.agents.history(blind("reader"), "payments")
    assert (seen.produced, seen.consumed) == ({"Payment": 4}, {"Order": 3})
