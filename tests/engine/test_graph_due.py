"""Runs that are due to be looked at: by two servers at once, while they change, and while a child cannot be begun; and
cancelled or retried with steps in every state (FV-19, WM-4)."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from tests.engine.database import Database
from tests.engine.servers import Roles, eventually
from tests.engine.test_graph_retries import ended, failing, once, statuses
from tests.engine.test_graph_runs import adding, define, define_child, step
from tests.engine.workers import Worker, done
from tests.engine.world import ROOT, check_all, kinds_of

from millstream.application.engine.commands import Command
from millstream.application.engine.graph_commands import StartGraph
from millstream.application.workflow_runs import NewRun
from millstream.domain.errors import Unavailable
from millstream.domain.runs import RunStatus
from millstream.domain.struct_wire import decode_value, encode_value
from millstream.domain.workflows import OnFailure, StepKind
from millstream.wiring import Service


@contextlib.asynccontextmanager
async def unattended(*services: Service) -> AsyncIterator[None]:
    """Nobody looks at runs that are due, for the length of the block."""
    usual = [service.advancing._asked for service in services]
    for service in services:
        # Whoever waits for the usual one is not woken.
        service.advancing._asked = asyncio.Event()
    try:
        yield
    finally:
        for service, asked in zip(services, usual, strict=True):
            service.advancing._asked = asked
            asked.set()


async def begun(service: Service) -> str:
    """A run that was just begun."""
    return (await service.workflow_runs.execute(ROOT, NewRun("w", input=encode_value(7)), None)).run.id


async def tasks_of(database: Database, run_id: str) -> Counter[tuple[int, int]]:
    """How many tasks each step, and item, has."""
    rows = await database.rows(f"SELECT step, item FROM task WHERE run_id = '{run_id}'")
    return Counter((row["step"], row["item"]) for row in rows)


async def test_two_servers_that_look_at_a_run_at_once_advance_it_once(spread: Roles, database: Database) -> None:
    """Engine-rules 2: both have decided by the time that the first of them commits."""
    both = (spread.publisher, spread.worker)
    define_child(spread, step("leaf"))
    each = step("one", input="${item}")
    define(
        spread, step("a"), step("b"), step("join", "a", "b", input=("${steps.a.output}", "${steps.b.output}")),
        step("all", "a", "b", kind=StepKind.MAP, over="[1, 2, 3]", each=each, width=2),
        step("sub", "a", "b", kind=StepKind.WORKFLOW, target="child"),
    )  # fmt: skip
    async with Worker(spread.worker, kinds=["a", "b", "join", "one", "leaf"]) as worker:
        run_id = await begun(spread.publisher)
        first = await worker.take_many(2)
        async with unattended(*both):
            await worker.report(completions=[done(lease, output=encode_value(1)) for lease in first])
            for _ in range(2):
                # The second time for the child.
                for service in both:
                    service.engine.cache.clear()
                found = [await service.advancing._commands(run_id) for service in both]
                assert all(found)
                await asyncio.gather(
                    *(service.engine.submit_all(each, urgent=True) for service, each in zip(both, found, strict=True))
                )
            assert await tasks_of(database, run_id) == {
                (1, 0): 1, (2, 0): 1, (3, 0): 1, (4, 1): 1, (4, 2): 1, (5, 0): 1,
            }  # fmt: skip
        for _ in range(5):
            lease = await worker.take()
            await worker.complete(lease, output=encode_value(lease.task.kind))
        assert (await ended(spread.publisher, run_id)).status is RunStatus.COMPLETED
        assert Counter(lease.task.kind for lease in worker.seen) == {"a": 1, "b": 1, "join": 1, "one": 3, "leaf": 1}
    await check_all(database)


async def test_a_step_that_ends_while_its_run_is_looked_at_is_not_decided_without_it(
    spread: Roles, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is decided is decided of the run as it stood when what its steps made was read."""
    define(
        spread, step("a"), step("b"), step("join", "a", "b", input=("${steps.a.output}", "${steps.b.output}")),
    )  # fmt: skip
    async with Worker(spread.worker, kinds=["a", "b", "join"]) as worker:
        run_id = await begun(spread.publisher)
        leases = {lease.task.kind: lease for lease in await worker.take_many(2)}
        services = (spread.publisher, spread.worker)
        async with unattended(*services):
            for service in services:
                service.advancing._values.clear()
            await worker.complete(leases["a"], output=encode_value("a"))
            for service in services:
                reads, step_ends = service.advancing._reads, service.advancing._reads.step_ends

                async def late(run: Any, step_ends: Any = step_ends) -> Any:
                    found = await step_ends(run)
                    await worker.report(completions=(done(leases["b"], output=encode_value("b")),))
                    return found

                monkeypatch.setattr(reads, "step_ends", late)
            found = [await service.advancing._commands(run_id) for service in services]
            monkeypatch.undo()
            for service, commands in zip(services, found, strict=True):
                await service.engine.submit_all(commands, urgent=True)
                service.advancing.look({run_id})
        last = await worker.take()
        assert decode_value(last.task.input) == ["a", "b"]
        await worker.complete(last)
        assert (await ended(spread.publisher, run_id)).status is RunStatus.COMPLETED
    await check_all(database)


async def test_a_child_that_cannot_be_stored_now_is_begun_later(
    spread: Roles, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run stays due until it is there."""
    define_child(spread, step("leaf"))
    define(spread, step("sub", kind=StepKind.WORKFLOW, target="child"))
    failures = 0
    for service in (spread.publisher, spread.worker):

        async def refusing(commands: Sequence[Command], *, submit: Any = service.engine.submit_all, **more: Any) -> Any:
            nonlocal failures
            children = [each for each in commands if isinstance(each, StartGraph) and each.parent_id]
            if not children or failures == 2:
                return await submit(commands, **more)
            failures += 1
            rest = iter(await submit([each for each in commands if each not in children], **more))
            return [Unavailable("not now") if each in children else next(rest) for each in commands]

        monkeypatch.setattr(service.engine, "submit_all", refusing)
    async with Worker(spread.worker, kinds=["leaf"], handler=adding):
        run_id = await begun(spread.publisher)

        async def over() -> bool:
            await spread.publisher.loops.poll()
            await spread.worker.loops.poll()
            return (await spread.publisher.runs.get(ROOT, run_id)).finished_us > 0

        await eventually(over)
        assert (await spread.publisher.runs.get(ROOT, run_id)).status is RunStatus.COMPLETED
    assert failures == 2
    await check_all(database)


async def test_a_retry_begins_what_was_cancelled_with_the_run(spread: Roles, database: Database) -> None:
    """WM-4: a step that waited when another failed, though its own failure would be tolerated; one that failed so is
    not begun again."""
    define(
        spread, once("good"), once("bad"), once("tried", on_failure=OnFailure.CONTINUE),
        once("waits", on_failure=OnFailure.CONTINUE), once("last", "good", "bad", "tried", "waits"),
    )  # fmt: skip
    async with Worker(spread.worker, kinds=["good", "bad", "tried"]) as worker:
        run_id = await begun(spread.publisher)
        leases = {lease.task.kind: lease for lease in await worker.take_many(3)}
        await worker.complete(leases["good"])
        await worker.fail(leases["tried"], retryable=False)
        await worker.fail(leases["bad"], retryable=False)
        assert (await ended(spread.publisher, run_id)).status is RunStatus.FAILED
    assert await statuses(spread.worker, run_id) == {
        "good": "COMPLETED", "bad": "FAILED", "tried": "FAILED", "waits": "CANCELLED", "last": "CANCELLED",
    }  # fmt: skip
    everything = ["good", "bad", "tried", "waits", "last"]
    async with Worker(spread.worker, kinds=everything, handler=failing(set())) as worker:
        await spread.worker.run_operations.retry(ROOT, run_id, "", "", None)
        assert (await ended(spread.publisher, run_id)).status is RunStatus.COMPLETED
        assert sorted(lease.task.kind for lease in worker.seen) == ["bad", "last", "waits"]
    await check_all(database)


async def test_a_run_with_steps_in_every_state_is_cancelled(spread: Roles, database: Database) -> None:
    """WM-4: finished and failed ones stay so, waiting ones end at once, running ones when their workers stop; nothing
    begins any more, whatever a worker still completes."""
    define(
        spread, once("done"), once("runs"), once("ends"), once("waits"), once("failed", on_failure=OnFailure.CONTINUE),
        step("nap", kind=StepKind.SLEEP, sleep=3600.0), once("next", "ends"), once("last", "done", "runs", "waits"),
    )  # fmt: skip
    async with Worker(spread.worker, kinds=["done", "runs", "ends", "failed", "next", "last"]) as worker:
        run_id = await begun(spread.publisher)
        leases = {lease.task.kind: lease for lease in await worker.take_many(4)}
        await worker.complete(leases["done"])
        await worker.fail(leases["failed"], retryable=False)
        await spread.publisher.runs.cancel(ROOT, run_id, "enough", None)
        assert {(await worker.told()).task_id for _ in range(2)} == {leases[each].task.id for each in ("runs", "ends")}
        await worker.complete(leases["ends"])
        await worker.fail(leases["runs"], "STOPPED")
        assert (await ended(spread.publisher, run_id)).status is RunStatus.CANCELLED
        assert worker.leases.empty()
    kinds = await kinds_of(spread.publisher, run_id)
    assert "TASK_CREATED" not in kinds[kinds.index("RUN_CANCELLING") :]
    assert await database.rows(f"SELECT id FROM run WHERE id = '{run_id}' AND open_tasks <> 0") == []
    assert len(await tasks_of(database, run_id)) == 6
    await check_all(database)
