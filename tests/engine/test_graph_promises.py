"""Promises that steps of a workflow wait for: awaited while their run goes on, rejected, timed out, tried again."""

import asyncio
from typing import Any

import pytest
from tests.engine.database import Database
from tests.engine.servers import Roles, Start, eventually
from tests.engine.test_graph_runs import define, execute, output_of, step
from tests.engine.workers import Worker
from tests.engine.world import ROOT, check_all, seconds

from millstream.application.views.promises import PromiseRef, PromiseView
from millstream.application.workflow_runs import NewRun
from millstream.domain.errors import NotFound
from millstream.domain.promises import NewPromise, PromiseState, Rejection, Resolution, state_of
from millstream.domain.retry import Timeouts
from millstream.domain.runs import RunStatus, Task
from millstream.domain.struct_wire import encode_value
from millstream.domain.workflows import Step, StepKind
from millstream.wiring import Service

BY_KEY = PromiseRef(key="order-7")
YES = Resolution(encode_value("yes"))


def asking(**fields: Any) -> Step:
    """A step that waits for an answer about an order."""
    return step("ok", kind=StepKind.WAIT_PROMISE, target="approval", key="${'order-' + string(input.n)}", **fields)


async def begun(service: Service) -> str:
    """A run of the workflow."""
    return (await service.workflow_runs.execute(ROOT, NewRun("w", input=encode_value({"n": 7})), None)).run.id


async def open_promise(service: Service, but: str = "") -> Task:
    """The open promise that a step waits for, once there is one."""
    found: list[Task] = []

    async def is_there() -> bool:
        try:
            task = (await service.promises.get(ROOT, BY_KEY)).task
        except NotFound:
            return False
        if task.open and task.id != but:
            found.append(task)
        return bool(found)

    await eventually(is_there)
    return found[0]


async def waits_at(service: Service, task: Task) -> "asyncio.Task[PromiseView]":
    """A call at a server that waits for the promise by now."""
    waiting = asyncio.create_task(service.promises.wait(ROOT, PromiseRef(task.id), 30, fail_on_timeout=True))

    async def noted() -> bool:
        return service.engine.lane_id in (await service.runs.get(ROOT, task.run_id)).waiters

    await eventually(noted)
    return waiting


async def status(service: Service, run_id: str) -> tuple[RunStatus, str]:
    """Where a run stands, and the code of its error."""
    run = await service.runs.get(ROOT, run_id)
    return run.status, run.error_code


async def ends(service: Service, run_id: str, *expected: object) -> None:
    """The run comes to stand there."""

    async def is_so() -> bool:
        return (await status(service, run_id))[: len(expected)] == expected

    await eventually(is_so)


async def test_a_call_waits_for_a_promise_and_not_for_its_run(start: Start, database: Database) -> None:
    """FV-17: the wake-up comes with the promise's end, at any server; here the polls are off, and the run goes on."""
    first, second = await start()
    define(Roles(first, second), asking(), step("work", "ok"))
    async with Worker(first, kinds=["work"]) as worker:
        run_id = await begun(first)
        task = await open_promise(first)
        for service in (first, second):
            next(each for each in service._background if each.get_name() == "loops").cancel()
        here, there = await waits_at(first, task), await waits_at(second, task)
        await second.promises.settle(ROOT, BY_KEY, YES, None)
        for waiting in (here, there):
            assert state_of((await asyncio.wait_for(waiting, 5)).task) is PromiseState.RESOLVED
        lease = await worker.take()
        assert (await status(first, run_id))[0] is RunStatus.RUNNING
        await worker.complete(lease)
    await ends(first, run_id, RunStatus.COMPLETED)
    await check_all(database)


async def test_what_a_promise_is_rejected_with_fails_its_step(spread: Roles, database: Database) -> None:
    """FV-17: and the run; another run may have the key then."""
    define(spread, asking())
    run_id = await begun(spread.publisher)
    await open_promise(spread.worker)
    await spread.worker.promises.settle(ROOT, BY_KEY, Rejection("DECLINED", "no"), None)
    await ends(spread.publisher, run_id, RunStatus.FAILED)
    running = asyncio.create_task(execute(spread.publisher, {"n": 7}))
    await open_promise(spread.worker)
    await spread.worker.promises.settle(ROOT, BY_KEY, YES, None)
    assert output_of(await running) == "yes"
    await check_all(database)


async def test_a_step_whose_key_is_taken_fails_and_the_promise_stays(spread: Roles, database: Database) -> None:
    """FV-17: unique among the open ones, whoever made them."""
    define(spread, asking())
    mine = (await spread.worker.promises.create(ROOT, NewPromise("mine", "order-7"), None)).task
    run_id = await begun(spread.publisher)
    await ends(spread.publisher, run_id, RunStatus.FAILED, "CONFLICT")
    run = await spread.publisher.runs.get(ROOT, run_id)
    assert f"the key 'order-7' is that of promise {mine.id}" in run.error_message
    assert state_of((await spread.worker.promises.get(ROOT, BY_KEY)).task) is PromiseState.PENDING
    await check_all(database)


async def test_a_step_fails_when_the_time_of_its_promise_has_passed(spread: Roles, database: Database) -> None:
    """FV-17: PROMISE_TIMEOUT, by the step's timeout."""
    define(spread, asking(timeouts=Timeouts(schedule_to_start_us=seconds(3600), start_to_close_us=0)))
    run_id = await begun(spread.publisher)
    task = await open_promise(spread.worker)
    await database.pass_time(3601)
    await ends(spread.publisher, run_id, RunStatus.FAILED)
    view = await spread.worker.promises.get(ROOT, PromiseRef(task.id))
    assert view.task.error_code == "PROMISE_TIMEOUT"
    await check_all(database)


async def test_a_retry_asks_anew_and_the_first_answer_stays(spread: Roles, database: Database) -> None:
    """FV-17, FV-9: a promise is settled once; the step of a run that is retried makes another of its key."""
    define(spread, asking())
    run_id = await begun(spread.publisher)
    first = await open_promise(spread.worker)
    await spread.worker.promises.settle(ROOT, BY_KEY, Rejection("DECLINED", "no"), None)
    await ends(spread.publisher, run_id, RunStatus.FAILED)
    await spread.worker.run_operations.retry(ROOT, run_id, "", "", None)
    second = await open_promise(spread.publisher, but=first.id)
    assert second.run_id == run_id
    assert state_of((await spread.worker.promises.get(ROOT, PromiseRef(first.id))).task) is PromiseState.REJECTED
    await spread.worker.promises.settle(ROOT, BY_KEY, YES, None)
    await ends(spread.publisher, run_id, RunStatus.COMPLETED)
    await check_all(database)


@pytest.mark.parametrize("how", ["the run", "the promise"])
async def test_a_cancelled_promise_of_a_step(spread: Roles, database: Database, how: str) -> None:
    """FV-17: with its run it ends at once; by itself it ends the step, and nothing hangs."""
    define(spread, asking())
    run_id = await begun(spread.publisher)
    task = await open_promise(spread.worker)
    if how == "the run":
        await spread.worker.runs.cancel(ROOT, run_id, "enough", None)
    else:
        await spread.worker.promises.cancel(ROOT, BY_KEY, "enough", None)

    async def ended() -> bool:
        return (await spread.publisher.runs.get(ROOT, run_id)).finished_us > 0

    await eventually(ended)
    assert state_of((await spread.publisher.promises.get(ROOT, PromiseRef(task.id))).task) is PromiseState.CANCELLED
    await check_all(database)
