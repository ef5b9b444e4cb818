"""Serving the agents that servers call: what may be registered, who serves it, and how much of it at once."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from a2a.helpers.proto_helpers import new_text_part
from tests.engine.database import Database
from tests.engine.servers import Start, eventually
from tests.engine.test_called_agents import TYPES, attempts_of, called, cascade, ended, hang, holds, pay, tasks_of
from tests.engine.workers import Worker
from tests.engine.world import ROOT, agent, check_all, order, principal, register
from tests.remote_agents import NETWORKS, Turn, a2a_agent

from millstream.application.paging import PageRequest
from millstream.domain.errors import Conflict, ValidationFailed
from millstream.domain.retry import SECOND_US, Timeouts
from millstream.domain.runs import AttemptStatus
from millstream.domain.workers import KindQuery, WorkerQuery
from millstream.wiring import Service

PUBLIC = "https://agents.example.com/a2a"


@pytest.mark.parametrize(
    ("fields", "field", "message", "code"),
    [
        ({"url": ""}, "url", "is needed with the protocol A2A", "REQUIRED"),
        ({"protocol": "WORKER"}, "url", "has no effect with the protocol WORKER", "INVALID"),
        ({"url": "agents.example.com"}, "url", "must begin with http:// or https://", "INVALID"),
        ({"url": "http://169.254.169.254/latest"}, "url", "which is not public", "INVALID"),
        (
            {"protocol": "HTTP", "timeouts": Timeouts(heartbeat_us=SECOND_US)},
            "timeouts.heartbeat",
            "which gives no sign of life",
            "INVALID",
        ),
    ],
)
async def test_what_cannot_be_called_is_refused(
    start: Start, fields: dict[str, Any], field: str, message: str, code: str
) -> None:
    """WM-1, WM-10: when it is registered and when it is updated, with the field at fault."""
    here, there = await start()
    await register(here, TYPES, called(PUBLIC, name="other"))
    spec = replace(called(PUBLIC), **fields)
    for refused in (
        here.agents.create(ROOT, spec, None),
        there.agents.update(ROOT, "other", replace(spec, name=""), None, None),
    ):
        with pytest.raises(ValidationFailed) as raised:
            await refused
        (fault,) = raised.value.details
        assert (fault.field, fault.code) == (field, code)
        assert message in fault.message


async def test_servers_serve_what_they_call(start: Start) -> None:
    """WM-1, FV-6: it is ONLINE, served by each server; lists show how it is reached."""
    here, there = await start()
    await register(here, TYPES, called(PUBLIC), agent("packing", "Payment"))
    page = await there.agents.list(ROOT, PageRequest(), "", None)
    assert [
        (each.agent.spec.name, each.status, each.agent.spec.protocol, each.agent.spec.url) for each in page.items
    ] == [
        ("packing", "OFFLINE", "WORKER", ""),
        ("payments", "ONLINE", "A2A", PUBLIC),
    ]
    state = await there.agents.get(ROOT, "payments")

    async def by_both() -> bool:
        return (await there.agents.detail(ROOT, state.agent)).worker_count == 2

    await eventually(by_both, "that both servers are listed")
    detail = await there.agents.detail(ROOT, state.agent)
    assert all(each.name == f"server {each.server}" for each in detail.workers)


async def test_a_server_is_listed_as_the_worker_of_what_it_calls(start: Start, database: Database) -> None:
    """FV-6: as long as it lives, and it says nothing of its own beside; its agents are no kinds of tasks."""
    here, there = await start()
    await register(here, TYPES, called(PUBLIC))

    async def both() -> bool:
        page = await there.discovery.workers(ROOT, WorkerQuery(), PageRequest())
        return [each.status for each in page.items] == ["ONLINE", "ONLINE"]

    await eventually(both, "that both servers are listed")
    await database.execute("UPDATE worker SET heard_us = 1, connected_us = 1")
    page = await there.discovery.workers(ROOT, WorkerQuery(), PageRequest())
    assert [(each.status, each.slots, each.agents) for each in page.items] == [("ONLINE", 0, ("payments",))] * 2
    assert all(each.heard_us > 1 for each in page.items)
    assert (await there.discovery.kinds(ROOT, KindQuery(), PageRequest())).items == []


async def test_a_worker_cannot_take_the_name_of_an_agent_that_is_called(start: Start) -> None:
    """WM-1: or each would have it from the other as they connect."""
    here, _ = await start()
    await register(here, TYPES, called(PUBLIC))
    with pytest.raises(Conflict, match="is called by the server"):
        await Worker(here, agents=[agent("payments", "Order", "Payment")]).open()
    assert (await here.agents.get(ROOT, "payments")).agent.spec.protocol == "A2A"


async def test_an_update_moves_an_agent(start: Start) -> None:
    """WM-1: to another address, to another queue, to workers and back; tasks that wait go where it is."""
    here, there = await start(agent_networks=NETWORKS)
    async with a2a_agent(pay) as first, a2a_agent(pay) as second:
        await register(here, TYPES, called(first.url))
        assert (await cascade(there)).failures == []
        await there.agents.update(ROOT, "payments", called(second.url, name="", queue="other"), None, None)
        assert (await cascade(here)).failures == []
        assert (len(first.turns), len(second.turns)) == (1, 1)
        await here.agents.update(ROOT, "payments", agent("", "Order", "Payment"), None, None)

        async def is_left() -> bool:
            state = await there.agents.get(ROOT, "payments")
            return state.status == "OFFLINE"

        await eventually(is_left, "that no server serves it")
        run_id = (await here.artifacts.publish(ROOT, order(), None)).correlation_id
        await there.agents.update(ROOT, "payments", called(first.url, name=""), None, None)
        await ended(here, run_id)
        assert (len(first.turns), len(second.turns)) == (2, 1)


async def test_what_a_deleted_agent_was_given_is_worked_off(start: Start) -> None:
    """WM-1: nothing activates it any more."""
    here, there = await start(agent_networks=NETWORKS)
    async with a2a_agent(pay) as remote:
        await register(here, TYPES, called(remote.url))
        await here.agents.pause(ROOT, "payments", "", None)
        await there.core.pauses.refresh()
        run_id = (await here.artifacts.publish(ROOT, order(), None)).correlation_id
        await there.agents.delete(ROOT, "payments", None)
        await ended(here, run_id)
        assert len(remote.turns) == 1
        assert [each.type for each in (await cascade(here)).artifacts] == ["Order"]


async def test_a_paused_agent_is_not_called(start: Start) -> None:
    """WM-1: until it is resumed."""
    here, there = await start(agent_networks=NETWORKS)
    async with a2a_agent(pay) as remote:
        await register(here, TYPES, called(remote.url))
        await here.agents.pause(ROOT, "payments", "", None)
        await there.core.pauses.refresh()
        run_id = (await here.artifacts.publish(ROOT, order(), None)).correlation_id
        assert (await here.runs.get(ROOT, run_id)).open_tasks == 1
        assert remote.turns == []
        await there.agents.resume(ROOT, "payments", None)
        await ended(here, run_id)
    assert len(remote.turns) == 1


class Gate:
    """An agent whose turns wait until the test lets them go on."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.inside = 0
        self.most = 0

    async def __call__(self, turn: Turn) -> None:
        await turn.start()
        self.inside += 1
        self.most = max(self.most, self.inside)
        await self.open.wait()
        self.inside -= 1
        await turn.make({"paid": True})
        await turn.updater.complete()


async def publish(service: Service, count: int, tenant: str = ROOT.tenant) -> list[str]:
    """Publish so many Orders; their runs."""
    who = principal(tenant=tenant)
    return [(await service.artifacts.publish(who, order(number), None)).correlation_id for number in range(count)]


async def test_an_agents_bound_holds_over_all_servers(start: Start, database: Database) -> None:
    """FL-14: max_concurrency, as for workers."""
    here, there = await start(agent_networks=NETWORKS)
    gate = Gate()
    async with a2a_agent(gate) as remote:
        await register(here, TYPES, called(remote.url, max_concurrency=2))
        runs = [*await publish(here, 3), *await publish(there, 3)]
        await remote.came.get()
        await remote.came.get()
        gate.open.set()
        for run_id in runs:
            await ended(here, run_id)
    assert gate.most <= 2
    assert len(remote.turns) == 6
    await check_all(database)


async def test_a_server_calls_so_many_at_once_and_so_many_of_a_tenant(start: Start) -> None:
    """FL-16: one tenant's slow agents leave room to another's; what found none is called as others end."""
    here, there = await start(agent_networks=NETWORKS, agent_calls=3, agent_calls_per_tenant=2)
    slow, quick = Gate(), Gate()
    async with a2a_agent(slow) as remote, a2a_agent(quick) as other:
        await register(here, TYPES, called(remote.url), called(remote.url, name="again"))
        await register(here, TYPES, called(other.url), tenant="other")
        mine = await publish(here, 6)
        theirs = await publish(here, 3, "other")
        for _ in range(4):
            await remote.came.get()
        for _ in range(2):
            await other.came.get()
        assert (slow.inside, quick.inside) == (4, 2)
        assert [service.calling._pool._total for service in (here, there)] == [3, 3]
        slow.open.set()
        quick.open.set()
        for run_id in mine:
            await ended(here, run_id)

        async def done() -> bool:
            found = [await here.runs.get(principal(tenant="other"), run_id) for run_id in theirs]
            return all(run.finished_us > 0 for run in found)

        await eventually(done)
    assert (len(remote.turns), len(other.turns)) == (12, 3)
    assert [service.calling._pool._total for service in (here, there)] == [0, 0]
    assert [service.calling._pool._taken for service in (here, there)] == [{}, {}]


async def test_a_server_that_stops_lets_calls_end(start: Start) -> None:
    """FV-19: within its time, and takes no more."""
    here, there = await start(agent_networks=NETWORKS)
    gate = Gate()
    async with a2a_agent(gate) as remote:
        await register(here, TYPES, called(remote.url))
        (run_id,) = await publish(here, 1)
        await remote.came.get()
        (task,) = (await tasks_of(here, run_id)).values()
        holder, other = (here, there) if holds(here, task.id) else (there, here)
        holder.workers.drain()
        closing = asyncio.create_task(holder.calling.close())
        (late,) = await publish(other, 1)
        await remote.came.get()
        (task_late,) = (await tasks_of(other, late)).values()
        assert holds(other, task_late.id)
        gate.open.set()
        await closing
        await ended(other, run_id)
        await ended(other, late)
    assert await attempts_of(other, task.id) == [(AttemptStatus.COMPLETED, "")]


async def test_a_server_that_stops_gives_back_what_does_not_end(start: Start) -> None:
    """FV-19: at once, without an attempt burnt; the agent is told to give its task up."""
    here, there = await start(agent_networks=NETWORKS, drain_timeout_s=0.0)

    async def hang_once(turn: Turn) -> None:
        await (hang(turn) if turn.about["attempt"] == 1 else pay(turn))

    async with a2a_agent(hang_once) as remote:
        await register(here, TYPES, called(remote.url))
        (run_id,) = await publish(here, 1)
        first = await remote.came.get()
        (task,) = (await tasks_of(here, run_id)).values()
        holder, other = (here, there) if holds(here, task.id) else (there, here)
        await holder.calling.close()
        assert await remote.cancelled.get() == first.updater.task_id
        await ended(other, run_id)
    assert await attempts_of(other, task.id) == [(AttemptStatus.COMPLETED, "")]
    assert (await other.tasks.get(ROOT, task.id)).task.tries == 1


async def test_signs_of_life_keep_an_agent_going(start: Start) -> None:
    """FV-19: each look and each event is one; what the agent says is the task's progress."""
    here, _ = await start(agent_networks=NETWORKS)
    go = asyncio.Event()

    async def slow(turn: Turn) -> None:
        await turn.start()
        about = turn.updater.new_agent_message([new_text_part("half way")])
        await turn.updater.start_work(about)
        await go.wait()
        await turn.make({"paid": True})
        await turn.updater.complete()

    async with a2a_agent(slow, streaming=False) as remote:
        timeouts = Timeouts(start_to_close_us=0, heartbeat_us=SECOND_US)
        await register(here, TYPES, called(remote.url, timeouts=timeouts))
        (run_id,) = await publish(here, 1)
        await remote.came.get()

        async def told() -> bool:
            (task,) = (await tasks_of(here, run_id)).values()
            return bool(task.progress_message == "half way")

        await eventually(told, "that the progress is stored")
        (before,) = (await tasks_of(here, run_id)).values()

        async def beaten() -> bool:
            (task,) = (await tasks_of(here, run_id)).values()
            return bool(task.beat_by_us > before.beat_by_us + 2 * SECOND_US)

        await eventually(beaten, "that it lives on")
        go.set()
        await ended(here, run_id)
    (task,) = (await tasks_of(here, run_id)).values()
    assert await attempts_of(here, task.id) == [(AttemptStatus.COMPLETED, "")]


async def test_an_agent_is_found_when_the_wake_up_is_lost(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """FV-19: by the next poll."""
    here, there = await start(agent_networks=NETWORKS)
    monkeypatch.setattr(here.core.peers, "registry_moved", lambda tenant: None)
    await register(here, TYPES, called(PUBLIC))

    async def found() -> bool:
        return there.calling.serves((await there.agents.get(ROOT, "payments")).agent)

    await eventually(found)
