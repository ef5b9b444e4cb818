"""What the code of runs says ahead, with the completion of a task, on two servers. (FV-18)"""

from typing import Any

import pytest
from tests.engine.database import Database
from tests.engine.servers import Roles
from tests.engine.test_code_runs import Coder, begin, done, ended, seen, task
from tests.engine.workers import Worker
from tests.engine.workers import done as completed
from tests.engine.world import ROOT, check_all

from millstream.application.views.code_runs import ActivationAnswer
from millstream.application.views.leases import Lease
from millstream.application.views.reports import ReportResult
from millstream.domain.code import CancelStep, CommandType, End, Given, Note, OpenPromise, StartTimer, What
from millstream.domain.errors import Conflict
from millstream.domain.runs import RunStatus
from millstream.domain.struct_wire import encode_value


def ahead(
    lease: Lease, token: int, number: int, *whats: What, end: End | None = None, run_id: str = ""
) -> ActivationAnswer:
    """What the code says to a task's end, by a copy of the run as of a token."""
    commands = [Given(number + index, 0, what) for index, what in enumerate(whats)]
    return ActivationAnswer(run_id or lease.task.run_id, token, 0, commands, end)


async def complete(worker: Coder, lease: Lease, output: Any, said: ActivationAnswer | None) -> ReportResult:
    """Complete a task, and say ahead what follows."""
    completion = completed(lease, output=encode_value(output))
    completion.ahead = said
    return (await worker.report(completions=(completion,)))[0]


async def history(roles: Roles, run_id: str) -> list[tuple[str, int, int]]:
    """What there is of a run's history: what each thing is, its number, and where it stands."""
    found = (await roles.publisher.code_runs.history(ROOT, run_id, 0, 0)).history
    return [
        (each.type.name, getattr(each, "number", 0), getattr(each, "after", 0) or getattr(each, "seq", 0))
        for each in found.items
    ]


async def begun(worker: Coder, roles: Roles, *whats: What) -> tuple[str, Lease, Lease]:
    """A run that waits for its first task; its id, its activation, the task."""
    run_id = await begin(roles.publisher)
    lease, _ = await worker.activation()
    await worker.answer(lease, *(whats or (task(given="a"),)))
    return run_id, lease, await worker.take()


async def test_what_is_said_ahead_is_stored_with_the_completion(roles: Roles, database: Database) -> None:
    """FV-18: two tasks and the end without an activation between, and the same history as with them."""
    async with Coder(roles.worker) as worker:
        run_id, lease, first = await begun(worker, roles)
        said = ahead(first, lease.attempt, 2, Note(CommandType.STATE, "paid", encode_value(True)), task(given="b"))
        assert (await complete(worker, first, "one", said)).error is None
        second = await worker.take()
        assert (second.activation, second.task.step) == (None, 3)
        said = ahead(second, lease.attempt + 1, 4, end=done("both"))
        assert (await complete(worker, second, "two", said)).error is None
        assert await ended(roles.publisher, run_id) == (RunStatus.COMPLETED, "both")
        assert worker.leases.empty(), "the code was never asked again"
        plain, _, first = await begun(worker, roles)
        await complete(worker, first, "one", None)
        lease, _ = await worker.activation()
        await worker.answer(lease, Note(CommandType.STATE, "paid", encode_value(True)), task(given="b"))
        await complete(worker, await worker.take(), "two", None)
        lease, _ = await worker.activation()
        await worker.answer(lease, end=done("both"))
        assert await ended(roles.publisher, plain) == (RunStatus.COMPLETED, "both")
    assert await history(roles, run_id) == await history(roles, plain)
    assert await roles.publisher.code_runs.state(ROOT, run_id) == {"paid": encode_value(True)}
    await check_all(database)


async def test_what_came_first_is_told_first(roles: Roles, database: Database) -> None:
    """FV-18: a signal between makes what was said ahead void: the code is asked, and told of both in their order."""
    async with Coder(roles.worker) as worker:
        run_id, lease, first = await begun(worker, roles)
        token = lease.attempt
        await roles.publisher.code_runs.signal(ROOT, run_id, "stop", encode_value(1), None)
        lease, told = await worker.activation()
        assert (await complete(worker, first, "one", ahead(first, token, 2, task(given="b")))).error is None
        assert told.token == token
        await worker.answer(lease)
        lease, told = await worker.activation()
        assert (seen(lease), told.token) == (["COMPLETED 1 one"], token + 1)
        await worker.answer(lease, end=done("stopped"))
        assert await ended(roles.publisher, run_id) == (RunStatus.COMPLETED, "stopped")
    await check_all(database)


VOID: dict[str, Any] = {
    "another token": lambda lease, token: ahead(lease, token + 1, 2, task()),
    "a number too high": lambda lease, token: ahead(lease, token, 3, task()),
    "a promise": lambda lease, token: ahead(lease, token, 2, OpenPromise("p", "", 0)),
    "a run that is not the task's": lambda lease, token: ahead(lease, token, 2, task(), run_id=lease.task.id),
    "too many commands": lambda lease, token: ahead(
        lease, token, 2, *[Note(CommandType.PATCH, str(n)) for n in range(60_000)]
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", VOID)
async def test_what_cannot_be_taken_is_asked_for_again(spread: Roles, case: str) -> None:
    """FV-18: the completion stands, whatever came with it."""
    async with Coder(spread.worker) as worker:
        run_id, lease, first = await begun(worker, spread)
        token = lease.attempt
        assert (await complete(worker, first, "one", VOID[case](first, token))).error is None
        lease, told = await worker.activation()
        assert (seen(lease), told.token, told.count) == (["COMPLETED 1 one"], token, 1)
        await worker.answer(lease, end=done())
        assert await ended(spread.publisher, run_id) == (RunStatus.COMPLETED, None)


async def test_only_the_worker_that_has_the_run_speaks_for_it(spread: Roles) -> None:
    """FV-18: another's copy, however old, is not believed, whatever token it names."""
    async with Coder(spread.worker, kinds=["nothing"]) as owner:
        run_id = await begin(spread.publisher)
        lease, _ = await owner.activation()
        async with Worker(spread.worker, kinds=["step"]) as other:
            await owner.answer(lease, task(given="a"))
            first = await other.take()
            completion = completed(first, output=encode_value("one"))
            completion.ahead = ahead(first, lease.attempt, 2, end=done("wrong"))
            assert (await other.report(completions=(completion,)))[0].error is None
            lease, _ = await owner.activation()
            assert seen(lease) == ["COMPLETED 1 one"]
            await owner.answer(lease, end=done("right"))
    assert await ended(spread.publisher, run_id) == (RunStatus.COMPLETED, "right")


async def test_said_twice_it_is_taken_once(roles: Roles, database: Database) -> None:
    """Rule 11: a worker that had no ack sends both again, to whichever server it finds."""
    async with Coder(roles.worker) as worker:
        run_id, lease, first = await begun(worker, roles)
        said = ahead(first, lease.attempt, 2, task(given="b"))
        for _ in range(2):
            assert (await complete(worker, first, "one", said)).error is None
        second = await worker.take()
        assert worker.leases.empty()
        late = ahead(first, lease.attempt + 1, 3, end=done("early"))
        await worker.complete(second, output=encode_value("two"))
        lease, _ = await worker.activation()
        assert (await complete(worker, first, "one", late)).error is None
        await worker.answer(lease, end=done("all"))
        assert await ended(roles.publisher, run_id) == (RunStatus.COMPLETED, "all")
        assert len(await history(roles, run_id)) == 5
    await check_all(database)


async def test_an_end_ahead_closes_what_the_code_left_open(roles: Roles, database: Database) -> None:
    """FV-18: timers that it gave up, and tasks that it never awaited, end with it."""
    async with Coder(roles.worker) as worker:
        run_id, lease, first = await begun(worker, roles, StartTimer(3_600_000_000), task(given="a"))
        said = ahead(first, lease.attempt, 3, CancelStep(1), StartTimer(3_600_000_000), end=done("over"))
        assert (await complete(worker, first, "one", said)).error is None
        assert await ended(roles.publisher, run_id) == (RunStatus.COMPLETED, "over")
        assert (await roles.publisher.runs.get(ROOT, run_id)).open_tasks == 0
    await check_all(database)


async def test_nothing_is_said_ahead_of_a_run_that_is_held_or_ends(spread: Roles) -> None:
    """Rule 14, FV-5: a paused run begins nothing, and a cancelled one is told so first."""
    async with Coder(spread.worker) as worker:
        run_id, lease, first = await begun(worker, spread)
        await spread.publisher.run_operations.pause(ROOT, run_id, "", None)
        await complete(worker, first, "one", ahead(first, lease.attempt, 2, task(given="b")))
        assert worker.leases.empty()
        await spread.publisher.run_operations.resume(ROOT, run_id, None)
        lease, told = await worker.activation()
        assert (seen(lease), told.token) == (["COMPLETED 1 one"], lease.attempt - 1)
        await worker.answer(lease, task(given="b"))
        second = await worker.take()
        await spread.publisher.runs.cancel(ROOT, run_id, "enough", None)
        await complete(worker, second, "two", ahead(second, lease.attempt, 3, task(given="c")))
        lease, _ = await worker.activation()
        assert [each.split()[0] for each in seen(lease)][:1] == ["CANCELLING"]
        await worker.answer(lease)
        if not worker.leases.empty():
            lease, _ = await worker.activation()
    assert (await spread.publisher.runs.get(ROOT, run_id)).status is RunStatus.CANCELLING


async def test_an_activation_is_not_completed_like_a_task(spread: Roles) -> None:
    """FV-18: its run would never end; the worker is told, and may still answer."""
    async with Coder(spread.worker) as worker:
        run_id = await begin(spread.publisher)
        lease, _ = await worker.activation()
        assert isinstance((await worker.report(completions=(completed(lease),)))[0].error, Conflict)
        await worker.answer(lease, end=done("answered"))
    assert await ended(spread.publisher, run_id) == (RunStatus.COMPLETED, "answered")
