"""A worker process whose workflows use everything that `ctx` offers, for the comparison of the environment for tests
with the service. Times are short, because the service waits for them."""

import asyncio
import os
from datetime import timedelta
from typing import Any

from pydantic import BaseModel

from millstream.sdk import Context, RetryPolicy, StepFailed, TaskError, Timeouts, Worker, WorkflowContext

worker = Worker(
    os.environ.get("MILLSTREAM_TARGET", "127.0.0.1:1"), name=os.environ.get("WORKER_NAME", ""), slots=100
)  # fmt: skip
SOON = RetryPolicy(initial_interval=0.01, jitter=0)
ONCE = RetryPolicy(max_attempts=1)


class KitNote(BaseModel):
    """What is published."""

    text: str


class KitReply(BaseModel):
    """What an agent makes of it."""

    text: str


class KitOrder(BaseModel):
    """What a task or a child is given."""

    id: int
    amount: float = 1.0


@worker.agent(consumes=KitNote, publishes=KitReply, name="kit-echo")
async def echo(note: KitNote) -> KitReply:
    """Answer."""
    return KitReply(text=f"re: {note.text}")


@worker.agent(consumes=KitReply, name="kit-broken", retry=RetryPolicy(max_attempts=1), from_agents=["nobody"])
async def broken(reply: KitReply) -> None:
    """Fail."""
    raise TaskError("BROKEN", "it is", retryable=False)


@worker.task("kit.add")
async def add(n: int) -> int:
    """Something that takes no time."""
    return n + 1


@worker.task("kit.flaky")
async def flaky(fails: int, ctx: Context) -> str:
    """Fail so often."""
    if ctx.attempt <= fails:
        raise ConnectionError(f"attempt {ctx.attempt}")
    return f"attempt {ctx.attempt}"


@worker.task("kit.refuse")
async def refuse(code: str) -> None:
    """Fail with a code: finally, where it says so."""
    raise TaskError(code, f"said {code}", retryable=code == "AGAIN")


@worker.task("kit.strict")
async def strict(order: KitOrder) -> dict[str, Any]:
    """Take what fits."""
    return order.model_dump()


@worker.task("kit.hang")
async def hang(_: Any) -> None:
    """Never end."""
    await asyncio.Event().wait()


async def failing(step: Any) -> str:
    """What a step fails with."""
    try:
        await step
    except StepFailed as error:
        return error.code if error.code == "NOT_FOUND" else f"{error.code}: {error.message}"
    return "did not fail"


@worker.workflow("kit.policies")
async def policies(ctx: WorkflowContext) -> list[Any]:
    """Retries, and codes that end them."""
    return [
        await ctx.task("kit.flaky", 2, retry=SOON),
        await failing(ctx.task("kit.flaky", 9, retry=RetryPolicy(max_attempts=2, initial_interval=0.01))),
        await failing(ctx.task("kit.refuse", "NEVER")),
        await failing(
            ctx.task("kit.refuse", "AGAIN", retry=RetryPolicy(initial_interval=0.01, non_retryable_codes=["AGAIN"]))
        ),
        await failing(ctx.task("kit.strict", {"id": "seven"})),
        await ctx.task("kit.strict", {"id": 7}, returns=KitOrder) == KitOrder(id=7),
        await ctx.task("kit.add", 1, delay=0.05, priority=5, labels={"a": "b"}),
    ]


@worker.workflow("kit.timeouts")
async def timeouts(ctx: WorkflowContext) -> list[Any]:
    """Of attempts, and of what nobody takes."""
    late = Timeouts(start_to_close=0.1)
    return [
        await failing(
            ctx.task(
                "kit.hang", timeouts=late, retry=RetryPolicy(max_attempts=2, initial_interval=0.01)
            )
        ),
        await failing(ctx.task("kit.nobody", timeouts=Timeouts(schedule_to_start=0.1))),
    ]  # fmt: skip


@worker.workflow("kit.gather")
async def gather(ctx: WorkflowContext, how: str) -> Any:
    """Several things at once; `how`: "all", "each" or "first" failure."""
    steps = [ctx.task("kit.add", 1), ctx.sleep(0.1), ctx.task("kit.refuse", "NO") if how != "all" else ctx.sleep(0.2)]
    if how == "each":
        *done, failed = await ctx.gather(*steps, return_exceptions=True)
        return [*done, failed.code]
    return await ctx.gather(*steps)


@worker.workflow("kit.sleep")
async def sleep(ctx: WorkflowContext) -> list[Any]:
    """Timers, one after the other, at once, and given up."""
    began = ctx.now
    await ctx.sleep(timedelta(milliseconds=100))
    order: list[str] = []

    async def after(seconds: float, name: str) -> None:
        await ctx.sleep(seconds)
        order.append(name)

    await ctx.gather(after(0.2, "second"), after(0.05, "first"), after(0, "at once"))
    try:
        async with asyncio.timeout(0.05):
            await ctx.task("kit.hang", retry=ONCE)
    except TimeoutError:
        order.append("timed out")
    given_up = asyncio.ensure_future(ctx.sleep(60))
    await ctx.sleep(0.01)
    given_up.cancel()
    await asyncio.sleep(0.01)
    return [*order, ctx.now - began > timedelta(milliseconds=300), ctx.commands]


@worker.workflow("kit.child")
async def child(ctx: WorkflowContext, how: str) -> Any:
    """What others begin: "well", "badly", "waits"."""
    if how == "badly":
        raise TaskError("CHILD_SAD", "it went badly")
    if how == "waits":
        await ctx.signal("never")
    return {"how": how, "added": await ctx.task("kit.add", 1)}


@worker.workflow("kit.children")
async def children(ctx: WorkflowContext, how: str) -> Any:
    """Children that end before it, after it, or not at all."""
    if how == "ends first":
        ctx.child("kit.child", "waits")
        ctx.child("kit.child", "well", on_close="abandon")
        await ctx.task("kit.add", 1)
        return "ended"
    if how == "gives up":
        step = ctx.child("kit.child", "waits")
        await ctx.task("kit.add", 1)
        step.cancel()  # type: ignore[attr-defined]
        return await ctx.task("kit.add", 2)
    if how == "fails":
        return await ctx.child("kit.child", "badly")
    return [
        await ctx.child("kit.child", "well", version="1", labels={"of": "kit"}),
        await failing(ctx.child("kit.child", "badly")),
        await failing(ctx.child("kit.nobody")),
        await failing(ctx.child("kit.child", "well", version="9")),
    ]


@worker.workflow("kit.promises")
async def promises(ctx: WorkflowContext, key: str) -> list[Any]:
    """One that nobody settles, one whose key is taken, and two that are settled from outside."""
    first = ctx.promise("one", f"{key}-1")
    found = [await failing(ctx.promise("late", timeout=0.1)), await failing(ctx.promise("two", f"{key}-1"))]
    ctx.state["ready"] = True
    found.append(await first)
    given_up = ctx.promise("given up", f"{key}-2")
    given_up.cancel()
    await ctx.task("kit.add", 1)
    return [*found, await failing(ctx.promise("again", f"{key}-2"))]


@worker.workflow("kit.signals")
async def signals(ctx: WorkflowContext) -> list[Any]:
    """Those that came before, those that come later, and one that does not."""
    found = [await ctx.signal("one"), await ctx.signal("two")]
    try:
        await ctx.signal("three", timeout=0.1)
    except TimeoutError:
        found.append("none")
    ctx.state["ready"] = True
    return [*found, await ctx.signal("four"), await ctx.signal("one")]


@worker.workflow("kit.publish")
async def publish(ctx: WorkflowContext) -> str:
    """An artifact."""
    ctx.publish(KitNote(text="hello"), tags=["kit"])
    ctx.publish(("KitNote", {"text": "again"}))
    return str(await ctx.task("kit.add", 1))


@worker.workflow("kit.recorded")
async def recorded(ctx: WorkflowContext) -> list[Any]:
    """What is recorded, and what is the same in each replay."""

    def broken() -> None:
        raise ValueError("broken")

    async def side_effect() -> dict[str, Any]:
        return {"from": "outside"}

    ctx.state["stage"] = "first"
    ctx.state["gone"] = 1
    del ctx.state["gone"]
    made: list[Any] = [await ctx.run(side_effect), await ctx.run(lambda: [1, 2], "in a thread")]
    made.append(await failing(ctx.run(broken)))
    if ctx.patched("kit-change"):
        made.append(await ctx.task("kit.add", 41))
    made += [ctx.patched("kit-change"), str(ctx.uuid()), ctx.random.random(), ctx.version, ctx.workflow, ctx.long]
    before = ctx.now
    await ctx.sleep(0.01)
    ctx.log.info("said once")
    return [*made, ctx.now > before, ctx.run_id != "", dict(ctx.state)]


@worker.workflow("kit.anew")
async def anew(ctx: WorkflowContext, left: int) -> Any:
    """Begin anew, with the signals that were not taken, and without what was remembered."""
    first = await ctx.signal("next")
    ctx.state[f"left {left}"] = True
    if left:
        ctx.sleep(60)
        ctx.continue_as_new(left - 1)
    return [first, await ctx.signal("other"), len(ctx.state), ctx.commands]


@worker.workflow("kit.careful")
async def careful(ctx: WorkflowContext, how: str) -> Any:
    """What is cancelled: "cleans up", "goes on", "never ends", "fails"."""
    try:
        await ctx.gather(ctx.task("kit.hang"), ctx.sleep(60), ctx.promise("open"), ctx.child("kit.child", "waits"))
    except asyncio.CancelledError:
        ctx.state["cancelled"] = ctx.cancelled
        if how == "cleans up":
            # Later than what was cancelled has ended.
            await ctx.task("kit.add", 1, delay=0.2)
            raise
        if how == "fails":
            raise TaskError("SAD", "failed while it cleaned up") from None
        if how == "never ends":
            await ctx.signal("never")
    return "went on"


@worker.workflow("kit.raises")
async def raises(ctx: WorkflowContext, how: str) -> None:
    """Ends of its own making."""
    if how == "cancels itself":
        raise asyncio.CancelledError
    if how == "error":
        raise ValueError("no value")
    await ctx.task("kit.refuse", how)


@worker.workflow("kit.pinned", version="1")
async def pinned_1(ctx: WorkflowContext) -> str:
    """The version before."""
    return f"{ctx.version}: {await ctx.task('kit.add', 1)}"


@worker.workflow("kit.pinned", version="2")
async def pinned_2(ctx: WorkflowContext) -> list[Any]:
    """The version after, which begins the one before."""
    return [ctx.version, await ctx.child("kit.pinned", version="1")]


@worker.workflow("kit.documents")
async def documents(ctx: WorkflowContext, n: int) -> list[Any]:
    """Code that begins documents."""
    return [await ctx.child("kit-small", {"n": n}), await failing(ctx.child("kit-small", {"n": "five"}))]


if __name__ == "__main__":
    worker.run_forever()
