"""Progress of tasks: in the task at once, among the events now and then, and of the whole run."""

import asyncio
from typing import Any

import pytest
from tests.engine.database import Database
from tests.engine.servers import Roles, eventually
from tests.engine.test_graph_runs import define, know, step
from tests.engine.test_run_watching import PATIENCE_S, Watch
from tests.engine.workers import Worker
from tests.engine.world import AT_ONCE, ROOT, check_all, data_of, events_of

from millstream.application import progress as progress_module
from millstream.application.paging import PageRequest
from millstream.application.views.runs import RunQuery
from millstream.application.views.tasks import NewTask, TaskQuery
from millstream.application.workflow_runs import NewRun
from millstream.domain.progress import share_done
from millstream.domain.runs import EventType
from millstream.domain.workflows import Definition, StepKind
from millstream.wiring import Service


async def created(service: Service, kind: str = "long") -> str:
    """A standalone task; its run."""
    return (await service.tasks.create(ROOT, NewTask(kind, retry=AT_ONCE), None)).task.run_id


async def noted(service: Service, run_id: str) -> list[dict[str, Any]]:
    """What events tell of progress."""
    return [data_of(event) for event in await events_of(service, run_id) if event.type is EventType.TASK_PROGRESS]


async def test_progress_is_an_event(roles: Roles, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """FV-13: told to who watches; of reports that follow each other fast the latest."""
    monkeypatch.setattr(progress_module, "EVERY_S", 0.2)
    run_id = await created(roles.publisher)
    watch = Watch(run_id, tasks=True)
    async with Worker(roles.worker, kinds=["long"]) as worker, watch.at(roles.publisher) as more:
        lease = await worker.take()
        await worker.progress(lease, 0.25, "a quarter")
        await more(3)
        for percent in range(26, 76):
            await worker.progress(lease, percent / 100, "and on")
        async with asyncio.timeout(PATIENCE_S):
            while '"fraction":0.75' not in watch.sent[-1].event.data:  # type: ignore[union-attr]
                await more(1)
        await worker.complete(lease)
        await more(1)
    assert watch.names[:3] == ["TASK_CREATED", "TASK_STARTED", "TASK_PROGRESS"]
    assert watch.names[-1] == "TASK_COMPLETED"
    found = await noted(roles.publisher, run_id)
    assert found[0] == {"fraction": 0.25, "message": "a quarter"}
    assert found[-1] == {"fraction": 0.75, "message": "and on"}
    assert len(found) < 20
    await check_all(database)


async def test_little_progress_is_no_event(spread: Roles, monkeypatch: pytest.MonkeyPatch) -> None:
    """Less than a hundredth, and another message within ten seconds: the task has them."""
    monkeypatch.setattr(progress_module, "EVERY_S", 0.0)
    run_id = await created(spread.publisher)
    async with Worker(spread.worker, kinds=["long"]) as worker:
        lease = await worker.take()
        for fraction, message in ((0.5, "half"), (0.501, "half"), (0.505, "other"), (0.6, "more")):
            await worker.progress(lease, fraction, message)

            async def taken() -> bool:
                return not spread.worker.core.notes._waiting

            await eventually(taken)
        await eventually(lambda: _count(spread.worker, run_id, 2))
        await worker.complete(lease)
    assert [each["fraction"] for each in await noted(spread.worker, run_id)] == [0.5, 0.6]


async def _count(service: Service, run_id: str, count: int) -> bool:
    # Another may come between two readings, so nothing is held against the run's own count here.
    events, _ = await service.runs.events(ROOT, run_id, 0, 10_000)
    return sum(event.type is EventType.TASK_PROGRESS for event in events) == count


async def test_progress_that_comes_too_late_is_nothing(spread: Roles, database: Database) -> None:
    """An attempt that is over has no more events."""
    run_id = await created(spread.publisher)
    async with Worker(spread.worker, kinds=["long"]) as worker:
        lease = await worker.take()
        await worker.complete(lease)
        result = await worker.progress(lease, 0.5)
        assert result.error is not None
    assert await noted(spread.publisher, run_id) == []
    await check_all(database)


async def test_progress_is_rolled_up_to_the_run(roles: Roles) -> None:
    """Of a cascade and a standalone task by tasks, of a workflow by steps; one when all is done."""
    alone = await created(roles.publisher)
    define(roles, step("a"), step("b"), step("c", "a", "b"), step("d", "c"))
    run_id = (await roles.publisher.workflow_runs.execute(ROOT, NewRun("w"), None)).run.id

    async def shares() -> dict[str, float]:
        page = await roles.publisher.runs.list(ROOT, RunQuery(), PageRequest(page_size=10))
        listed = {run.id: share_done(run) for run in page.items}
        for each, share in listed.items():
            assert share_done((await roles.publisher.runs.view(ROOT, each)).run) == share
        return listed

    async def words() -> str:
        return (await roles.publisher.runs.view(ROOT, run_id)).run.running_words

    async with Worker(roles.worker, kinds=["a", "b", "long"]) as worker:
        leases = {lease.task.kind: lease for lease in await worker.take_many(3)}
        assert await shares() == {alone: 0.0, run_id: 0.0}
        await worker.progress(leases["long"], 0.5)
        await worker.progress(leases["a"], 0.25, "of a")
        assert await words() == "of a"
        await worker.progress(leases["b"], 0.75, "of b")
        assert await shares() == {alone: 0.5, run_id: 0.25}
        assert await words() in ("of a", "of b")
        await worker.complete(leases["a"])
        assert await words() == "of b"
        await worker.complete(leases["long"])
        assert (await shares()) == {alone: 1.0, run_id: 1.75 / 4}
        await worker.complete(leases["b"])
        await eventually(lambda: _open(roles.publisher, run_id, 1))
        assert (await shares())[run_id] == 0.5
        await roles.publisher.runs.cancel(ROOT, run_id, "", None)
        # What waited for the step that was cancelled is never done.
        assert (await shares())[run_id] == 0.75


@pytest.mark.parametrize("fraction", [0.4, 0.1, 0.123456, 1.0])
async def test_progress_is_shown_as_it_was_told(roles: Roles, fraction: float) -> None:
    """FV-13: in the task, wherever it is read, and in its run."""
    run_id = await created(roles.publisher)
    reads = roles.publisher.runs
    async with Worker(roles.worker, kinds=["long"]) as worker:
        lease = await worker.take()
        await worker.progress(lease, fraction)
        view = await roles.publisher.tasks.get(ROOT, lease.task.id)
        listed = (await reads.tasks(ROOT, TaskQuery(run_id=run_id), PageRequest())).items
        assert [view.task.progress, *(each.progress for each in listed)] == [fraction, fraction]
        assert share_done((await reads.view(ROOT, run_id)).run) == fraction


async def test_shares_of_several_tasks_are_summed_as_they_were_told(roles: Roles) -> None:
    """FV-13"""
    define(roles, step("a"), step("b"))
    run_id = (await roles.publisher.workflow_runs.execute(ROOT, NewRun("w"), None)).run.id
    async with Worker(roles.worker, kinds=["a", "b"]) as worker:
        for lease, fraction in zip(await worker.take_many(2), (0.4, 0.1), strict=True):
            await worker.progress(lease, fraction)
        assert share_done((await roles.publisher.runs.view(ROOT, run_id)).run) == 0.25


async def test_of_a_childs_run_its_end_alone_counts_for_its_parent(roles: Roles) -> None:
    """FV-13: what a child's tasks report is in its own progress; the parent's step is done when it has ended."""
    know(roles, Definition("child", (step("inner"),), version=1))
    define(roles, step("a", kind=StepKind.WORKFLOW, target="child"), step("b", "a"))
    run_id = (await roles.publisher.workflow_runs.execute(ROOT, NewRun("w"), None)).run.id

    async def share(of: str) -> float:
        return share_done((await roles.publisher.runs.view(ROOT, of)).run)

    async with Worker(roles.worker, kinds=["inner", "b"]) as worker:
        lease = await worker.take()
        await worker.progress(lease, 0.4)
        assert (await share(lease.task.run_id), await share(run_id)) == (0.4, 0.0)
        await worker.complete(lease)
        last = await worker.take()
        assert (await share(lease.task.run_id), await share(run_id)) == (1.0, 0.5)
        await worker.complete(last)


async def _open(service: Service, run_id: str, count: int) -> bool:
    found = (await service.runs.view(ROOT, run_id)).run
    return found.open_tasks == count and found.task_count == 3
