"""Keys of agents and types: a replay answers with what the key's first call was about, whatever has changed since."""

from collections.abc import Awaitable, Callable

import pytest
from tests.engine.database import Database
from tests.engine.servers import Roles, Start
from tests.engine.workers import chain_worker
from tests.engine.world import CHAIN, CHAIN_AGENTS, ROOT, agent, key, order, register

from millstream.application.paging import PageRequest
from millstream.application.views.agents import AgentState
from millstream.application.views.types import TypeChange, TypeSpec
from millstream.domain.errors import NotFound
from millstream.wiring import Service

Call = Callable[[Service], Awaitable[tuple[AgentState, bool]]]
CALLS: dict[str, Call] = {
    "UpdateAgent": lambda at: at.agents.update(ROOT, "maker", agent("", "Payment"), None, key("k", "UpdateAgent")),
    "PauseAgent": lambda at: at.agents.pause(ROOT, "maker", "upkeep", key("k", "PauseAgent")),
    "ResumeAgent": lambda at: at.agents.resume(ROOT, "maker", key("k", "ResumeAgent")),
}


async def test_a_creation_is_replayed_after_its_agent_was_deleted(start: Start) -> None:
    """FL-8: the deleted agent is shown, and none is made."""
    here, there = await start()
    await register(here, ("Order",))
    guard = key("k", "CreateAgent")
    first, _ = await here.agents.create(ROOT, agent("maker", "Order"), guard)
    await there.agents.delete(ROOT, "maker", None)
    again, replayed = await there.agents.create(ROOT, agent("maker", "Order"), guard)
    assert (again.agent.id, again.status, replayed) == (first.agent.id, "DELETED", True)
    assert again.agent.deleted_us > 0
    assert (await here.agents.list(ROOT, PageRequest(), "", None)).items == []


async def test_a_creation_is_replayed_after_its_name_became_another_s(start: Start) -> None:
    """FL-8: by the id that it made."""
    here, there = await start()
    await register(here, ("Order",))
    guard = key("k", "CreateAgent")
    first, _ = await here.agents.create(ROOT, agent("maker", "Order"), guard)
    await here.agents.delete(ROOT, "maker", None)
    other, _ = await here.agents.create(ROOT, agent("maker", "Order"), None)
    again, replayed = await there.agents.create(ROOT, agent("maker", "Order"), guard)
    assert (again.agent.id, again.status, replayed) == (first.agent.id, "DELETED", True)
    assert other.agent.id != first.agent.id


@pytest.mark.parametrize("rpc", CALLS)
@pytest.mark.parametrize("then", ["deleted", "made anew"])
async def test_a_change_is_replayed_with_the_agent_it_was_of(start: Start, rpc: str, then: str) -> None:
    """FL-8: deleted or not, and the agent that has its name by then stays as it is."""
    here, there = await start()
    await register(here, ("Order", "Payment"), agent("maker", "Order"))
    first, replayed = await CALLS[rpc](here)
    assert not replayed
    await here.agents.delete(ROOT, "maker", None)
    if then == "made anew":
        await there.agents.create(ROOT, agent("maker", "Order"), None)
    again, replayed = await CALLS[rpc](there)
    assert (again.agent.id, again.status, replayed) == (first.agent.id, "DELETED", True)
    assert again.agent.spec == first.agent.spec
    if then == "made anew":
        found = await here.agents.get(ROOT, "maker")
        assert (found.agent.version, found.status) == (1, "OFFLINE")
        assert found.agent.spec.subscriptions[0].types == ("Order",)


async def test_a_pause_is_replayed_after_it_was_lifted(start: Start) -> None:
    """FL-8: the agent as it is, and it goes on."""
    here, there = await start()
    await register(here, ("Order", "Payment"), agent("maker", "Order"))
    await CALLS["PauseAgent"](here)
    await here.agents.resume(ROOT, "maker", None)
    state, replayed = await CALLS["PauseAgent"](there)
    assert (state.status, state.pause, replayed) == ("OFFLINE", None, True)


async def test_a_deletion_is_replayed_whoever_has_the_name(start: Start) -> None:
    """FL-8: nobody, or another agent, which stays."""
    here, there = await start()
    await register(here, ("Order",), agent("maker", "Order"))
    guard = key("k", "DeleteAgent")
    assert not await here.agents.delete(ROOT, "maker", guard)
    assert await there.agents.delete(ROOT, "maker", guard)
    await here.agents.create(ROOT, agent("maker", "Order"), None)
    assert await there.agents.delete(ROOT, "maker", guard)
    assert (await here.agents.get(ROOT, "maker")).agent.version == 1


async def test_a_run_by_name_is_replayed_whatever_became_of_its_agent(spread: Roles, database: Database) -> None:
    """FL-8: changed so that it takes no such input, deleted, or its type's schema another; nothing runs again."""
    here, there = spread.publisher, spread.worker
    await register(here, CHAIN, *CHAIN_AGENTS)
    guard = key("k", "RunAgent")
    async with chain_worker(there) as worker:
        first = await here.agents.run(ROOT, "payments", [order()], guard, 10)
        ran = len(worker.seen)
        await here.agents.update(ROOT, "payments", agent("", "Order", "Payment", mode="events"), None, None)
        answers = [await there.agents.run(ROOT, "payments", [order()], guard, 10)]
        await there.types.create(ROOT, TypeSpec("Order", '{"required":["x"]}', compatibility="none"), None)
        answers.append(await there.agents.run(ROOT, "payments", [order()], guard, 10))
        await there.agents.delete(ROOT, "payments", None)
        answers.append(await here.agents.run(ROOT, "payments", [order()], guard, 10))
        assert len(worker.seen) == ran
    for answer in answers:
        assert (answer.replayed, answer.correlation_id) == (True, first.correlation_id)
        assert [item.id for item in answer.artifacts] == [item.id for item in first.artifacts] != []
    with pytest.raises(NotFound):
        await here.agents.run(ROOT, "payments", [order()], key("other", "RunAgent"), 10)
    assert await database.value("SELECT count(*) FROM run") == 1


async def test_a_type_s_creation_is_replayed_with_its_version(start: Start) -> None:
    """FL-8: not the latest, and as it is now."""
    here, there = await start()
    spec, guard = TypeSpec("Order", '{"type":"object"}'), key("k", "CreateType")
    await here.types.create(ROOT, spec, guard)
    await here.types.create(ROOT, TypeSpec("Order"), None)
    await there.types.update(ROOT, TypeChange("Order", version=1, deprecated=True), None)
    again, replayed = await there.types.create(ROOT, spec, guard)
    assert (again.version, again.options.deprecated, replayed) == (1, True, True)
    assert (await here.types.get(ROOT, "Order", None)).version == 2


async def test_a_type_s_change_is_replayed_with_the_version_it_was_of(start: Start) -> None:
    """FL-8: a version that came after it stays as it is."""
    here, there = await start()
    await here.types.create(ROOT, TypeSpec("Order", '{"type":"object"}'), None)
    change, guard = TypeChange("Order", deprecated=True), key("k", "UpdateArtifactType")
    first, _ = await here.types.update(ROOT, change, guard)
    await here.types.create(ROOT, TypeSpec("Order"), None)
    assert await there.types.update(ROOT, change, guard) == (first, True)
    assert not (await here.types.get(ROOT, "Order", None)).options.deprecated
