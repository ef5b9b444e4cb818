"""Code-first runs through the engine: activations, answers, signals, cancellation, cold and warm, on two servers."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from tests.engine.database import Database
from tests.engine.servers import Roles, Start, eventually
from tests.engine.workers import Worker, ref
from tests.engine.workers import done as done_lease
from tests.engine.world import ROOT, TENANT, check_all, key, kinds_of, principal, register, seconds

from millstream.application.engine.code_commands import AnswerActivation, StartRun
from millstream.application.engine.commands import Command
from millstream.application.ids import new_id
from millstream.application.paging import PageRequest
from millstream.application.views.artifacts import ArtifactQuery
from millstream.application.views.code_runs import ActivationAnswer, NewCodeRun
from millstream.application.views.leases import Lease, LeaseRef
from millstream.application.views.promises import PromiseRef
from millstream.application.views.reports import ReportResult, Reports
from millstream.application.views.tasks import TaskQuery
from millstream.application.workflow_runs import NewRun
from millstream.domain.artifacts import NewArtifact
from millstream.domain.code import (
    Activation,
    CancelStep,
    CommandType,
    End,
    EndType,
    Entry,
    EntryType,
    Given,
    Note,
    OpenPromise,
    PublishItem,
    Recorded,
    StartChild,
    StartTask,
    StartTimer,
    What,
)
from millstream.domain.errors import Conflict, LeaseLost, NotFound, ValidationFailed
from millstream.domain.promises import Resolution
from millstream.domain.retry import DEFAULT_RETRY, DEFAULT_TIMEOUTS
from millstream.domain.runs import RunKind, RunStatus
from millstream.domain.struct_wire import decode_value, encode_struct, encode_value
from millstream.domain.workers import WORKFLOW_KIND, KindSpec
from millstream.wiring import Service

FLOW = KindSpec("flow", WORKFLOW_KIND, "1")


def task(kind: str = "step", given: Any = None) -> StartTask:
    """A task that the code asks for."""
    return StartTask(kind, encode_value(given), "", 0, 0, DEFAULT_RETRY, DEFAULT_TIMEOUTS, "")


def done(value: Any = None) -> End:
    """The code returns."""
    return End(EndType.COMPLETED, encode_value(value))


class Coder(Worker):
    """A worker whose answers to activations the test gives."""

    def __init__(self, service: Service, *versions: str, **fields: Any) -> None:
        super().__init__(service, **({"kinds": ["step"]} | fields))
        specs = tuple(KindSpec("flow", WORKFLOW_KIND, version) for version in versions or ("1",))
        self._hello = self._hello.__class__(
            **{name: getattr(self._hello, name) for name in self._hello.__slots__} | {"specs": specs}
        )

    async def activation(self) -> tuple[Lease, Activation]:
        """The next lease, which is an activation."""
        lease = await self.take()
        assert lease.activation is not None
        return lease, lease.activation

    async def answer(self, lease: Lease, *whats: What, end: End | None = None, **fields: Any) -> ReportResult:
        """Answer an activation: the commands stand behind its last event."""
        told = lease.activation
        assert told is not None
        commands = [Given(told.count + 1 + index, told.base, what) for index, what in enumerate(whats)]
        said = ActivationAnswer(lease.task.id, lease.attempt, fields.pop("base", told.base), commands, end)
        result = (await self.session.report(reports_of(said)))[0]
        self.session.add_credit(1)
        return result


def reports_of(said: ActivationAnswer) -> Any:
    return Reports(answers=(said,))


def seen(lease: Lease) -> list[str]:
    """What an activation tells, readably."""
    told = []
    for item in lease.history.items:
        if isinstance(item, Entry):
            value = decode_value(item.value) if item.value else None
            what = {EntryType.COMPLETED: item.step, EntryType.FAILED: item.step, EntryType.SIGNALLED: item.name}
            told.append(f"{item.type.name} {what.get(item.type, '')} {value}".replace("  ", " "))
        elif isinstance(item, Recorded):
            told.append(f"- {item.number} {item.type.name} {item.name}".rstrip())
    return told


async def begin(service: Service, given: Any = None, **fields: Any) -> str:
    """Start a run; its id."""
    result = await service.code_runs.start(ROOT, NewCodeRun("flow", input=encode_value(given), **fields), None)
    return result.run.id


async def ended(service: Service, run_id: str) -> tuple[RunStatus, Any]:
    """How a run ended, and its output."""
    result = await service.workflow_runs.result(ROOT, run_id, 5)
    assert result.completed
    return result.run.status, decode_value(result.output) if result.output else None


@pytest.fixture(autouse=True)
async def _consistent(database: Database) -> AsyncIterator[None]:
    yield
    await check_all(database)


async def test_the_shortest_run_is_an_activation_a_task_and_a_result(roles: Roles) -> None:
    """FV-18: from the start to the output, through any server, on either path."""
    async with Coder(roles.worker) as worker:
        run_id = await begin(roles.publisher, {"id": 7})
        first, told = await worker.activation()
        assert (told.workflow, told.version, told.token) == ("flow", "1", 0)
        assert seen(first) == ["STARTED {'id': 7}"]
        await worker.answer(first, task(given="pay"))
        step = await worker.take()
        assert (step.task.kind, step.task.step, decode_value(step.task.input)) == ("step", 1, "pay")
        await worker.complete(step, output=encode_value("paid"))
        second, told = await worker.activation()
        assert seen(second) == ["COMPLETED 1 paid"]
        assert told.token == first.attempt
        await worker.answer(second, end=done("done"))
        assert await ended(roles.publisher, run_id) == (RunStatus.COMPLETED, "done")
    assert await kinds_of(roles.publisher, run_id) == [
        "RUN_CREATED", "TASK_CREATED", "TASK_STARTED", "TASK_COMPLETED", "RUN_COMPLETED",
    ]  # fmt: skip


@pytest.mark.parametrize("count", [1, 4, 5, 50])
async def test_no_end_is_lost_while_the_code_runs(spread: Roles, count: int) -> None:
    """replay-lessons: what ends between an activation and its answer makes another; no status is asked for."""
    async with Coder(spread.worker) as worker:
        run_id = await begin(spread.publisher)
        lease, _ = await worker.activation()
        await worker.answer(lease, *[task(given=n) for n in range(count)])
        steps = await worker.take_many(count)
        await worker.complete(steps[0], output=encode_value(0))
        lease, _ = await worker.activation()
        await worker.report(completions=tuple(done_lease(step, output=encode_value(1)) for step in steps[1:]))
        assert worker.leases.empty(), "at most one activation is open"
        await worker.answer(lease)
        told = seen(lease)
        while len(told) < count:
            lease, _ = await worker.activation()
            told += seen(lease)
            await worker.answer(lease, **({"end": done(count)} if len(told) == count else {}))
        if count == 1:
            await spread.publisher.code_runs.signal(ROOT, run_id, "go", b"", None)
            lease, _ = await worker.activation()
            await worker.answer(lease, end=done(count))
        assert await ended(spread.publisher, run_id) == (RunStatus.COMPLETED, count)


async def test_an_end_that_has_not_seen_all_is_put_off(spread: Roles) -> None:
    """Engine-rules 12: commands are taken, the completion is not, and another activation follows."""
    async with Coder(spread.worker) as worker:
        run_id = await begin(spread.publisher)
        lease, told = await worker.activation()
        await spread.publisher.code_runs.signal(ROOT, run_id, "late", encode_value(1), None)
        assert (await worker.answer(lease, Note(CommandType.PATCH, "p"), end=done("early"))).error is None
        assert not (await spread.publisher.workflow_runs.result(ROOT, run_id, 0)).completed
        lease, after = await worker.activation()
        assert (seen(lease), after.count, after.seen) == (["SIGNALLED late 1"], 1, told.base)
        await worker.answer(lease, end=done("all seen"))
        assert await ended(spread.publisher, run_id) == (RunStatus.COMPLETED, "all seen")


async def test_an_answer_counts_once_however_often_it_comes(spread: Roles) -> None:
    """FV-18, replay-lessons: a duplicate is a no-op, a late one is refused."""
    async with Coder(spread.worker) as worker:
        run_id = await begin(spread.publisher)
        lease, _ = await worker.activation()
        for _ in range(2):
            assert (await worker.answer(lease, task(given=1))).error is None
        step = await worker.take()
        await worker.complete(step)
        second, _ = await worker.activation()
        assert (await worker.answer(second, end=done())).error is None
        assert isinstance((await worker.answer(lease, task(given=2))).error, LeaseLost)
        assert await ended(spread.publisher, run_id) == (RunStatus.COMPLETED, None)
    assert await spread.publisher.core.stores.reads.count_tasks(TENANT, TaskQuery(run_id=run_id)) == (1, False)


async def test_a_worker_lost_between_activation_and_answer_is_replaced_cold(
    start: Start, database: Database, owner_path: bool
) -> None:
    """FV-18, FV-19: the sticky worker dies with an activation in hand while an event comes; another, on another server,
    is told the whole history, and the first is refused when it comes back."""
    here, there = await start(owner_path=owner_path, lease_s=2.0)
    async with Coder(here) as first:
        run_id = await begin(here, "given")
        lease, _ = await first.activation()
        await first.answer(lease, Note(CommandType.RECORD, "chance", encode_value(0.5)), task(given="pay"))
        step = await first.take()
        await first.complete(step, output=encode_value("paid"))
        held, told = await first.activation()
        assert told.token, "the worker has a copy"
        await first.ack(held)
        async with Coder(there) as second:
            first.session.drain()
            await there.code_runs.signal(ROOT, run_id, "go", encode_value(1), None)
            await database.pass_time(3.0)
            for service in (here, there):
                await service.loops.poll()
            cold, told = await second.activation()
            assert (told.token, told.count, told.after) == (0, 2, 0)
            assert seen(cold) == [
                "STARTED given", "- 1 RECORD chance", "- 2 TASK step", "COMPLETED 2 paid", "SIGNALLED go 1",
            ]  # fmt: skip
            assert isinstance((await first.answer(held, end=done("zombie"))).error, LeaseLost)
            await second.answer(cold, end=done("well"))
            assert await ended(here, run_id) == (RunStatus.COMPLETED, "well")


async def test_a_run_goes_only_to_workers_with_its_version(spread: Roles) -> None:
    """FV-18: versions side by side; a new run gets the version that was registered last."""
    async with Coder(spread.worker, "1") as old:
        first = await begin(spread.publisher)
        await old.activation()
        async with Coder(spread.worker, "2") as new:
            await new.release((await new_run(spread, new, "2"))[0])
            second, _ = await new.activation()
            assert second.activation is not None
            assert second.activation.version == "2"
            await spread.publisher.code_runs.signal(ROOT, first, "go", b"", None)
        assert old.leases.empty()


async def new_run(spread: Roles, worker: Coder, version: str) -> tuple[Lease, Activation]:
    """A run of a version, with its first activation."""
    await begin(spread.publisher, version=version)
    return await worker.activation()


async def test_nobody_starts_what_no_worker_has_the_code_of(start: Start) -> None:
    """FV-18: the refusal says what to do; also for a version."""
    here, _ = await start()
    with pytest.raises(NotFound, match="no worker has registered the workflow 'flow'"):
        await begin(here)
    async with Coder(here):
        await begin(here)
        with pytest.raises(NotFound, match="version '7'"):
            await begin(here, version="7")


async def test_signals_are_kept_in_order_and_refused_at_the_end(spread: Roles) -> None:
    """FV-17: a key makes one of two; an ended run takes none; another tenant learns nothing."""
    service = spread.publisher
    async with Coder(spread.worker) as worker:
        run_id = await begin(service)
        lease, _ = await worker.activation()
        await worker.answer(lease)
        for _ in range(2):
            await service.code_runs.signal(ROOT, run_id, "go", encode_value(1), key("once", "SignalRun"))
        lease, _ = await worker.activation()
        await spread.worker.code_runs.signal(ROOT, run_id, "go", encode_value(2), None)
        assert seen(lease) == ["SIGNALLED go 1"]
        await worker.answer(lease)
        lease, _ = await worker.activation()
        assert seen(lease) == ["SIGNALLED go 2"]
        with pytest.raises(NotFound):
            await service.code_runs.signal(principal(tenant="umbrella"), run_id, "go", b"", None)
        await worker.answer(lease, end=done())
        await ended(service, run_id)
        with pytest.raises(Conflict, match="has ended"):
            await service.code_runs.signal(ROOT, run_id, "go", b"", None)


async def test_a_signal_with_start_starts_once(spread: Roles) -> None:
    """FV-17: whichever of two callers comes first starts the run; both signals are there."""
    run_id = new_id()
    async with Coder(spread.worker) as worker:
        new = [
            NewCodeRun("flow", run_id=run_id, input=encode_value(n), signal=("add", encode_value(n))) for n in range(4)
        ]
        services = (spread.publisher, spread.worker) * 2
        results = await asyncio.gather(
            *(service.code_runs.start(ROOT, each, None) for service, each in zip(services, new, strict=True))
        )
        assert sum(result.started for result in results) == 1
        told: list[str] = []
        while len(told) < 5:
            lease, _ = await worker.activation()
            told += seen(lease)
            await worker.answer(lease, **({"end": done()} if len(told) == 5 else {}))
        assert sorted(told[1:]) == [f"SIGNALLED add {n}" for n in range(4)]
        await ended(spread.publisher, run_id)
        with pytest.raises(Conflict, match="has ended"):
            await spread.publisher.code_runs.start(ROOT, new[0], None)


async def test_a_cancelled_run_cleans_up_with_tasks_of_its_own(spread: Roles) -> None:
    """FV-18, engine-rules 14: the code is told, may run tasks within the grace, and ends in CANCELLED."""
    async with Coder(spread.worker) as worker:
        run_id = await begin(spread.publisher)
        lease, _ = await worker.activation()
        await worker.answer(lease, task(given="long"))
        await worker.take()
        run, _ = await spread.publisher.runs.cancel(ROOT, run_id, "enough", None)
        assert run.status is RunStatus.CANCELLING
        lease, _ = await worker.activation()
        assert seen(lease) == ["CANCELLING None"]
        await worker.answer(lease, CancelStep(1), task(given="refund"))
        assert (await worker.told()).reason == "CANCELLED"
        refund = await worker.take()
        assert decode_value(refund.task.input) == "refund"
        await worker.complete(refund, output=encode_value("refunded"))
        lease, _ = await worker.activation()
        assert seen(lease) == ["COMPLETED 3 refunded"]
        await worker.answer(lease, end=End(EndType.CANCELLED))
        assert (await ended(spread.publisher, run_id))[0] is RunStatus.CANCELLED


async def test_a_cancelled_run_whose_code_hangs_is_ended_by_force(start: Start, database: Database) -> None:
    """FV-19: the grace passes, and the worker that still runs the code has lost it."""
    here, there = await start()
    async with Coder(there) as worker:
        run_id = await begin(here)
        lease, _ = await worker.activation()
        await here.runs.cancel(ROOT, run_id, "", None)
        await database.pass_time(11)
        for service in (here, there):
            await service.loops.poll()
        assert (await ended(here, run_id))[0] is RunStatus.CANCELLED
        assert isinstance((await worker.answer(lease, end=done())).error, LeaseLost)


async def test_a_run_that_no_code_fits_is_parked_and_goes_on_after_a_retry(spread: Roles) -> None:
    """FV-18: NON_DETERMINISM is reported and not executed; what was begun goes on, and nothing of it is lost."""
    async with Coder(spread.worker) as worker:
        run_id = await begin(spread.publisher)
        lease, _ = await worker.activation()
        await worker.answer(lease, task(given=1), task(given=2))
        one, two = await worker.take_many(2)
        await worker.complete(one, output=encode_value("one"))
        lease, _ = await worker.activation()
        await worker.fail(lease, "NON_DETERMINISM", retryable=False)
        status, _ = await ended(spread.publisher, run_id)
        assert status is RunStatus.FAILED
        assert (await spread.publisher.runs.get(ROOT, run_id)).error_code == "NON_DETERMINISM"
        await worker.complete(two, output=encode_value("two"))
        assert worker.leases.empty()
        await spread.publisher.run_operations.retry(ROOT, run_id, "mended", "", None)
        lease, told = await worker.activation()
        assert (told.token, seen(lease)) == (
            0, ["STARTED None", "- 1 TASK step", "- 2 TASK step", "COMPLETED 1 one", "COMPLETED 2 two"],
        )  # fmt: skip
        await worker.answer(lease, end=done("well"))
        assert await ended(spread.publisher, run_id) == (RunStatus.COMPLETED, "well")


async def test_a_failed_run_is_retried_from_what_failed(spread: Roles) -> None:
    """FV-9: the failure that the code died of is taken back with it, and its task begins again; what was done stays."""
    async with Coder(spread.worker) as worker:
        run_id = await begin(spread.publisher)
        lease, _ = await worker.activation()
        await worker.answer(lease, task(given="a"), task(given="b"), task(given="c"))
        a, b, _ = await worker.take_many(3)
        await worker.complete(a, output=encode_value("done"))
        lease, _ = await worker.activation()
        await worker.answer(lease)
        await worker.fail(b, "DECLINED", retryable=False)
        lease, _ = await worker.activation()
        assert seen(lease) == ["FAILED 2 None"]
        await worker.answer(lease, end=End(EndType.FAILED, code="DECLINED", message="so it is"))
        assert (await ended(spread.publisher, run_id))[0] is RunStatus.FAILED
        assert (await worker.told()).reason == "LEASE_LOST"
        await spread.publisher.run_operations.retry(ROOT, run_id, "mended", "", None)
        again = {str(decode_value(each.task.input)): each for each in await worker.take_many(3) if not each.activation}
        assert sorted(again) == ["b", "c"]
        (lease,) = [each for each in worker.seen[-3:] if each.activation]
        assert seen(lease) == ["STARTED None", "- 1 TASK step", "- 2 TASK step", "- 3 TASK step", "COMPLETED 1 done"]
        await worker.answer(lease)
        await worker.complete(again["b"], output=encode_value("b"))
        lease, _ = await worker.activation()
        assert seen(lease) == ["COMPLETED 2 b"]
        await worker.answer(lease, end=done("well"))
        assert await ended(spread.publisher, run_id) == (RunStatus.COMPLETED, "well")


async def test_a_run_begins_anew_with_an_empty_history(spread: Roles) -> None:
    """FV-18: continue-as-new keeps id, waiters and signals that were not taken."""
    async with Coder(spread.worker) as worker:
        run_id = await begin(spread.publisher, 1)
        lease, _ = await worker.activation()
        await worker.answer(lease, task(given="old"), Note(CommandType.STATE, "n", encode_value(1)))
        await worker.take()
        await spread.publisher.code_runs.signal(ROOT, run_id, "go", encode_value("x"), None)
        lease, _ = await worker.activation()
        kept = [("go", encode_value("x"))]
        await worker.answer(lease, end=End(EndType.CONTINUED, encode_value(2), signals=kept))
        assert (await worker.told()).reason == "LEASE_LOST"
        lease, told = await worker.activation()
        assert (seen(lease), told.first, told.token) == (["STARTED 2", "SIGNALLED go x"], 2, 0)
        await worker.answer(lease, Note(CommandType.STATE, "n", encode_value(3)), task(given="new"))
        step = await worker.take()
        assert step.task.step == 4
        assert await spread.publisher.code_runs.state(ROOT, run_id) == {"n": encode_value(3)}
        await worker.complete(step)
        lease, _ = await worker.activation()
        await worker.answer(lease, end=done("new"))
        assert await ended(spread.publisher, run_id) == (RunStatus.COMPLETED, "new")


async def test_a_timer_fires_when_it_is_due_and_a_thousand_sleepers_cost_nothing(
    start: Start, database: Database
) -> None:
    """FV-18: durable timers; a run that sleeps has nothing that anybody looks at."""
    here, there = await start()
    async with Coder(there) as worker:
        run_id = await begin(here)
        lease, _ = await worker.activation()
        await worker.answer(lease, StartTimer(60_000_000))
        for service in (here, there):
            await service.loops.poll()
        assert worker.leases.empty()
        await database.pass_time(61)
        await eventually(lambda: fired(here, there, worker))
        lease, _ = await worker.activation()
        assert seen(lease) == ["COMPLETED 1 None"]
        await worker.answer(lease, end=done())
        await ended(here, run_id)


async def fired(here: Service, there: Service, worker: Coder) -> bool:
    """Whether a timer has fired; looks for what is due."""
    for service in (here, there):
        await service.loops.poll()
    return not worker.leases.empty()


async def test_a_paused_run_is_woken_when_it_is_resumed(spread: Roles) -> None:
    """What happens to a paused run is told once it goes on, and nothing of it is lost."""
    async with Coder(spread.worker) as worker:
        run_id = await begin(spread.publisher)
        lease, _ = await worker.activation()
        await worker.answer(lease)
        await spread.publisher.run_operations.pause(ROOT, run_id, "", None)
        await spread.publisher.code_runs.signal(ROOT, run_id, "go", encode_value(1), None)
        assert worker.leases.empty()
        await spread.publisher.run_operations.resume(ROOT, run_id, None)
        lease, _ = await worker.activation()
        assert seen(lease) == ["SIGNALLED go 1"]
        await worker.answer(lease, end=done())
        await ended(spread.publisher, run_id)


async def test_a_long_run_costs_the_same_at_each_step(start: Start, database: Database, owner_path: bool) -> None:
    """FV-18: a warm worker is told the new event alone, whatever the history; each step writes the same rows."""
    here, _ = await start(owner_path=owner_path)
    steps = 1000
    async with Coder(here) as worker:
        run_id = await begin(here)
        for n in range(steps):
            lease, told = await worker.activation()
            assert len(lease.history.items) == 1, f"step {n}"
            assert told.token == (lease.attempt - 1 if n else 0)
            await worker.answer(lease, task(given=n))
            await worker.complete(await worker.take(), output=encode_value(n))
        lease, _ = await worker.activation()
        await worker.answer(lease, end=done())
        await ended(here, run_id)
    counts = {
        table: (await database.rows(f"SELECT count(*) AS n FROM {table}"))[0]["n"]
        for table in ("task", "attempt", "event", "journal")
    }
    assert counts == {"task": steps + 1, "attempt": steps, "event": 3 * steps + 2, "journal": steps}


async def test_a_cold_worker_pages_through_a_long_history(start: Start) -> None:
    """FV-18: pages by bytes and by items come to the same history, each item once."""
    here, there = await start()
    big = encode_value("x" * 300_000)
    async with Coder(here) as worker:
        await begin(here)
        lease, _ = await worker.activation()
        for n in range(12):
            await worker.answer(lease, *[Note(CommandType.PATCH, f"p{n}.{i}") for i in range(100)], task(given=n))
            await worker.complete(await worker.take(), output=big)
            lease, _ = await worker.activation()
        await worker.release(lease)
    async with Coder(there) as other:
        cold, told = await other.activation()
        items = [*cold.history.items]
        more = cold.history.more
        assert more
        while more:
            last = items[-1]
            place = (last.seq, 0) if isinstance(last, Entry) else (last.after, last.number)
            page = await there.workers.history(ROOT, ref(cold), *place)
            items += page.items
            more = page.more
        assert sum(isinstance(item, Entry) for item in items) == 13
        assert [item.number for item in items if isinstance(item, Recorded)] == [*range(1, 12 * 101 + 1)]
        assert (told.count, told.base) == (12 * 101, items[-1].seq if isinstance(items[-1], Entry) else 0)
        with pytest.raises(LeaseLost):
            await there.workers.history(ROOT, LeaseRef(cold.task.id, cold.attempt + 1), 0, 0)


async def test_an_answer_that_makes_no_sense_parks_the_run(start: Start) -> None:
    """FV-18: the same worker would say the same again; an operator sees why."""
    here, _ = await start()
    async with Coder(here) as worker:
        run_id = await begin(here)
        lease, told = await worker.activation()
        wrong = ActivationAnswer(lease.task.id, lease.attempt, told.base, [Given(7, told.base, task())])
        (result,) = await worker.session.report(Reports(answers=(wrong,)))
        assert isinstance(result.error, ValidationFailed)
        assert (await ended(here, run_id))[0] is RunStatus.FAILED
        run = await here.runs.get(ROOT, run_id)
        assert (run.error_code, "must be 1, not 7" in run.error_message) == ("INVALID_ANSWER", True)


async def test_too_many_commands_end_a_run_that_does_not_continue_as_new(start: Start) -> None:
    """FV-18: the bound is stated, and so is the way out."""
    here, _ = await start(max_commands_per_run=10)
    async with Coder(here) as worker:
        run_id = await begin(here)
        lease, _ = await worker.activation()
        await worker.answer(lease, *[Note(CommandType.PATCH, str(n)) for n in range(11)])
        assert (await ended(here, run_id))[0] is RunStatus.FAILED
        assert "continue_as_new" in (await here.runs.get(ROOT, run_id)).error_message


async def test_a_workers_crash_loop_ends_in_a_parked_run(start: Start, database: Database) -> None:
    """FV-19: an activation that no worker survives is tried ten times in a row, not for ever."""
    here, _ = await start()
    async with Coder(here) as worker:
        run_id = await begin(here)
        for _ in range(10):
            lease, _ = await worker.activation()
            await worker.fail(lease, "CRASHED")
            await database.pass_time(70)
            await here.loops.poll()
        assert (await ended(here, run_id))[0] is RunStatus.FAILED


async def test_a_promise_is_opened_once_by_its_key_and_settled_from_outside(spread: Roles) -> None:
    """FV-17: by its key; a key that another open promise has fails the step at once, which the code is told."""
    async with Coder(spread.worker) as worker:
        run_id = await begin(spread.publisher)
        lease, _ = await worker.activation()
        await worker.answer(lease, OpenPromise("ok", "the-key", 0), OpenPromise("ok", "the-key", 0))
        lease, _ = await worker.activation()
        assert seen(lease) == ["FAILED 2 None"]
        await worker.answer(lease)
        by_key = PromiseRef(key="the-key")
        await spread.publisher.promises.settle(ROOT, by_key, Resolution(encode_value("yes")), None)
        lease, _ = await worker.activation()
        assert seen(lease) == ["COMPLETED 1 yes"]
        await worker.answer(lease, end=done())
        await ended(spread.publisher, run_id)


@pytest.mark.parametrize("abandon", [False, True])
async def test_a_child_ends_with_its_parent_unless_it_is_abandoned(spread: Roles, abandon: bool) -> None:
    """FV-18: parent-close policy."""
    async with Coder(spread.worker) as worker:
        run_id = await begin(spread.publisher, "parent")
        lease, _ = await worker.activation()
        await worker.answer(lease, StartChild("flow", "", encode_value("child"), abandon, ""))
        child, told = await worker.activation()
        assert seen(child) == ["STARTED child"]
        await worker.answer(child)
        await spread.publisher.code_runs.signal(ROOT, run_id, "go", b"", None)
        lease, _ = await worker.activation()
        await worker.answer(lease, end=done())
        await ended(spread.publisher, run_id)
        if abandon:
            await spread.publisher.code_runs.signal(ROOT, told.run_id, "go", b"", None)
        child, _ = await worker.activation()
        assert seen(child) == ["SIGNALLED go None" if abandon else "CANCELLING None"]
        await worker.answer(child, end=done())
        status = (await ended(spread.publisher, told.run_id))[0]
        assert status is (RunStatus.COMPLETED if abandon else RunStatus.CANCELLED)


async def test_a_childs_output_and_failure_come_to_its_parent(spread: Roles) -> None:
    """FV-18, FV-10: one after the other; a child is listed under its parent."""
    async with Coder(spread.worker) as worker:
        run_id = await begin(spread.publisher, "parent")
        lease, _ = await worker.activation()
        await worker.answer(lease, StartChild("flow", "1", encode_value("a"), False, ""))
        child, told = await worker.activation()
        await worker.answer(child, end=done("made"))
        lease, _ = await worker.activation()
        assert seen(lease) == ["COMPLETED 1 made"]
        await worker.answer(lease, StartChild("flow", "", encode_value("b"), False, ""))
        child, _ = await worker.activation()
        await worker.answer(child, end=End(EndType.FAILED, code="BROKEN", message="it is"))
        lease, _ = await worker.activation()
        (failed,) = [item for item in lease.history.items if isinstance(item, Entry)]
        assert (failed.step, failed.code) == (2, "BROKEN")
        await worker.answer(lease, StartChild("nobody-has-it", "", b"", False, ""))
        lease, _ = await worker.activation()
        (failed,) = [item for item in lease.history.items if isinstance(item, Entry)]
        assert (failed.step, failed.code) == (3, "NOT_FOUND")
        await worker.answer(lease, end=done())
        await ended(spread.publisher, run_id)
    page = await spread.publisher.runs.children(ROOT, run_id, PageRequest())
    assert told.run_id in {run.id for run in page.items}
    assert len(page.items) == 2


async def test_a_run_publishes_into_a_cascade_of_its_own(spread: Roles) -> None:
    """FL-1, FV-18: the artifact, and what it sets off, is stored with the answer."""
    await register(spread.publisher, ("Order",))
    async with Coder(spread.worker) as worker:
        run_id = await begin(spread.publisher)
        lease, told = await worker.activation()
        published = ActivationAnswer(
            lease.task.id, lease.attempt, told.base, [Given(1, told.base, PublishItem("Order", 0))], done(),
            [NewArtifact("Order", encode_struct({"id": 7}))],
        )  # fmt: skip
        (result,) = await worker.session.report(Reports(answers=(published,)))
        assert result.error is None
        await ended(spread.publisher, run_id)
    page = await spread.publisher.artifacts.list(ROOT, ArtifactQuery(type="Order"), PageRequest(), False)
    (listed,) = page.items
    assert (await spread.publisher.runs.get(ROOT, listed.artifact.run_id)).parents == (run_id,)


async def test_a_run_goes_to_the_worker_that_has_a_copy_of_it_wherever_that_is(start: Start, owner_path: bool) -> None:
    """Engine-rules 12: the sticky worker first, though another is at hand where something happens; then any."""
    here, there = await start(owner_path=owner_path)
    async with Coder(here) as other:
        async with Coder(there, slots=5) as mine:
            run_id = await begin(there)
            lease, _ = await mine.activation()
            await mine.answer(lease)
            for n in range(5):
                await here.code_runs.signal(ROOT, run_id, "go", encode_value(n), None)
                lease, told = await mine.activation()
                assert (seen(lease), bool(told.token)) == ([f"SIGNALLED go {n}"], True)
                await mine.answer(lease)
            assert other.leases.empty()
        await here.code_runs.signal(ROOT, run_id, "go", encode_value("any"), None)
        lease, told = await other.activation()
        assert (told.token, len(seen(lease))) == (0, 7)
        await other.answer(lease, end=done())
        await ended(here, run_id)


async def test_mended_code_may_do_more_after_a_retry(spread: Roles) -> None:
    """FV-9, FV-18: from the last that it did on, where it failed, a run goes another way with mended code."""
    async with Coder(spread.worker) as worker:
        run_id = await begin(spread.publisher)
        lease, _ = await worker.activation()
        await worker.answer(lease, Note(CommandType.PATCH, "p"), end=End(EndType.FAILED, code="BUG", message="of mine"))
        assert (await ended(spread.publisher, run_id))[0] is RunStatus.FAILED
        await spread.publisher.run_operations.retry(ROOT, run_id, "mended", "", None)
        lease, told = await worker.activation()
        assert (seen(lease), told.seen, told.count) == (["STARTED None", "- 1 PATCH p"], 0, 1)
        await worker.answer(lease, task(given="more"))
        step = await worker.take()
        await worker.complete(step)
        lease, _ = await worker.activation()
        await worker.answer(lease, end=done("well"))
        assert await ended(spread.publisher, run_id) == (RunStatus.COMPLETED, "well")


async def test_a_run_that_is_executed_and_waited_for_is_one_command(
    roles: Roles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FV-18: its caller waits from the transaction that begins it, and reads nothing of what it came to."""
    async with Coder(roles.worker) as worker:
        engine = roles.publisher.engine
        commands: list[Command] = []
        submit, submit_all = engine.submit, engine.submit_all

        async def one(command: Command, urgent: bool = False) -> Any:
            commands.append(command)
            return await submit(command, urgent)

        async def many(given: Sequence[Command], urgent: bool = False) -> Any:
            commands.extend(given)
            return await submit_all(given, urgent)

        monkeypatch.setattr(engine, "submit", one)
        monkeypatch.setattr(engine, "submit_all", many)
        new = NewRun("flow", input=encode_value(1))
        waiting = asyncio.create_task(roles.publisher.workflow_runs.execute_sync(ROOT, new, None, 5))
        lease, told = await worker.activation()
        run = await roles.publisher.runs.get(ROOT, told.run_id)
        assert engine.lane_id in run.waiters
        await worker.answer(lease, end=done("done"))
        result = await waiting
        assert (result.run.status, decode_value(result.output)) == (RunStatus.COMPLETED, "done")
        assert [each for each in commands if not isinstance(each, AnswerActivation)] == [commands[0]]
        assert isinstance(commands[0], StartRun)


async def test_a_caller_of_another_server_waits_for_the_end(spread: Roles) -> None:
    """FV-18: whoever asks for a result is woken by the end, wherever the run is; twice asked is answered twice."""
    async with Coder(spread.worker) as worker:
        run_id = await begin(spread.publisher)
        lease, _ = await worker.activation()
        asked = [asyncio.create_task(ended(each, run_id)) for each in (spread.worker, spread.publisher) * 2]
        for service in (spread.worker, spread.publisher):
            await eventually(lambda service=service: _waits(service, run_id))  # type: ignore[misc]
        await worker.answer(lease, end=done("done"))
        assert await asyncio.gather(*asked) == [(RunStatus.COMPLETED, "done")] * 4


async def _waits(service: Service, run_id: str) -> bool:
    return service.engine.lane_id in (await service.runs.get(ROOT, run_id)).waiters


async def test_a_rerun_is_a_new_run_in_the_latest_version(spread: Roles) -> None:
    """FV-9: with what the first was begun with, whatever became of it; on request in the version of the first."""
    there = spread.publisher.run_operations
    async with Coder(spread.worker, "1", "2", queues=["shop"]) as worker:
        given = NewCodeRun(
            "flow", "1", encode_value("given"), queue="shop", labels='{"a":"b"}', priority=7, timeout_us=seconds(3600)
        )
        first = (await spread.publisher.code_runs.start(ROOT, given, None)).run
        lease, told = await worker.activation()
        assert told.version == "1"
        await worker.answer(lease, end=End(EndType.CONTINUED, encode_value("anew")))
        lease, _ = await worker.activation()
        await spread.publisher.code_runs.signal(ROOT, first.id, "not repeated", b"", None)
        await worker.answer(lease, end=End(EndType.FAILED, code="WRONG", message="in this version"))
        lease, _ = await worker.activation()
        await worker.answer(lease, end=End(EndType.FAILED, code="WRONG", message="in this version"))
        assert await ended(spread.publisher, first.id) == (RunStatus.FAILED, None)
        outputs = {}
        for version, expected in (("", "2"), ("latest", "2"), ("same", "1")):
            run, replayed = await there.rerun(ROOT, first.id, version, key(f"k{version}", "RerunRun"))
            assert (run.rerun_of, run.kind, run.workflow_version, replayed) == (
                first.id, RunKind.CODE, expected, False,
            )  # fmt: skip
            assert (run.labels, run.priority, run.timeout_us) == ('{"a":"b"}', 7, seconds(3600))
            lease, told = await worker.activation()
            assert (told.version, told.run_id, lease.task.queue) == (expected, run.id, "shop")
            assert seen(lease) == ["STARTED given"]
            await worker.answer(lease, end=done(expected))
            outputs[version] = await ended(spread.publisher, run.id)
            again, replayed = await there.rerun(ROOT, first.id, version, key(f"k{version}", "RerunRun"))
            assert (again.id, replayed) == (run.id, True)
        assert {version: output for version, (_, output) in outputs.items()} == {"": "2", "latest": "2", "same": "1"}


async def test_a_rerun_has_its_input_checked_like_any_new_run(start: Start) -> None:
    """FV-9, FV-18: a later version's schema may refuse what an earlier one took; nothing is begun."""
    here, there = await start()
    async with Coder(here) as worker:
        run_id = await begin(there, "text")
        lease, _ = await worker.activation()
        await worker.answer(lease, end=done())
    strict = KindSpec("flow", WORKFLOW_KIND, "2", input_schema='{"type":"object"}')
    await there.code_runs._workflows.register(TENANT, [strict], there.engine.clock.now_us())
    with pytest.raises(ValidationFailed, match="input"):
        await there.run_operations.rerun(ROOT, run_id, "", None)
    assert (await there.run_operations.rerun(ROOT, run_id, "same", None))[0].workflow_version == "1"


async def test_an_executed_run_of_code_has_its_time(spread: Roles, database: Database) -> None:
    """FV-2, rule 14: run_timeout holds for code as for definitions: the code is told, and the run fails."""
    async with Coder(spread.worker) as worker:
        new = NewRun("flow", input=encode_value(1), timeout_us=seconds(100))
        run = (await spread.publisher.workflow_runs.execute(ROOT, new, None)).run
        lease, _ = await worker.activation()
        await worker.answer(lease, StartTimer(seconds(1000)))
        await database.pass_time(101)
        await spread.publisher.loops.poll()
        lease, _ = await worker.activation()
        assert [each.split()[0] for each in seen(lease)] == ["CANCELLING"]
        await worker.answer(lease, CancelStep(1), end=End(EndType.CANCELLED))
        found = await spread.publisher.runs.get(ROOT, run.id)
        assert (found.status, found.error_code, found.timeout_us) == (RunStatus.FAILED, "RUN_TIMEOUT", seconds(100))
