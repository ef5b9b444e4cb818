"""The environment for users' tests: workflows as documents, with fakes for what their steps do."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from millstream.sdk import Context, MillstreamError, PayloadError, TaskError, Worker, WorkflowContext
from millstream.testing import Blocked, Environment, RunFailed

worker = Worker()


@worker.task("add")
async def add(n: int) -> int:
    """A handler that runs as it is."""
    return n + 1


@worker.agent(consumes="Note", publishes="Reply", name="echo")
async def echo(note: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """An agent that runs as it is."""
    return "Reply", {"re": note["text"]}


@worker.workflow("by-code")
async def by_code(ctx: WorkflowContext, n: int) -> Any:
    """Begins a document."""
    return await ctx.child("sum", {"n": n})


SUM = {
    "name": "sum",
    "input_schema": {"type": "object", "required": ["n"]},
    "steps": [{"id": "add", "kind": "task", "task": "add", "input": "${input.n}"}],
}


def steps(*given: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A workflow called "it"."""
    return {"name": "it", "steps": [*given], **fields}


async def test_a_document_runs_with_the_workers_handlers() -> None:
    """Its input is checked by its schema; code begins it as a child."""
    async with Environment(worker) as env:
        await env.define(SUM)
        assert await env.execute("sum", {"n": 1}) == 2
        assert await env.execute("by-code", 5) == 6
        with pytest.raises(MillstreamError, match=r"VALIDATION_ERROR: input: .*n"):
            await env.execute("sum", {})


async def test_documents_come_as_text_and_files(tmp_path: Path) -> None:
    """JSON, YAML, and files of these, with several in one."""
    (tmp_path / "sum.json").write_text(json.dumps(SUM))
    text = "\n---\n".join(f"name: {name}\nsteps: [{{id: a, kind: sleep, seconds: 1}}]" for name in ("two", "three"))
    async with Environment(worker) as env:
        await env.define(tmp_path / "sum.json", text)
        assert await env.execute("sum", {"n": 1}) == 2
        assert await env.execute("three") is None
        with pytest.raises(PayloadError, match="twice"):
            await env.define("name: a\nname: b")


async def test_what_is_wrong_with_a_document_is_told_by_field() -> None:
    """All of it at once, as the service does."""
    async with Environment() as env:
        with pytest.raises(MillstreamError) as refused:
            await env.define(steps({"id": "a", "kind": "task"}, {"id": "b", "kind": "sleep", "seconds": "${inpt.x}"}))
    assert refused.value.code == "VALIDATION_ERROR"
    assert "steps[0].task: is required" in refused.value.message
    assert "steps[1].seconds: uses 'inpt'" in refused.value.message


async def test_a_changed_document_is_the_next_version() -> None:
    """The same once more is none; a run may ask for the one before."""
    async with Environment(worker) as env:
        await env.define(SUM, SUM)
        changed = {**SUM, "output": {"sum": "${steps.add.output}"}}
        await env.define(changed)
        assert await env.execute("sum", {"n": 1}) == {"sum": 2}
        assert await env.execute("sum", {"n": 1}, version="1") == 2
        with pytest.raises(MillstreamError, match="there are: sum@1, sum@2, by-code@1"):
            await env.execute("sum", {"n": 1}, version="3")


async def test_pauses_and_time_outs_take_no_time() -> None:
    """A sleep of a day, an attempt that never ends, and a run that takes too long."""
    async with Environment(worker) as env:
        env.fake_task("hang", None, takes=None)
        await env.define(steps({"id": "pause", "kind": "sleep", "seconds": 86_400}))
        began = env.now
        await env.execute("it")
        assert env.now - began == timedelta(days=1)
        limits = {"start_to_close": 30}
        hang = {"id": "hang", "kind": "task", "task": "hang", "timeouts": limits, "retry": {"max_attempts": 2}}
        await env.define(steps(hang))
        with pytest.raises(RunFailed, match="step hang: the attempt took longer than 30 s"):
            await env.execute("it")
        await env.define(steps({"id": "pause", "kind": "sleep", "seconds": 86_400}, timeout=60))
        run = await env.start("it")
        with pytest.raises(RunFailed, match="longer than 60 s") as failed:
            await run.result()
        assert (failed.value.code, (await run.steps())["pause"].status) == ("RUN_TIMEOUT", "CANCELLED")
        with pytest.raises(RunFailed, match="longer than 5 s"):
            await env.execute("it", timeout=5)


async def test_what_was_done_is_undone_in_reverse() -> None:
    """The fakes see what they are given."""
    undone: list[Any] = []
    done = [
        {"id": name, "kind": "task", "task": "do", "needs": needs, "on_failure": {"compensate": f"undo_{name}"}}
        for name, needs in (("a", []), ("b", ["a"]))
    ]
    undoing = [
        {"id": f"undo_{name}", "kind": "task", "task": "undo", "input": f"${{'{name} ' + steps.{name}.output}}"}
        for name in "ab"
    ]
    async with Environment() as env:
        env.fake_task("do", "done")
        env.fake_task("undo", undone.append)
        env.fake_task("fail", TaskError("NO", "not today", retryable=False))
        await env.define(steps(*done, *undoing, {"id": "c", "kind": "task", "task": "fail", "needs": ["b"]}))
        run = await env.start("it")
        with pytest.raises(RunFailed, match="step c: not today"):
            await run.result()
        assert undone == ["b done", "a done"]
        assert {name: each.status for name, each in (await run.steps()).items()} == {
            "a": "COMPLETED", "b": "COMPLETED", "undo_a": "COMPLETED", "undo_b": "COMPLETED", "c": "FAILED",
        }  # fmt: skip


async def test_agents_are_run_and_told_of_what_is_published() -> None:
    """A worker's agent, and fakes; what they make is the step's."""
    ask = {"id": "ask", "kind": "agent", "agent": "echo", "input": {"type": "Note", "payload": {"text": "hi"}}}
    tell = {
        "id": "tell",
        "kind": "publish",
        "type": "Note",
        "payload": {"text": "to all"},
        "needs": ["ask"],
        "wait": True,
    }
    async with Environment(worker) as env:
        env.fake_agent("count", ["Reply"], lambda reply: ("Count", {"of": len(reply["re"])}))
        await env.define(steps(ask, tell, output="${steps.ask.output.artifacts.map(a, a.type)}"))
        assert await env.execute("it") == ["Reply", "Count"]
        assert [(each.type, each.by) for each in env.published] == [
            ("Note", ""), ("Reply", "echo"), ("Count", "count"),
            ("Note", ""), ("Reply", "echo"), ("Count", "count"),
        ]  # fmt: skip
        assert env.published[-1].payload == {"of": 6}


async def test_promises_are_settled_by_key_or_name() -> None:
    """From the test; without that, the run is blocked, or its promise times out."""
    ask = {"id": "ask", "kind": "wait_promise", "promise": "approval", "timeout": 60}
    async with Environment() as env:
        await env.define(steps(ask))
        run = await env.start("it")
        await env.resolve("approval", {"by": "Ann"})
        assert await run.result() == {"by": "Ann"}
        with pytest.raises(RunFailed) as failed:
            await env.execute("it")
        assert failed.value.code == "PROMISE_TIMEOUT"
        run = await env.start("it")
        await env.reject("approval", "NO", "not today")
        with pytest.raises(RunFailed, match="step ask: not today"):
            await run.result()
        with pytest.raises(MillstreamError, match="no open promise with the key 'approval'"):
            await env.resolve("approval")


async def test_a_step_that_nobody_does_blocks() -> None:
    """Until there is somebody."""
    async with Environment() as env:
        await env.define(steps({"id": "a", "kind": "task", "task": "nobody"}))
        run = await env.start("it")
        with pytest.raises(Blocked, match=r"waits for 1. the task 'nobody' \(no handler"):
            await run.result()
        env.fake_task("nobody", lambda _, ctx: ctx.attempt)
        assert await run.result() == 1


async def test_a_map_works_on_so_many_items_at_once() -> None:
    """By its own bound, and by that of a key."""
    ended: list[int] = []

    def busy(_: Any) -> int:
        ended.append(1)
        return len(ended)

    task = {"kind": "task", "task": "busy"}
    bounded = {**task, "concurrency": {"key": "k", "limit": 2}}
    for width, each in ((2, task), (100, bounded)):
        ended.clear()
        async with Environment() as env:
            env.fake_task("busy", busy, takes=10)
            await env.define(
                steps({"id": "m", "kind": "map", "over": "[1, 2, 3, 4, 5]", "each": each, "concurrency": width})
            )
            run = await env.start("it")
            for done in (2, 4, 5):
                await env.sleep(10)
                assert len(ended) == done
            assert await run.result() == [1, 2, 3, 4, 5]


async def test_a_branch_and_an_empty_map_are_known_after_a_pause() -> None:
    """Nothing is stored of steps that end without a task: they are found out again by whoever goes on."""
    size = {"id": "size", "kind": "branch", "branches": [{"name": "big", "when": "input > 1.0"}]}
    none = {
        "id": "none",
        "kind": "map",
        "over": "[]",
        "each": {"kind": "task", "task": "add"},
        "output": "${size(result)}",
    }
    pause = {"id": "pause", "kind": "sleep", "seconds": 60, "needs": ["size", "none"]}
    last = {"id": "last", "kind": "task", "task": "add", "needs": ["pause"], "input": "${steps.none.output}"}
    output = ["${steps.size.output.case}", "${steps.none.output}", "${steps.last.output}"]
    async with Environment(worker) as env:
        await env.define(steps(size, none, pause, last, output=output))
        run = await env.start("it", 5)
        assert await run.result() == ["big", 0, 1]
        assert (await run.steps())["size"].output == {"case": "big"}


async def test_equal_tests_go_the_same_way() -> None:
    """Ids, chance and times are the same each time."""
    found = []
    for _ in range(2):
        tries: list[Any] = []

        async def flaky(_: Any, ctx: Context, tries: list[Any] = tries) -> str:
            tries.append((ctx.task_id, env.now))
            if len(tries) < 3:
                raise ConnectionError("down")
            return ctx.task_id

        async with Environment() as env:
            env.fake_task("flaky", lambda given, ctx: flaky(given, ctx))
            await env.define(steps({"id": "a", "kind": "task", "task": "flaky"}))
            run = await env.start("it")
            found.append((await run.result(), run.run_id, run.events, tries))
    assert found[0] == found[1]


async def test_code_is_bounded_in_time() -> None:
    """The run fails, and its code may clean up."""
    own, cleaned = Worker(), []

    @own.workflow("slow")
    async def slow(ctx: WorkflowContext) -> None:
        try:
            await ctx.sleep(3600)
        finally:
            cleaned.append(ctx.cancelled)

    async with Environment(own) as env:
        run = await env.start("slow", timeout=60)
        with pytest.raises(RunFailed, match="longer than 60 s") as failed:
            await run.result()
        assert (run.status, failed.value.code) == ("FAILED", "RUN_TIMEOUT")
    assert cleaned[0] is True
