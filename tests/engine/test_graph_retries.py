"""Runs of workflows are retried, repeated, paused and bounded in time as others are."""

import asyncio
from typing import Any

import pytest
from tests.engine.database import Database
from tests.engine.servers import Roles, Start, eventually, killed
from tests.engine.test_graph_runs import adding, define, step
from tests.engine.test_run_retries import ONCE
from tests.engine.workers import Handler, Worker, done, failed
from tests.engine.world import ROOT, check_all, data_of, events_of, kinds_of, seconds

from millstream.application.paging import PageRequest
from millstream.application.views.dead_letters import DeadLetterQuery
from millstream.application.views.leases import Lease
from millstream.application.views.runs import ManyRuns, RunQuery
from millstream.application.workflow_runs import NewRun
from millstream.domain.errors import Conflict, ValidationFailed
from millstream.domain.runs import EventType, Run, RunStatus
from millstream.domain.struct_wire import Json, decode_value, encode_value
from millstream.domain.workflows import OnFailure, StepKind
from millstream.wiring import Service


def failing(bad: set[str]) -> Handler:
    """Fails the kinds that are bad, and answers with what it was given otherwise."""

    def handle(lease: Lease) -> Any:
        return failed(lease, "DECLINED") if lease.task.kind in bad else adding(lease)

    return handle


async def ended(service: Service, run_id: str) -> Run:
    """The run once it has ended."""

    async def over() -> bool:
        return (await service.runs.get(ROOT, run_id)).finished_us > 0

    await eventually(over)
    return await service.runs.get(ROOT, run_id)


async def execute(service: Service, input_: Json = None) -> Run:
    """Run it until it ends."""
    new = NewRun("w", input=encode_value(input_))
    return (await service.workflow_runs.execute_sync(ROOT, new, None, 5)).run


async def statuses(service: Service, run_id: str) -> dict[str, str]:
    """Where each step stands."""
    page = await service.steps.list(ROOT, run_id, PageRequest())
    return {each.id: each.status for each in page.items}


def once(id_: str, *needs: str, **fields: Any) -> Any:
    """A step that is tried once."""
    return step(id_, *needs, retry=ONCE, **fields)


async def test_a_retry_keeps_what_is_done_and_goes_on_with_what_failed(spread: Roles, database: Database) -> None:
    """WM-4, FV-9: finished steps stay, the failed one and what needs it run, with what those made."""
    define(
        spread, once("a", input={"n": "${input}"}), once("side"),
        once("b", "a", input="${steps.a.output.given.n + 1}"), once("c", "b", input="${steps.b.output.given}"),
        output="${steps.c.output.given}",
    )  # fmt: skip
    bad = {"b"}
    async with Worker(spread.worker, kinds=["a", "b", "c", "side"], handler=failing(bad)) as worker:
        run = await execute(spread.publisher, 1)
        assert (run.status, run.error_code) == (RunStatus.FAILED, "DECLINED")
        before = len(worker.seen)
        bad.clear()
        retried, _ = await spread.publisher.run_operations.retry(ROOT, run.id, "mended", "", None)
        assert (retried.status, retried.redone, retried.error_code) == (RunStatus.RUNNING, 1, "")
        run = await ended(spread.publisher, run.id)
        assert run.status is RunStatus.COMPLETED
        assert [lease.task.kind for lease in worker.seen[before:]] == ["b", "c"]
    assert decode_value((await spread.worker.runs.view(ROOT, run.id)).output) == 2.0
    assert set((await statuses(spread.worker, run.id)).values()) == {"COMPLETED"}
    asked = [each for each in await events_of(spread.worker, run.id) if each.type is EventType.RETRY_REQUESTED]
    assert [data_of(each) for each in asked] == [{"note": "mended", "by": "root", "retry_attempt": 1, "from_step": ""}]
    await check_all(database)


async def test_a_retry_begins_again_with_a_step(spread: Roles, database: Database) -> None:
    """WM-4: from_step runs again, and all that needs it, though it was done; an unknown one is refused."""
    define(spread, once("a"), once("b", "a"), once("c", "b"), once("other"))
    bad = {"c"}
    async with Worker(spread.worker, kinds=["a", "b", "c", "other"], handler=failing(bad)) as worker:
        run = await execute(spread.publisher)
        with pytest.raises(ValidationFailed, match="'z'"):
            await spread.publisher.run_operations.retry(ROOT, run.id, "", "z", None)
        assert (await spread.worker.runs.get(ROOT, run.id)).status is RunStatus.FAILED
        before = len(worker.seen)
        bad.clear()
        await spread.worker.run_operations.retry(ROOT, run.id, "", "b", None)
        run = await ended(spread.publisher, run.id)
        assert run.status is RunStatus.COMPLETED
        assert [lease.task.kind for lease in worker.seen[before:]] == ["b", "c"]
    with pytest.raises(Conflict, match="COMPLETED"):
        await spread.publisher.run_operations.retry(ROOT, run.id, "", "b", None)
    await check_all(database)


@pytest.mark.parametrize("kind", [StepKind.TASK, StepKind.MAP])
async def test_a_retry_that_fails_says_why(roles: Roles, database: Database, kind: StepKind) -> None:
    """WM-4, WM-5: what went wrong this time, not what did before; of a map, the first item that did this time."""
    if kind is StepKind.MAP:
        define(roles, once("all", kind=kind, over="[1, 2, 3]", each=once("a"), width=3))
    else:
        define(roles, once("a"))
    async with Worker(roles.worker, kinds=["a"]) as worker:
        running = asyncio.create_task(execute(roles.publisher))
        leases = await worker.take_many(3 if kind is StepKind.MAP else 1)
        await worker.report(failures=[failed(each, "DECLINED") for each in leases])
        run = await running
        assert (run.status, run.error_code) == (RunStatus.FAILED, "DECLINED")
        await roles.publisher.run_operations.retry(ROOT, run.id, "", "", None)
        again = await worker.take_many(len(leases))
        await worker.report(
            completions=[done(each) for each in again[:-2]],
            failures=[failed(each, code) for each, code in zip(again[-2:], ("NO_FUNDS", "LATER"), strict=False)],
        )
        run = await ended(roles.publisher, run.id)
    said = "NO_FUNDS it is"
    step_id = "all" if kind is StepKind.MAP else "a"
    assert (run.status, run.error_code, run.error_message) == (RunStatus.FAILED, "NO_FUNDS", f"step {step_id}: {said}")
    await check_all(database)


async def test_steps_in_every_state_are_gone_on_with(start: Start, database: Database) -> None:
    """FV-19: a run that took too long with a finished, a running, a waiting and a failed step; the server that ended it
    is killed; the retry through the other has its whole time."""
    here, there = await start(cancel_grace_s=30)
    roles = Roles(here, there)
    define(
        roles, once("done"), once("runs"), once("waits"), once("fails", on_failure=OnFailure.CONTINUE),
        once("last", "done", "runs", "waits", "fails"), timeout_us=seconds(60),
    )  # fmt: skip
    async with Worker(there, kinds=["done", "runs", "fails", "last"]) as worker:
        run = (await here.workflow_runs.execute(ROOT, NewRun("w"), None)).run
        assert run.timeout_us == seconds(60)
        leases = {lease.task.kind: lease for lease in await worker.take_many(3)}
        await worker.complete(leases["done"])
        await worker.fail(leases["fails"])
        await database.pass_time(61)
        await here.loops.poll()
        assert (await worker.told()).task_id == leases["runs"].task.id
        await worker.fail(leases["runs"], "STOPPED")
        run = await ended(there, run.id)
        assert (run.status, run.error_code) == (RunStatus.FAILED, "RUN_TIMEOUT")
        await killed(here)
        retried, _ = await there.run_operations.retry(ROOT, run.id, "", "", None)
        assert retried.deadline_us == retried.updated_us + seconds(60)
        async with Worker(there, kinds=["waits"], handler=adding):
            again = await worker.take()
            assert again.task.kind == "runs"
            await worker.complete(again)
            last = await worker.take()
            assert last.task.kind == "last"
            await worker.complete(last)
            run = await ended(there, run.id)
    assert run.status is RunStatus.COMPLETED
    assert await statuses(there, run.id) == {
        "done": "COMPLETED", "runs": "COMPLETED", "waits": "COMPLETED", "fails": "FAILED", "last": "COMPLETED",
    }  # fmt: skip
    await check_all(database)


async def test_a_workflows_run_does_not_outlive_its_time(spread: Roles, database: Database) -> None:
    """FV-19: while it sleeps; the sleep is over with it."""
    define(spread, step("nap", kind=StepKind.SLEEP, sleep=3600.0), timeout_us=seconds(60))
    run = (await spread.publisher.workflow_runs.execute(ROOT, NewRun("w"), None)).run
    await database.pass_time(61)
    await spread.worker.loops.poll()
    run = await ended(spread.publisher, run.id)
    assert (run.status, run.error_code, run.open_tasks) == (RunStatus.FAILED, "RUN_TIMEOUT", 0)
    assert (await kinds_of(spread.publisher, run.id))[-1] == "RUN_FAILED"
    await check_all(database)


async def test_a_paused_workflow_begins_no_step(spread: Roles, database: Database) -> None:
    """FV-5: what follows from the step that ran is held; it goes on when it is resumed."""
    define(spread, once("a"), once("b", "a"))
    async with Worker(spread.worker, kinds=["a", "b"]) as worker:
        run = (await spread.publisher.workflow_runs.execute(ROOT, NewRun("w"), None)).run
        first = await worker.take()
        await spread.publisher.run_operations.pause(ROOT, run.id, "", None)
        await worker.complete(first)
        await spread.worker.loops.poll()
        await spread.publisher.loops.poll()

        async def is_held() -> bool:
            return (await statuses(spread.worker, run.id)) == {"a": "COMPLETED", "b": "PENDING"}

        await eventually(is_held)
        assert worker.leases.empty()
        await spread.publisher.run_operations.resume(ROOT, run.id, None)
        await worker.complete(await worker.take())
        assert (await ended(spread.publisher, run.id)).status is RunStatus.COMPLETED
    await check_all(database)


async def test_a_workflows_run_is_repeated(spread: Roles, database: Database) -> None:
    """FV-9: with the same input and labels, in the same version or the latest."""
    define(spread, once("a", input="${input.n}"), output="${steps.a.output.given}", timeout_us=seconds(60))
    async with Worker(spread.worker, kinds=["a"], handler=adding):
        new = NewRun("w", input=encode_value({"n": 7}), labels='{"env":"prod"}')
        first = (await spread.publisher.workflow_runs.execute_sync(ROOT, new, None, 5)).run
        for version in ("", "same", "latest"):
            run, _ = await spread.publisher.run_operations.rerun(ROOT, first.id, version, None)
            assert (run.rerun_of, run.labels, run.workflow_version, run.timeout_us) == (
                first.id, '{"env":"prod"}', "1", seconds(60),
            )  # fmt: skip
            run = await ended(spread.worker, run.id)
            assert decode_value((await spread.worker.runs.view(ROOT, run.id)).output) == 7.0
    await check_all(database)


async def test_failed_runs_of_a_workflow_are_retried_together(spread: Roles, database: Database) -> None:
    """FV-9: by the workflow's name."""
    define(spread, once("a"))
    bad = {"a"}
    async with Worker(spread.worker, kinds=["a"], handler=failing(bad)):
        runs = [await execute(spread.publisher) for _ in range(3)]
        assert {run.status for run in runs} == {RunStatus.FAILED}
        bad.clear()
        done = await spread.worker.run_operations.retry_many(ROOT, ManyRuns(query=RunQuery(workflow="w")), None)
        assert [status for _, status in done.outcomes] == ["accepted"] * 3
        assert {(await ended(spread.publisher, run.id)).status for run in runs} == {RunStatus.COMPLETED}
    await check_all(database)


async def test_what_a_retry_replaces_is_no_dead_letter_any_more(spread: Roles, database: Database) -> None:
    """WM-4: the step has another task then; what failed and was gone on from stays one."""
    define(spread, once("a"), once("gone_on", on_failure=OnFailure.CONTINUE), once("b", "a"))
    bad = {"b", "gone_on"}

    async def dead() -> list[str]:
        page = await spread.worker.dead_letters.list(ROOT, DeadLetterQuery(), PageRequest())
        return sorted(task.kind for task in page.items)

    async with Worker(spread.worker, kinds=["a", "b", "gone_on"], handler=failing(bad)):
        run = await execute(spread.publisher)
        assert (run.status, await dead()) == (RunStatus.FAILED, ["b", "gone_on"])
        await spread.publisher.run_operations.retry(ROOT, run.id, "", "", None)
        assert (await ended(spread.publisher, run.id)).status is RunStatus.FAILED
        assert await dead() == ["b", "gone_on"]
        bad.clear()
        await spread.publisher.run_operations.retry(ROOT, run.id, "", "", None)
        assert (await ended(spread.publisher, run.id)).status is RunStatus.COMPLETED
        assert await dead() == ["gone_on"]
    await check_all(database)
