"""The environment for users' tests: workflows in process, with time that skips."""

import asyncio
import json
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from millstream.sdk import MillstreamError, RetryPolicy, StepFailed, TaskError, Timeouts, Worker, WorkflowContext
from millstream.testing import (
    Blocked,
    Environment,
    HistoriesDiffer,
    History,
    NonDeterminism,
    RunFailed,
    replay,
    replay_all,
    stored_runs,
)

worker = Worker()
CHANGED: list[str] = []


class Order(BaseModel):
    """What is ordered."""

    id: int
    amount: float = 1


@worker.task("pay")
async def pay(order: Order) -> str:
    """Take the money."""
    if order.amount < 0:
        raise TaskError("DECLINED", "a negative amount", retryable=False)
    return f"paid {order.id}"


@worker.task("count")
def count(n: int) -> int:
    """In a thread."""
    return n + 1


@worker.workflow("order")
async def order(ctx: WorkflowContext, given: Order) -> dict[str, Any]:
    """Pay, then wait a day."""
    paid = await ctx.task("pay", given.model_dump())
    ctx.state["paid"] = paid
    began = ctx.now
    await ctx.sleep(timedelta(days=1))
    return {"paid": paid, "days": (ctx.now - began).days, "counted": await ctx.task("count", 1)}


@worker.workflow("parent")
async def parent(ctx: WorkflowContext, given: Any) -> Any:
    """Of an order."""
    return await ctx.child("order", given)


@worker.workflow("approval")
async def approval(ctx: WorkflowContext) -> Any:
    """Wait for a promise, then a signal."""
    said = await ctx.promise("approve", "approval-1", timeout=3600)
    return [said, await ctx.signal("go")]


@worker.workflow("careful")
async def careful(ctx: WorkflowContext, kind: str) -> str:
    """Clean up whatever comes."""
    try:
        await ctx.task(kind, timeouts=Timeouts(start_to_close=30), retry=RetryPolicy(max_attempts=2))
    except StepFailed as error:
        return error.code
    finally:
        await ctx.task("tidy")
    return "well"


@worker.workflow("loop")
async def loop(ctx: WorkflowContext, left: int) -> str:
    """Begin anew."""
    if left:
        await ctx.signal("next")
        ctx.continue_as_new(left - 1)
    return "over"


@worker.workflow("changing")
async def changing(ctx: WorkflowContext) -> str:
    """Another task where CHANGED."""
    return str(await ctx.task("b" if CHANGED else "a"))


@worker.workflow("announce")
async def announce(ctx: WorkflowContext) -> None:
    """Publish."""
    ctx.publish(("Order", {"id": 1}), tags=["new"])


async def test_a_day_passes_at_once() -> None:
    """The real handlers run, one of them in a thread, and the clock goes on by what the run slept."""
    async with Environment(worker) as env:
        began = env.now
        assert await env.execute("order", {"id": 7}) == {"paid": "paid 7", "days": 1, "counted": 2}
        assert env.now - began == timedelta(days=1)


async def test_time_stands_until_somebody_waits() -> None:
    """A run that was begun stands before its sleep until the test lets time pass."""
    async with Environment(worker) as env:
        run = await env.start("order", {"id": 7})
        assert (run.status, run.state) == ("RUNNING", {"paid": "paid 7"})
        await env.sleep(86_399)
        assert run.status == "RUNNING"
        await env.sleep(1)
        assert run.status == "COMPLETED"


async def test_failures_come_with_their_code() -> None:
    """What nobody catches fails the run, and the run that waits for it."""
    async with Environment(worker) as env:
        for workflow in ("order", "parent"):
            with pytest.raises(RunFailed) as failed:
                await env.execute(workflow, {"id": 7, "amount": -1})
            assert failed.value.code == "DECLINED"
        with pytest.raises(MillstreamError) as refused:
            await env.execute("order", {"id": "seven"})
        assert refused.value.code == "VALIDATION_ERROR"
        with pytest.raises(MillstreamError, match="there are: order@1"):
            await env.execute("ordr")


async def test_a_fake_is_tried_again_by_the_policy() -> None:
    """Two failures wait 1 s and 2 s, give or take the jitter; a fake comes before the worker's handler."""
    tries = []

    def flaky(_: Any) -> str:
        tries.append(env.now)
        if len(tries) < 3:
            raise ConnectionError("down")
        return "paid at last"

    async with Environment(worker) as env:
        env.fake_task("pay", flaky)
        assert (await env.execute("order", {"id": 7}))["paid"] == "paid at last"
    waits = [(later - earlier).total_seconds() for earlier, later in pairwise(tries)]
    assert waits == [pytest.approx(1, rel=0.11), pytest.approx(2, rel=0.11)]


async def test_a_task_that_never_ends_times_out() -> None:
    """Both attempts, of 30 s each; then the code cleans up."""
    async with Environment(worker) as env:
        env.fake_task("hang", None, takes=None)
        env.fake_task("tidy", None)
        began = env.now
        assert await env.execute("careful", "hang") == "START_TO_CLOSE_TIMEOUT"
        assert env.now - began >= timedelta(seconds=61)


async def test_promises_and_signals_come_from_the_test() -> None:
    """Without them the run is blocked, and says for what."""
    async with Environment(worker) as env:
        run = await env.start("approval")
        await env.resolve("approval-1", {"by": "Ann"})
        with pytest.raises(Blocked, match="waits for a signal"):
            await run.result()
        await run.signal("go", 5)
        assert await run.result() == [{"by": "Ann"}, 5]
        with pytest.raises(MillstreamError, match="has ended"):
            await run.signal("go")
        with pytest.raises(RunFailed) as failed:
            await env.execute("approval")
        assert failed.value.code == "PROMISE_TIMEOUT"
        run = await env.start("approval")
        await env.reject("approval-1", "NO", "not today")
        with pytest.raises(RunFailed, match="not today"):
            await run.result()


async def test_a_kind_without_handler_blocks() -> None:
    """The error names the kind, and what to do."""
    async with Environment(worker) as env:
        with pytest.raises(Blocked, match="the task 'nobody' \\(no handler"):
            await env.execute("careful", "nobody")


async def test_a_cancelled_run_may_clean_up() -> None:
    """Within the grace; beyond, it ends all the same."""
    done: list[int] = []
    for takes, tidied in ((1, 1), (None, 1)):
        async with Environment(worker) as env:
            env.fake_task("hang", None, takes=None)
            env.fake_task("tidy", lambda _: done.append(1), takes=takes)
            run = await env.start("careful", "hang")
            await run.cancel("enough")
            with pytest.raises(RunFailed, match="enough"):
                await run.result()
            assert (run.status, len(done)) == ("CANCELLED", tidied)


async def test_a_run_begins_anew_with_the_signals_it_has_not_taken() -> None:
    """Same run, same id."""
    async with Environment(worker) as env:
        run = await env.start("loop", 2)
        await asyncio.gather(run.signal("next"), run.signal("next"))
        assert await run.result() == "over"


async def test_what_is_published_reaches_fake_agents() -> None:
    """And what these make of it is published too."""
    async with Environment(worker) as env:
        env.fake_agent("billing", "Order", lambda found: ("Invoice", {"order": found["id"]}))
        await env.execute("announce")
        assert [(each.type, each.by) for each in env.published] == [("Order", ""), ("Invoice", "billing")]
        assert env.published[1].payload == {"order": 1}


async def test_changed_code_is_found_by_a_replay() -> None:
    """The error shows both histories; so does one exported as JSON."""
    async with Environment(worker) as env:
        env.fake_task("a", "done")
        run = await env.start("changing")
        assert await run.result() == "done"
        told = run.history
    await replay(told, worker)
    await replay(told.to_dict(), changing)
    assert History.from_dict(told.to_dict()) == told
    CHANGED.append("yes")
    try:
        with pytest.raises(NonDeterminism) as found:
            await replay(told, worker)
    finally:
        CHANGED.clear()
    assert "history: 1. TASK 'a'" in found.value.message
    assert "code:    1. TASK 'b'" in found.value.message


async def test_a_folder_of_stored_runs_is_replayed_in_one_call(tmp_path: Path) -> None:
    """Each that does not fit is named, with the first place where the code goes another way, and what came before."""
    async with Environment(worker) as env:
        env.fake_task("a", "done")
        for name in ("first", "second"):
            run = await env.start("changing")
            await run.result()
            (tmp_path / f"{name}.json").write_text(json.dumps(run.history.to_dict()))
        ordered = await env.start("order", {"id": 7})
        await ordered.result()
        (tmp_path / "below").mkdir()
        (tmp_path / "below" / "order.json").write_text(json.dumps(ordered.history.to_dict()))
    assert await replay_all(tmp_path, worker) == 3
    assert await replay_all(tmp_path / "first.json", worker) == 1
    assert [each.name for each in stored_runs(tmp_path)] == ["order.json", "first.json", "second.json"]

    async def changed(ctx: WorkflowContext, given: Any) -> None:
        await ctx.task("pay", given)
        await ctx.task("count", 1)

    own = Worker()
    own.workflow("order")(changed)
    with pytest.raises(HistoriesDiffer) as found:
        await replay_all(tmp_path, own)
    told = str(found.value)
    assert told.startswith("3 of 3 stored runs do not fit the code")
    assert f"order.json: run {ordered.run_id} of order@1: the history has 2. STATE 'paid', and the code 2. TASK" in told
    assert "(after event 4: COMPLETED of 1. TASK 'pay')" in told
    assert "the history is one of workflow:changing@1" in told
    assert {path.name for path in found.value.faults} == {"order.json", "first.json", "second.json"}
    (tmp_path / "broken.json").write_text("[]")
    with pytest.raises(HistoriesDiffer, match=r"(?s)1 of 4.*broken.json: .*must be a JSON object"):
        await replay_all(tmp_path, worker)
    with pytest.raises(FileNotFoundError, match="no histories"):
        await replay_all(tmp_path / "nowhere", worker)


async def test_code_that_goes_another_way_each_time_fails_at_its_end() -> None:
    """Every run is led through its history once more."""
    chance = iter("abcdef")
    own = Worker()

    @own.workflow("chancy")
    async def chancy(ctx: WorkflowContext) -> None:
        await ctx.task(next(chance))

    async with Environment(own) as env:
        for kind in "abcdef":
            env.fake_task(kind, None)
        with pytest.raises(NonDeterminism):
            await env.execute("chancy")
    async with Environment(own, replays=False) as env:
        env.fake_task("c", None)
        await env.execute("chancy")


async def test_a_history_of_a_workflow_that_is_not_there_says_so() -> None:
    """With what there is."""
    told = History("id", "gone", "2", 0, 1, [])
    with pytest.raises(LookupError, match="workflow:gone@2"):
        await replay(told, worker)
    with pytest.raises(MillstreamError, match="'items' is missing"):
        await replay({"run_id": "", "workflow": "", "version": ""}, worker)
