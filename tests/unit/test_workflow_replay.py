"""A workflow's code led through pure histories: no service, no clock."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from millstream.sdk.errors import StepFailed
from millstream.sdk.journal import Command, CommandType, Entry, EntryType, NonDeterminism
from millstream.sdk.workflow_context import WorkflowContext
from millstream.sdk.workflow_run import End, EndType, Instance, RunInfo, perform_here

Function = Callable[[WorkflowContext, Any], Awaitable[Any]]
RUN = "01900000-0000-7000-8000-000000000001"


def instance_of(function: Function) -> Instance:
    async def start(instance: Instance, value: Any) -> Any:
        return await function(WorkflowContext(instance), value)

    return Instance(RunInfo(RUN, "flow", "1"), start, perform_here)


class History:
    """A run as a server would keep it: entries, and the commands recorded at each."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.recorded: dict[int, list[Command]] = {}

    def add(self, kind: EntryType, **fields: Any) -> Entry:
        sequence = len(self.entries) + 1
        entry = Entry(sequence, kind, at_us=sequence * 1_000_000, **fields)
        self.entries.append(entry)
        return entry


async def live(function: Function, history: History, instance: Instance, entry: Entry) -> list[Command]:
    """Go on with something new."""
    await instance.apply(entry)
    made, instance.new = instance.new, []
    for command in made:
        history.recorded.setdefault(command.after, []).append(command)
    return made


async def replayed(function: Function, history: History) -> Instance:
    """A cold worker."""
    instance = instance_of(function)
    for entry in history.entries:
        await instance.apply(entry, history.recorded.get(entry.sequence, ()), replaying=True)
    return instance


class Run:
    """A run on one warm worker, with its history."""

    def __init__(self, function: Function) -> None:
        self.function = function
        self.history = History()
        self.instance = instance_of(function)

    async def tell(self, kind: EntryType, **fields: Any) -> list[str]:
        """What the code asks for then."""
        made = await live(self.function, self.history, self.instance, self.history.add(kind, **fields))
        return [f"{each.type} {each.name or each.step or ''}".strip() for each in made]

    @property
    def over(self) -> bool:
        """The code has ended."""
        return self.instance.end is not None

    @property
    def end(self) -> End | None:
        """How the code ended."""
        return self.instance.end

    async def start(self, value: Any = None) -> list[str]:
        return await self.tell(EntryType.STARTED, value=value)

    async def done(self, step: int, value: Any = None) -> list[str]:
        return await self.tell(EntryType.COMPLETED, step=step, value=value)

    async def failed(self, step: int, code: str = "BROKEN") -> list[str]:
        return await self.tell(EntryType.FAILED, step=step, code=code, message="it is")

    async def check(self) -> None:
        """A cold worker comes to the same."""
        again = await replayed(self.function, self.history)
        assert (again.count, again.end, again.sequence) == (
            self.instance.count, self.instance.end, self.instance.sequence,
        )  # fmt: skip
        assert again.new == []
        again.discard()


async def test_a_task_is_asked_for_and_its_output_goes_on() -> None:
    """FV-18: the shortest workflow."""

    async def flow(ctx: WorkflowContext, order: Any) -> Any:
        paid = await ctx.task("pay", order)
        return {"paid": paid}

    run = Run(flow)
    assert await run.start({"id": 7}) == ["TASK pay"]
    assert not run.over
    assert await run.done(1, "yes") == []
    assert run.end == End(EndType.COMPLETED, {"paid": "yes"})
    await run.check()


async def test_all_of_a_gather_begin_at_once_and_may_end_in_any_order() -> None:
    """FV-18: results stand in the order of the code."""

    async def flow(ctx: WorkflowContext, _: Any) -> Any:
        return await ctx.gather(*(ctx.task("square", n) for n in range(3)))

    run = Run(flow)
    assert await run.start() == ["TASK square"] * 3
    for step in (2, 3, 1):
        await run.done(step, step * 10)
    assert run.end == End(EndType.COMPLETED, [10, 20, 30])
    await run.check()


@pytest.mark.parametrize("count", range(1, 7))
async def test_parallel_steps_may_end_in_every_order(count: int) -> None:
    """FV-18: up to six; the answer is the same, what follows each is asked for as it ends, and a cold worker agrees."""

    async def one(ctx: WorkflowContext, n: int) -> Any:
        return [await ctx.task("first", n), await ctx.task("second", n)]

    async def flow(ctx: WorkflowContext, _: Any) -> Any:
        return await ctx.gather(*(one(ctx, n) for n in range(count)))

    for order in itertools.permutations(range(count)):
        run = Run(flow)
        assert await run.start() == ["TASK first"] * count
        for n in order:
            assert await run.done(n + 1, f"a{n}") == ["TASK second"]
        for place, n in reversed([*enumerate(order)]):
            assert not run.over
            await run.done(count + place + 1, f"b{n}")
        assert run.end == End(EndType.COMPLETED, [[f"a{n}", f"b{n}"] for n in range(count)])
        await run.check()
        run.instance.discard()


async def test_a_failure_is_raised_where_it_is_awaited() -> None:
    """FV-18: and may be caught."""

    async def flow(ctx: WorkflowContext, _: Any) -> Any:
        try:
            await ctx.task("pay")
        except StepFailed as error:
            return [error.code, error.kind, error.name]

    run = Run(flow)
    await run.start()
    await run.failed(1, "DECLINED")
    assert run.end == End(EndType.COMPLETED, ["DECLINED", "task", "pay"])
    await run.check()


async def test_a_recorded_side_effect_happens_once() -> None:
    """FV-18: its value is that of the history in each replay."""
    calls: list[int] = []

    async def ask() -> int:
        await asyncio.sleep(0)
        calls.append(1)
        return len(calls)

    async def flow(ctx: WorkflowContext, _: Any) -> Any:
        first = await ctx.run(ask)
        await ctx.task("pay", first)
        return first

    run = Run(flow)
    assert await run.start() == ["RECORD ask", "TASK pay"]
    await run.done(2)
    await run.check()
    assert run.end == End(EndType.COMPLETED, 1)
    assert calls == [1]


async def test_time_chance_and_ids_are_the_same_in_each_replay() -> None:
    """FV-18."""
    seen: list[Any] = []

    async def flow(ctx: WorkflowContext, _: Any) -> Any:
        before = (ctx.now, ctx.random.random(), ctx.uuid())
        await ctx.task("pay")
        seen.append((before, ctx.now, ctx.random.random(), ctx.uuid()))

    run = Run(flow)
    await run.start()
    await run.done(1)
    await run.check()
    assert seen[0] == seen[1]


async def test_signals_wait_in_order_until_they_are_taken() -> None:
    """FV-17, replay-lessons: a signal is seen from the event on that brought it, never earlier."""

    async def flow(ctx: WorkflowContext, _: Any) -> Any:
        await ctx.task("first")
        one = await ctx.signal("go")
        two = await ctx.signal("go")
        await ctx.task("second", [one, two])

    run = Run(flow)
    await run.start()
    assert await run.tell(EntryType.SIGNALLED, name="go", value=1) == []
    assert await run.done(1) == []
    assert await run.tell(EntryType.SIGNALLED, name="other", value=0) == []
    assert await run.tell(EntryType.SIGNALLED, name="go", value=2) == ["TASK second"]
    await run.check()


async def test_asyncios_own_means_work_with_durable_timers() -> None:
    """FV-18: a time-out is a timer of the service, and is cancelled when it is not needed."""

    async def flow(ctx: WorkflowContext, _: Any) -> Any:
        try:
            async with asyncio.timeout(30):
                await ctx.task("slow")
        except TimeoutError:
            async with asyncio.TaskGroup() as group:
                group.create_task(asyncio.sleep(1))
                group.create_task(asyncio.sleep(2))
        return "late"

    run = Run(flow)
    assert await run.start() == ["TIMER", "TASK slow"]
    assert await run.done(1) == ["CANCEL 2", "TIMER", "TIMER"]
    await run.done(4)
    await run.done(5)
    assert run.end == End(EndType.COMPLETED, "late")
    await run.check()
    early = Run(flow)
    await early.start()
    assert await early.done(2) == ["CANCEL 1"]
    await early.check()


async def test_cancellation_is_raised_inside_and_clean_up_may_run_tasks() -> None:
    """FV-18."""

    async def flow(ctx: WorkflowContext, _: Any) -> Any:
        try:
            await ctx.task("pay")
        finally:
            await ctx.task("refund")

    run = Run(flow)
    await run.start()
    assert await run.tell(EntryType.CANCELLING, message="no longer wanted") == ["CANCEL 1", "TASK refund"]
    assert not run.over
    await run.done(3)
    assert run.end == End(EndType.CANCELLED, message="no longer wanted")
    await run.check()


@pytest.mark.parametrize("change", ["another", "missing", "more"])
async def test_a_changed_history_is_reported_with_both_sides(change: str) -> None:
    """FV-18: NON_DETERMINISM names what differs."""

    async def before(ctx: WorkflowContext, _: Any) -> Any:
        await ctx.task("pay")
        await ctx.task("ship")

    async def after(ctx: WorkflowContext, _: Any) -> Any:
        await ctx.task("charge" if change == "another" else "pay")
        if change == "more":
            ctx.task("notify")
        if change != "missing":
            await ctx.task("ship")

    run = Run(before)
    await run.start()
    await run.done(1)
    with pytest.raises(NonDeterminism) as caught:
        await replayed(after, run.history)
    assert "history:" in caught.value.message
    assert {"another": "'charge'", "missing": "'ship'", "more": "'notify'"}[change] in caught.value.message


async def test_a_patch_divides_old_runs_from_new_ones() -> None:
    """FV-18: `patched` is false where a run was past it, and true from then on where it was not."""

    async def before(ctx: WorkflowContext, _: Any) -> Any:
        await ctx.task("pay")
        await ctx.task("ship")

    async def after(ctx: WorkflowContext, _: Any) -> Any:
        if ctx.patched("fraud"):
            await ctx.task("check")
        await ctx.task("pay")
        if ctx.patched("pack"):
            await ctx.task("pack")
        await ctx.task("ship")

    async def later(ctx: WorkflowContext, _: Any) -> Any:
        await ctx.task("check")
        await ctx.task("pay")
        await ctx.task("pack")
        await ctx.task("ship")

    old = Run(before)
    await old.start()
    cold = await replayed(after, old.history)
    assert cold.new == []
    old.instance = cold
    assert await old.done(1) == ["PATCH pack", "TASK pack"]
    old.function = after
    await old.check()
    new = Run(after)
    assert await new.start() == ["PATCH fraud", "TASK check"]
    await new.done(2)
    await new.done(3)
    assert (await new.done(5)) == ["TASK ship"]
    new.function = later
    await new.check()


async def test_a_run_taken_away_does_nothing_any_more() -> None:
    """FV-18: clean-up code of a discarded run neither runs tasks nor complains."""
    ran: list[str] = []

    async def flow(ctx: WorkflowContext, _: Any) -> Any:
        try:
            await ctx.task("pay")
        finally:
            ran.append("finally")
            await ctx.task("refund")
            ran.append("refunded")

    run = Run(flow)
    await run.start()
    run.instance.discard()
    assert run.instance.new == []
    assert ran == ["finally"]


async def test_continue_as_new_keeps_signals_that_were_not_taken() -> None:
    """FV-18."""

    async def flow(ctx: WorkflowContext, n: Any) -> Any:
        await ctx.signal("next")
        ctx.continue_as_new(n + 1)

    run = Run(flow)
    await run.start(1)
    await run.tell(EntryType.SIGNALLED, name="other", value="kept")
    await run.tell(EntryType.SIGNALLED, name="next")
    assert run.end == End(EndType.CONTINUED, 2, signals=(("other", "kept"),))
    await run.check()
    await run.tell(EntryType.SIGNALLED, name="late", value="kept too")
    assert run.end == End(EndType.CONTINUED, 2, signals=(("other", "kept"), ("late", "kept too")))


async def test_what_is_not_of_the_workflow_is_refused_clearly() -> None:
    """FV-18: code that waits for the worker's own loop fails, and does not hang."""
    foreign: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def flow(ctx: WorkflowContext, _: Any) -> Any:
        await foreign

    run = Run(flow)
    await run.start()
    assert run.end is not None
    assert run.end.type is EndType.FAILED
    assert "different loop" in run.end.message


async def test_what_a_workflow_cannot_do_is_said() -> None:
    """FV-18: with what to do in its place."""

    async def flow(ctx: WorkflowContext, _: Any) -> Any:
        await asyncio.open_connection("127.0.0.1", 1)

    run = Run(flow)
    await run.start()
    text = "workflow code has no sockets, processes and threads (create_connection): do this in a task"
    assert run.end == End(EndType.FAILED, code="NotImplementedError", message=text)
    await run.check()


async def test_a_fault_of_the_code_is_logged_once_with_its_place(caplog: pytest.LogCaptureFixture) -> None:
    """FV-18: where it happens, and not where it is led through its history again; without words, its kind is told."""

    async def flow(ctx: WorkflowContext, _: Any) -> Any:
        await ctx.task("pay")
        raise TimeoutError

    run = Run(flow)
    await run.start()
    await run.done(1)
    assert run.end == End(EndType.FAILED, code="TimeoutError", message="TimeoutError")
    await run.check()
    (record,) = caplog.records
    assert record.getMessage() == f"run {RUN} of workflow flow failed"
    assert "raise TimeoutError" in caplog.text


def test_the_commands_of_a_report_are_readable() -> None:
    """FV-18."""
    assert str(Command(3, 7, CommandType.TASK, "pay")) == "3. TASK 'pay'"
    assert str(Command(4, 7, CommandType.CANCEL, step=3)) == "4. CANCEL of 3"


async def test_mended_code_goes_on_where_it_failed() -> None:
    """FV-9: what is recorded at the event it failed at has to be done again; behind it the code may do more."""

    async def broken(ctx: WorkflowContext, _: Any) -> Any:
        await ctx.run(lambda: 1, "one")
        raise ValueError("a bug")

    async def mended(ctx: WorkflowContext, _: Any) -> Any:
        await ctx.run(lambda: 2, "one")
        await ctx.run(lambda: 3, "two")
        await ctx.task("more")

    run = Run(broken)
    await run.start()
    assert run.over
    again = instance_of(mended)
    await again.apply(run.history.entries[0], run.history.recorded[1], replaying=False)
    assert [str(each) for each in again.new] == ["2. RECORD 'two'", "3. TASK 'more'"]
    assert again.new[0].value == 3
    again.discard()
