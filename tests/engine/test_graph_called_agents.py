"""Runs of workflows with an agent by A2A among steps in every state: finished, running, waiting and failed at once.

Each with two servers; a run begins at one, what is done to it is done at the other. (WM-1, WM-4, FV-9)"""

import asyncio

import pytest
from a2a.helpers.proto_helpers import new_text_part
from tests.engine.database import Database
from tests.engine.servers import Roles, Start
from tests.engine.test_called_agents import TYPES, called, hang, pay
from tests.engine.test_graph_retries import ended, once, statuses
from tests.engine.test_graph_runs import define, step
from tests.engine.workers import Worker
from tests.engine.world import ROOT, check_all, kinds_of, register
from tests.remote_agents import NETWORKS, Turn, a2a_agent

from millstream.application.paging import PageRequest
from millstream.application.views.dead_letters import DeadLetterQuery
from millstream.application.workflow_runs import NewRun
from millstream.domain.retry import RetryPolicy
from millstream.domain.runs import RunStatus, TaskStatus
from millstream.domain.workflows import OnFailure, Step, StepKind
from millstream.wiring import Service

ONCE = RetryPolicy(max_attempts=1)
ASKED = {"type": "Order", "payload": {"order_id": "7"}}
KINDS = ["done", "runs", "fails", "last"]


def steps(*, fails: OnFailure) -> list[Step]:
    """One that is done, one that runs, an agent, two that wait, one that fails; and one that needs most of them."""
    return [
        once("done"), once("runs"), once("fails", on_failure=fails),
        step("asks", kind=StepKind.AGENT, target="payments", input=ASKED),
        step("nap", kind=StepKind.SLEEP, sleep=3600.0),
        step("ok", kind=StepKind.WAIT_PROMISE, target="approval"),
        once("last", "done", "runs", "asks", "fails"),
    ]  # fmt: skip


async def begun(service: Service) -> str:
    """A run of it."""
    return (await service.workflow_runs.execute(ROOT, NewRun("w"), None)).run.id


@pytest.mark.parametrize("streaming", [True, False], ids=["streams", "is looked at"])
async def test_a_cancelled_workflow_cancels_the_agents_task(start: Start, database: Database, streaming: bool) -> None:
    """WM-4: the agent is told as workers are; what has ended stays, and nothing begins any more."""
    here, there = await start(agent_networks=NETWORKS)
    async with (
        a2a_agent(hang, streaming=streaming) as remote,
        Worker(there, kinds=KINDS) as worker,
    ):
        await register(here, TYPES, called(remote.url))
        define(Roles(here, there), *steps(fails=OnFailure.CONTINUE))
        run_id = await begun(here)
        leases = {lease.task.kind: lease for lease in await worker.take_many(3)}
        await worker.complete(leases["done"])
        await worker.fail(leases["fails"], retryable=False)
        turn = await remote.came.get()
        await there.runs.cancel(ROOT, run_id, "enough", None)
        assert (await worker.told()).task_id == leases["runs"].task.id
        assert await remote.cancelled.get() == turn.updater.task_id
        await worker.complete(leases["runs"])
        assert (await ended(here, run_id)).status is RunStatus.CANCELLED
        assert worker.leases.empty()
        children = await here.runs.children(ROOT, run_id, PageRequest())
        assert (await ended(here, children.items[0].id)).status is RunStatus.CANCELLED
    assert await statuses(there, run_id) == {
        "done": "COMPLETED", "runs": "COMPLETED", "fails": "FAILED", "asks": "CANCELLED", "nap": "CANCELLED",
        "ok": "CANCELLED", "last": "CANCELLED",
    }  # fmt: skip
    kinds = await kinds_of(here, run_id)
    assert "TASK_CREATED" not in kinds[kinds.index("RUN_CANCELLING") :]
    await check_all(database)


async def test_a_retry_does_not_call_an_agent_again_that_has_answered(start: Start, database: Database) -> None:
    """WM-4, FV-9: a step fails while the agent works; its answer is kept, what waited begins anew."""
    here, there = await start(agent_networks=NETWORKS)
    go = asyncio.Event()

    async def wait(turn: Turn) -> None:
        await go.wait()
        await pay(turn)

    async with a2a_agent(wait) as remote, Worker(there, kinds=KINDS) as worker:
        await register(here, TYPES, called(remote.url))
        definition = steps(fails=OnFailure.FAIL)
        define(Roles(here, there), *definition)
        run_id = await begun(here)
        leases = {lease.task.kind: lease for lease in await worker.take_many(3)}
        await worker.complete(leases["done"])
        await remote.came.get()
        await worker.fail(leases["fails"], "BROKEN", retryable=False)
        await worker.complete(leases["runs"])
        go.set()
        failed = await ended(there, run_id)
        assert (failed.status, failed.error_code) == (RunStatus.FAILED, "BROKEN")
        assert await statuses(here, run_id) == {
            "done": "COMPLETED", "runs": "COMPLETED", "fails": "FAILED", "asks": "COMPLETED", "nap": "CANCELLED",
            "ok": "CANCELLED", "last": "CANCELLED",
        }  # fmt: skip
        await there.run_operations.retry(ROOT, run_id, "mended", "", None)
        again = await worker.take()
        assert again.task.kind == "fails"
        await worker.complete(again)
        await worker.complete(await worker.take())
        assert await statuses(here, run_id) == {
            "done": "COMPLETED", "runs": "COMPLETED", "fails": "COMPLETED", "asks": "COMPLETED", "nap": "PENDING",
            "ok": "PENDING", "last": "COMPLETED",
        }  # fmt: skip
        assert len(remote.turns) == 1
    await check_all(database)


async def test_a_retry_calls_an_agent_again_that_has_failed(start: Start, database: Database) -> None:
    """WM-1, WM-4: as another task, with another token; the failure of the first is nobody's dead letter any more."""
    here, there = await start(agent_networks=NETWORKS)

    async def second_time(turn: Turn) -> None:
        if len(remote.turns) > 1:
            await pay(turn)
            return
        await turn.start()
        await turn.updater.reject(turn.updater.new_agent_message([new_text_part("not now")]))

    async with a2a_agent(second_time) as remote, Worker(there, kinds=["done", "last"]) as worker:
        await register(here, TYPES, called(remote.url))
        definition = [
            once("done"), step("asks", kind=StepKind.AGENT, target="payments", input=ASKED, retry=ONCE),
            once("last", "done", "asks", input="${steps.asks.output.artifacts[0].payload}"),
        ]  # fmt: skip
        define(Roles(here, there), *definition)
        run_id = await begun(here)
        await worker.complete(await worker.take())
        failed = await ended(there, run_id)
        assert (failed.status, failed.error_code) == (RunStatus.FAILED, "AGENT_REJECTED")
        assert "the agent rejected the task: not now" in failed.error_message
        await there.run_operations.retry(ROOT, run_id, "", "", None)
        last = await worker.take()
        assert last.task.kind == "last"
        await worker.complete(last)
        assert (await ended(here, run_id)).status is RunStatus.COMPLETED
    first, second = remote.turns
    assert first.about["idempotency_token"] != second.about["idempotency_token"]
    page = await here.dead_letters.list(ROOT, DeadLetterQuery(), PageRequest())
    assert [task.kind for task in page.items if task.run_id == run_id] == []
    assert {task.status for task in page.items} <= {TaskStatus.FAILED}
    await check_all(database)
