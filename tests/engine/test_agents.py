"""Agents: which artifacts reach them, and how they and their types are registered, on whichever server."""

import pytest
from tests.engine.servers import Roles, Start, eventually
from tests.engine.workers import Worker, done
from tests.engine.world import ROOT, agent, kinds_of, made, order, principal, register, seconds, types

from millstream.application import registering
from millstream.application.paging import PageRequest
from millstream.application.views.tasks import NewTask
from millstream.application.views.types import TypeSpec
from millstream.domain.errors import Conflict, NotFound, ValidationFailed
from millstream.domain.retry import Timeouts
from millstream.wiring import Service


async def test_broadcast_reaches_every_agent_exclusive_only_one(spread: Roles) -> None:
    """FL-14: of exclusive subscriptions the most urgent, then the first by name."""
    agents = [
        agent("b1", "Order"),
        agent("b2", "Order"),
        agent("x1", "Order", delivery="exclusive"),
        agent("x2", "Order", delivery="exclusive", priority=5),
        agent("x3", "Order", delivery="exclusive", priority=5),
    ]
    async with Worker(spread.worker, agents=agents, known=types("Order"), handler=done) as worker:
        await spread.publisher.artifacts.publish_sync(ROOT, order(), None, 10)
    assert sorted(lease.task.agent for lease in worker.seen) == ["b1", "b2", "x2"]


async def test_a_condition_selects_by_the_payload(spread: Roles) -> None:
    """FL-14: `where` is CEL over payload and artifact; where it cannot be evaluated it does not hold."""
    agents = [
        agent("large", "Order", where="payload.amount > 100"),
        agent("tagged", "Order", where="'vip' in artifact.tags && artifact.produced_by == 'external'"),
        agent("nested", "Order", where="payload.items.exists(i, i.sku == 'a')"),
    ]
    async with Worker(spread.worker, agents=agents, known=types("Order"), handler=done) as worker:
        for new in (
            made("Order", amount=500),
            made("Order", amount=5),
            made("Order", amount="many"),
            made("Order", items=[{"sku": "b"}, {"sku": "a"}]),
            order(tags=("vip",)),
        ):
            await spread.publisher.artifacts.publish_sync(ROOT, new, None, 10)
    assert [lease.task.agent for lease in worker.seen] == ["large", "nested", "tagged"]


async def test_tags_and_producers_select(spread: Roles) -> None:
    """FL-14: tags as channels, from_agents."""
    agents = [
        agent("channel", "Order", tags=("red", "blue")),
        agent("maker", "Order", "Payment"),
        agent("follows", "Payment", from_agents=("maker",)),
        agent("ignores", "Payment", from_agents=("other",)),
        agent("outside", "Payment", from_agents=("external",)),
    ]

    async with Worker(
        spread.worker,
        agents=agents,
        known=types("Order", "Payment"),
        handler=lambda lease: done(lease, *([made("Payment")] if lease.task.agent == "maker" else [])),
    ) as worker:
        await spread.publisher.artifacts.publish_sync(ROOT, order(tags=("blue", "x")), None, 10)
        assert sorted(lease.task.agent for lease in worker.seen) == ["channel", "follows", "maker"]
        worker.seen.clear()
        await spread.publisher.artifacts.publish_sync(ROOT, made("Payment"), None, 10)
        assert [lease.task.agent for lease in worker.seen] == ["outside"]


async def test_a_subscriptions_priority_is_its_tasks(spread: Roles) -> None:
    """FL-14: priority."""
    agents = [agent("low", "Order", priority=-1), agent("high", "Order", priority=9), agent("mid", "Order")]
    await register(spread.publisher, ("Order",), *agents)
    await spread.publisher.artifacts.publish(ROOT, order(), None)
    for name in ("high", "mid", "low"):
        async with Worker(spread.worker, kinds=[f"agent:{name}"]) as worker:
            assert (await worker.take()).task.priority == {"high": 9, "mid": 0, "low": -1}[name]


async def test_an_agent_registered_on_one_server_is_seen_by_a_publish_on_another_at_once(
    start: Start, owner_path: bool
) -> None:
    """Rule 4: the transaction compares the registry's version; nothing published after is missed."""
    here, there = await start(owner_path=owner_path)
    await register(here, ("Order",))
    for n in range(5):
        published = await here.artifacts.publish(ROOT, order(), None)
        assert (await kinds_of(here, published.correlation_id)).count("TASK_CREATED") == n
        await there.agents.create(ROOT, agent(f"agent{n}", "Order"), None)


async def test_an_agents_own_artifacts_meet_agents_registered_meanwhile(start: Start) -> None:
    """Rule 4: for what a completion publishes, too."""
    here, there = await start()
    async with Worker(here, agents=[agent("maker", "Order", "Payment")], known=types("Order", "Payment")) as worker:
        published = await here.artifacts.publish(ROOT, order(), None)
        lease = await worker.take()
        await there.agents.create(ROOT, agent("late", "Payment"), None)
        await worker.complete(lease, made("Payment"))
    assert (await kinds_of(there, published.correlation_id)).count("TASK_CREATED") == 2


async def test_a_type_gets_a_version_for_each_schema(start: Start) -> None:
    """Issue 2: types have versions; the same schema, however written, is no new one; artifacts note theirs."""
    here, there = await start()
    made_types = [
        (await here.types.create(ROOT, TypeSpec("Order", '{"type":"object","title":"a"}'), None))[0],
        (await there.types.create(ROOT, TypeSpec("Order", '{"title": "a", "type": "object"}'), None))[0],
        (await there.types.create(ROOT, TypeSpec("Order", '{"type":"object","title":"b"}'), None))[0],
    ]
    assert [found.version for found in made_types] == [1, 1, 2]
    published = await here.artifacts.publish(ROOT, order(), None)
    assert (await here.artifacts.get(ROOT, published.artifact_id)).version == 2
    assert (await here.types.get(ROOT, "Order", 1)).schema == '{"type":"object","title":"a"}'
    with pytest.raises(NotFound):
        await there.types.get(ROOT, "Order", 3)


async def test_a_worker_brings_its_types_and_agents(start: Start) -> None:
    """Issue 2: registered on hello; unchanged ones are left alone, changed ones get a version."""
    here, there = await start()
    async with Worker(here, agents=[agent("maker", "Order")], known=types("Order")):
        pass
    async with Worker(there, agents=[agent("maker", "Order")], known=types("Order")):
        assert (await here.agents.get(ROOT, "maker")).agent.version == 1
    async with Worker(there, agents=[agent("maker", "Order", priority=3)], known=types("Order")):
        state = await here.agents.get(ROOT, "maker")
        assert (state.agent.version, state.agent.spec.subscriptions[0].priority) == (2, 3)
        # The worker before it went just now, and the word of that may come last.
        await eventually(lambda: _in_status(here, "ONLINE"))
    await here.core.peers.refresh()
    await eventually(lambda: _in_status(here, "OFFLINE"))


async def _in_status(service: Service, status: str) -> bool:
    return (await service.agents.get(ROOT, "maker")).status == status


async def test_a_bad_registration_changes_nothing(start: Start) -> None:
    """FL-10: all or none; the error names the field."""
    here, there = await start()
    await register(here, ("Order",))
    with pytest.raises(ValidationFailed) as refused:
        await Worker(here, agents=[agent("good", "Order"), agent("bad", "Order", where="payload. >")]).open()
    assert refused.value.details[0].field == "subscriptions[0].where"
    with pytest.raises(NotFound):
        await Worker(here, agents=[agent("good", "Order"), agent("bad", "Nothing")], known=types("New")).open()
    with pytest.raises(ValidationFailed):
        await there.types.create(ROOT, TypeSpec("Bad", '{"type":"nonsense"}'), None)
    await there.agents.create(ROOT, agent("one", "Order"), None)
    with pytest.raises(Conflict):
        await here.agents.create(ROOT, agent("one", "Order", priority=2), None)
    with pytest.raises(NotFound):
        await there.agents.get(ROOT, "good")
    with pytest.raises(NotFound):
        await there.types.get(ROOT, "New", None)


async def test_a_heartbeat_that_the_attempt_never_lives_to_miss_is_refused(start: Start) -> None:
    """FL-10: for agents and tasks; as long as the attempt is allowed, and where that has no end, anything is."""
    here, _ = await start()
    await register(here, ("Order",))
    for timeouts in (Timeouts(0, seconds(5), seconds(6)), Timeouts(heartbeat_us=seconds(301))):
        for call in (
            here.agents.create(ROOT, agent("maker", "Order", timeouts=timeouts), None),
            here.tasks.create(ROOT, NewTask("sums", timeouts=timeouts), None),
        ):
            with pytest.raises(ValidationFailed) as refused:
                await call
            assert [fault.field for fault in refused.value.details] == ["timeouts.heartbeat"]
    for name, timeouts in (("a", Timeouts(0, seconds(5), seconds(5))), ("b", Timeouts(0, 0, seconds(6)))):
        await here.agents.create(ROOT, agent(name, "Order", timeouts=timeouts), None)


async def test_tenants_do_not_meet(spread: Roles) -> None:
    """Invariant: same names, different worlds: neither agents nor workers of another tenant get the artifact."""
    stranger = principal("root", "other")
    async with (
        Worker(spread.worker, agents=[agent("maker", "Order")], known=types("Order"), handler=done) as mine,
        Worker(spread.worker, agents=[agent("maker", "Order")], known=types("Order"), who=stranger) as theirs,
    ):
        await spread.publisher.artifacts.publish_sync(ROOT, order(), None, 10)
    assert len(mine.seen) == 1
    assert theirs.seen == []


async def test_one_change_of_an_agent_leaves_the_others_compiled(start: Start) -> None:
    """A tenant may have thousands: what has not changed is not read again."""
    here, there = await start()
    await register(here, ("Order",), agent("first", "Order"), agent("second", "Order"))
    before = await here.agents.list(ROOT, PageRequest(), "", None)
    await there.agents.update(ROOT, "first", agent("first", "Order", priority=2), None, None)
    after = await here.agents.list(ROOT, PageRequest(), "", None)
    kept = [old.agent is new.agent for old, new in zip(before.items, after.items, strict=True)]
    assert (kept, after.items[0].agent.version) == ([False, True], 2)


async def test_a_tenant_has_so_many_agents(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the API and by workers: refused, with nothing registered of what would be too many."""
    monkeypatch.setattr(registering, "AGENTS_MOST", 2)
    here, there = await start()
    await register(here, ("Order",), agent("first", "Order"), agent("second", "Order"))
    with pytest.raises(Conflict, match="at most 2"):
        await there.agents.create(ROOT, agent("third", "Order"), None)
    with pytest.raises(Conflict, match="at most 2"):
        async with Worker(there, agents=[agent("first", "Order", priority=1), agent("third", "Order")]):
            pass
    assert (await here.agents.get(ROOT, "first")).agent.version == 1
    await here.agents.delete(ROOT, "second", None)
    await there.agents.create(ROOT, agent("third", "Order"), None)
