"""Runs of workflows: steps in the order of their needs, over two servers."""

import asyncio
from typing import Any

import pytest
from tests.engine.database import Database
from tests.engine.servers import Roles, eventually
from tests.engine.workers import Worker, done, failed
from tests.engine.world import (
    AT_ONCE,
    ROOT,
    agent,
    check_all,
    key,
    kinds_of,
    made,
    payload_of,
    register,
    seconds,
    types,
)

from millstream.application.paging import PageRequest
from millstream.application.views.leases import Lease
from millstream.application.views.promises import PromiseQuery, PromiseRef
from millstream.application.views.reports import AttemptFailure, Completion, Reports
from millstream.application.views.runs import RunQuery, RunResult
from millstream.application.views.steps import ItemCounts, StepView
from millstream.application.views.tasks import TaskQuery
from millstream.application.workflow_runs import NewRun
from millstream.domain.errors import LeaseLost, NotFound
from millstream.domain.promises import Resolution
from millstream.domain.retry import DEFAULT_RETRY, RetryPolicy, Timeouts
from millstream.domain.runs import Run, RunKind, RunStatus, TaskStatus
from millstream.domain.struct_wire import Json, decode_value, encode_value
from millstream.domain.workflows import Definition, OnFailure, Step, StepKind
from millstream.wiring import Service


def step(id_: str, *needs: str, **fields: Any) -> Step:
    """A task named as its step."""
    given: dict[str, Any] = {"kind": StepKind.TASK, "target": id_, "retry": AT_ONCE} | fields
    if given["kind"] is not StepKind.TASK:
        given["target"] = fields.get("target", "")
    return Step(id_, needs=needs, **given)


def define(roles: Roles, *steps: Step, **fields: Any) -> Definition:
    """A workflow that both servers know."""
    definition = Definition("w", steps, version=1, **fields)
    know(roles, definition)
    return definition


def know(roles: Roles, definition: Definition) -> None:
    """Let both servers know a workflow, as if it had been saved and read."""
    for service in (roles.publisher, roles.worker):
        workflows = service.workflows
        load, current = workflows.pinned, workflows.current

        async def pinned(tenant: str, name: str, version: str, load: Any = load) -> Definition:
            return (
                definition
                if (name, version) == (definition.name, str(definition.version))
                else await load(tenant, name, version)
            )

        async def latest(
            tenant: str, name: str, version: str = "", fresh: bool = False, current: Any = current,
            catalogs: Any = workflows._catalogs,
        ) -> tuple[Definition, int]:  # fmt: skip
            if name != definition.name:
                found: tuple[Definition, int] = await current(tenant, name, version, fresh)
                return found
            if not await catalogs.registry.version(tenant):
                # It has a version since something was saved.
                async with catalogs.registry.transaction(tenant):
                    pass
            return definition, (await catalogs.get(tenant, fresh)).version

        setattr(workflows, "pinned", pinned)  # noqa: B010  # a method, for the length of the test
        setattr(workflows, "current", latest)  # noqa: B010


async def execute(service: Service, input_: Json = None, timeout_s: float = 5.0) -> RunResult:
    """Run it to its end."""
    new = NewRun("w", input=encode_value(input_))
    return await service.workflow_runs.execute_sync(ROOT, new, None, timeout_s)


def adding(lease: Lease) -> Completion:
    """Answers with its kind and what it was given."""
    return done(lease, output=encode_value({"kind": lease.task.kind, "given": decode_value(lease.task.input)}))


def output_of(result: RunResult) -> Json:
    """What a completed run answered."""
    assert (result.run.status, result.run.error_message) == (RunStatus.COMPLETED, "")
    return decode_value(result.output)


async def test_steps_run_one_after_the_other(roles: Roles, database: Database) -> None:
    """WM-3, WM-5: each is given what its mapping says, and the run answers what the last made."""
    define(
        roles, step("a", input={"n": "${input.n}"}), step("b", "a", input="${steps.a.output.given.n + 1}"),
        step("c", "b", input={"all": "${[steps.a.output.given.n, steps.b.output.given]}"}),
    )  # fmt: skip
    async with Worker(roles.worker, kinds=["a", "b", "c"], handler=adding) as worker:
        result = await execute(roles.publisher, {"n": 1})
        assert output_of(result) == {"kind": "c", "given": {"all": [1, 2]}}
        assert [lease.task.kind for lease in worker.seen] == ["a", "b", "c"]
    run = result.run
    assert (run.kind, run.workflow, run.workflow_version) == (RunKind.GRAPH, "w", "1")
    assert await kinds_of(roles.worker, run.id) == [
        "RUN_CREATED", *["TASK_CREATED", "TASK_STARTED", "TASK_COMPLETED"] * 3, "RUN_COMPLETED",
    ]  # fmt: skip
    await check_all(database)


async def test_a_step_that_two_need_runs_before_both(roles: Roles, database: Database) -> None:
    """WM-2: a diamond; what joins waits for both, whichever ends first."""
    define(
        roles, step("a"), step("b", "a", input=1), step("c", "a", input=2),
        step("d", "b", "c", input={"b": "${steps.b.output}", "c": "${steps.c.output}"}), output="${steps.d.output}",
    )  # fmt: skip
    async with Worker(roles.worker, kinds=["a", "b", "c", "d"]) as worker:
        running = asyncio.create_task(execute(roles.publisher))
        await worker.complete(await worker.take())
        both = {lease.task.kind: lease for lease in (await worker.take(), await worker.take())}
        await worker.complete(both["c"], output=encode_value("c"))
        await worker.complete(both["b"], output=encode_value("b"))
        last = await worker.take()
        assert decode_value(last.task.input) == {"b": "b", "c": "c"}
        await worker.complete(last, output=encode_value("end"))
        assert output_of(await running) == "end"
    await check_all(database)


async def test_needs_that_end_in_one_message_start_what_joins_them(roles: Roles, database: Database) -> None:
    """Neither completion can bring the decision along; it follows."""
    define(roles, step("b"), step("c"), step("d", "b", "c", input={"b": "${steps.b.output}"}))
    async with Worker(roles.worker, kinds=["b", "c", "d"]) as worker:
        running = asyncio.create_task(execute(roles.publisher))
        both = [await worker.take(), await worker.take()]
        await worker.report(completions=[done(each, output=encode_value(each.task.kind)) for each in both])
        last = await worker.take()
        assert decode_value(last.task.input) == {"b": "b"}
        await worker.complete(last, output=encode_value("end"))
        assert output_of(await running) == "end"
    await check_all(database)


async def test_a_condition_skips_a_step_and_what_needs_it_alone(roles: Roles, database: Database) -> None:
    """WM-2: when; branch; the rest goes on."""
    define(
        roles,
        step("size", kind=StepKind.BRANCH, branches=(("big", "input.n > 10"), ("small", "input.n > 0"))),
        step("pack", "size", cases=(("size", "small"),)), step("ship", "size", cases=(("size", "big"),)),
        step("gift", "pack", when="input.n == 99"), step("wrap", "gift"), step("bill", "pack", "ship"),
    )  # fmt: skip
    async with Worker(roles.worker, kinds=["pack", "ship", "gift", "wrap", "bill"], handler=adding) as worker:
        result = await execute(roles.publisher, {"n": 5})
        assert output_of(result) == {"kind": "bill", "given": {"n": 5}}
        assert [lease.task.kind for lease in worker.seen] == ["pack", "bill"]
    assert (await kinds_of(roles.worker, result.run.id)).count("STEP_SKIPPED") == 3
    await check_all(database)


async def test_a_failed_step_fails_its_run(roles: Roles, database: Database) -> None:
    """WM-4: what ran beside it ends, what waited is cancelled, nothing new begins."""
    define(roles, step("a"), step("b"), step("late", kind=StepKind.SLEEP, sleep=1000.0), step("c", "a", "b"))
    async with Worker(roles.worker, kinds=["a", "b", "c"]) as worker:
        running = asyncio.create_task(execute(roles.publisher))
        found = {lease.task.kind: lease for lease in (await worker.take(), await worker.take())}
        await worker.fail(found["a"], "NO_FUNDS", retryable=False)
        await worker.complete(found["b"])
        run = (await running).run
    assert (run.status, run.error_code, run.error_message) == (RunStatus.FAILED, "NO_FUNDS", "step a: NO_FUNDS it is")
    tasks = await roles.publisher.runs.tasks(ROOT, TaskQuery(run_id=run.id), PageRequest())
    assert {task.kind: task.status for task in tasks.items} == {
        "a": TaskStatus.FAILED, "b": TaskStatus.COMPLETED, "sleep": TaskStatus.CANCELLED,
    }  # fmt: skip
    await check_all(database)


async def test_a_failure_may_be_gone_on_from(roles: Roles, database: Database) -> None:
    """on_failure continue: later steps see what went wrong."""
    define(
        roles, step("a", on_failure=OnFailure.CONTINUE),
        step("b", "a", input={"why": "${steps.a.error.code}", "status": "${steps.a.status}"}),
    )  # fmt: skip

    def answer(lease: Lease) -> Completion | AttemptFailure:
        return failed(lease, retryable=False) if lease.task.kind == "a" else adding(lease)

    async with Worker(roles.worker, kinds=["a", "b"], handler=answer):
        assert output_of(await execute(roles.publisher)) == {
            "kind": "b", "given": {"why": "BROKEN", "status": "FAILED"},
        }  # fmt: skip
    await check_all(database)


async def test_a_step_is_retried(roles: Roles, database: Database) -> None:
    """By its task's policy, before it counts as failed."""
    define(roles, step("a"))
    async with Worker(roles.worker, kinds=["a"]) as worker:
        running = asyncio.create_task(execute(roles.publisher))
        await worker.fail(await worker.take())
        again = await worker.take()
        assert again.attempt == 2
        await worker.complete(again, output=encode_value("ok"))
        assert output_of(await running) == "ok"
    await check_all(database)


async def test_what_was_done_is_undone_in_reverse(roles: Roles, database: Database) -> None:
    """on_failure compensate: each completed step's own, the latest first; the run fails for the first reason."""

    def undoing(id_: str, *needs: str) -> Step:
        return step(id_, *needs, on_failure=OnFailure.COMPENSATE, compensation=f"un{id_}")

    define(
        roles, undoing("fly"), undoing("sleep", "fly"), step("pay", "sleep"),
        step("unfly", input="${steps.fly.output.kind}"), step("unsleep", input="${steps.sleep.output.kind}"),
    )  # fmt: skip

    def answer(lease: Lease) -> Completion | AttemptFailure:
        return failed(lease, retryable=False) if lease.task.kind == "pay" else adding(lease)

    kinds = ["fly", "sleep", "pay", "unfly", "unsleep"]
    async with Worker(roles.worker, kinds=kinds, handler=answer) as worker:
        run = (await execute(roles.publisher)).run
        assert (run.status, run.error_code) == (RunStatus.FAILED, "BROKEN")
        assert [(lease.task.kind, decode_value(lease.task.input)) for lease in worker.seen][3:] == [
            ("unsleep", "sleep"), ("unfly", "fly"),
        ]  # fmt: skip
    await check_all(database)


@pytest.mark.parametrize("width", [1, 3, 100])
async def test_a_map_works_on_so_many_items_at_once(roles: Roles, database: Database, width: int) -> None:
    """As many as it says and no more, whichever ends first; an output for each item, in their order."""
    each = step("double", input={"n": "${item}", "at": "${index}"})
    define(roles, step("all", kind=StepKind.MAP, over="input.list", each=each, width=width))
    async with Worker(roles.worker, kinds=["double"]) as worker:
        running = asyncio.create_task(execute(roles.publisher, {"list": [*range(10)]}))
        left = 10
        while left:
            leases = await worker.take_many(min(width, left))
            left -= len(leases)
            run = await roles.publisher.runs.get(ROOT, leases[0].task.run_id)
            assert (run.open_tasks, run.task_count) == (len(leases), 10 - left)
            assert worker.leases.empty()
            await worker.report(completions=[done(one, output=one.task.input) for one in reversed(leases)])
        assert output_of(await running) == [{"n": n, "at": n} for n in range(10)]
        assert output_of(await execute(roles.publisher, {"list": []})) == []
        assert len(worker.seen) == 10
    await check_all(database)


@pytest.mark.parametrize("width", [1, 2])
async def test_a_map_stops_at_an_item_that_fails(roles: Roles, database: Database, width: int) -> None:
    """What runs goes on to its end, no other item begins, and the run says what went wrong."""
    define(roles, step("all", kind=StepKind.MAP, over="[1, 2, 3]", each=step("one"), width=width))
    async with Worker(roles.worker, kinds=["one"]) as worker:
        running = asyncio.create_task(execute(roles.publisher))
        leases = await worker.take_many(width)
        await worker.fail(leases[0], "NO_FUNDS", retryable=False)
        for lease in leases[1:]:
            await worker.complete(lease)
        run = (await running).run
        assert (run.status, run.error_code) == (RunStatus.FAILED, "NO_FUNDS")
        assert (run.error_message, run.task_count) == ("step all: NO_FUNDS it is", width)
    await check_all(database)


async def test_a_pause_is_over_by_itself(roles: Roles, database: Database) -> None:
    """Durable timers: no worker is needed for one."""
    define(roles, step("wait", kind=StepKind.SLEEP, sleep="input.s"), step("a", "wait", input="x"))
    async with Worker(roles.worker, kinds=["a"], handler=adding):
        assert output_of(await execute(roles.publisher, {"s": 0.02})) == {"kind": "a", "given": "x"}
    await check_all(database)


async def test_an_expression_without_a_value_fails_its_step(roles: Roles, database: Database) -> None:
    """Nothing hangs, and the error names the step and the place."""
    define(roles, step("a", input={"deep": {"x": "${input.missing.key}"}}))
    run = (await execute(roles.publisher, {})).run
    assert (run.status, run.error_code) == (RunStatus.FAILED, "EXPRESSION_ERROR")
    assert "step a: deep.x:" in run.error_message
    await check_all(database)


async def test_a_run_is_cancelled_with_its_steps(roles: Roles, database: Database) -> None:
    """WM-4: what waits ends at once, what runs is told, nothing follows."""
    define(roles, step("a"), step("wait", kind=StepKind.SLEEP, sleep=1000.0), step("b", "a"))
    async with Worker(roles.worker, kinds=["a", "b"]) as worker:
        running = asyncio.create_task(execute(roles.publisher))
        lease = await worker.take()
        run, _ = await roles.publisher.runs.cancel(ROOT, lease.task.run_id, "enough", None)
        assert run.status is RunStatus.CANCELLING
        await worker.told()
        await worker.complete(lease)
        assert (await running).run.status is RunStatus.CANCELLED
        assert worker.leases.empty()
    await check_all(database)


def define_child(roles: Roles, *steps: Step) -> None:
    """A workflow that others begin."""
    know(roles, Definition("child", steps, version=3))


async def test_a_step_is_a_run_of_another_workflow(roles: Roles, database: Database) -> None:
    """It has its own run, which names its parent; its answer is the step's output."""
    define_child(roles, step("a", input={"twice": "${input * 2}"}))
    define(
        roles, step("sub", kind=StepKind.WORKFLOW, target="child", input="${input.n}"),
        step("b", "sub", input="${steps.sub.output.given.twice}"),
    )  # fmt: skip
    async with Worker(roles.worker, kinds=["a", "b"], handler=adding) as worker:
        result = await execute(roles.publisher, {"n": 21})
        assert output_of(result) == {"kind": "b", "given": 42}
        child = await roles.publisher.runs.get(ROOT, worker.seen[0].task.run_id)
    assert (child.workflow, child.workflow_version, child.parent_id) == ("child", "3", result.run.id)
    assert child.status is RunStatus.COMPLETED
    await check_all(database)


async def test_a_failed_child_fails_its_step(roles: Roles, database: Database) -> None:
    """With the child's reason."""
    define_child(roles, step("a"))
    define(roles, step("sub", kind=StepKind.WORKFLOW, target="child"))
    async with Worker(roles.worker, kinds=["a"], handler=lambda lease: failed(lease, retryable=False)):
        run = (await execute(roles.publisher)).run
    assert (run.status, run.error_code) == (RunStatus.FAILED, "BROKEN")
    assert "step a: BROKEN it is" in run.error_message
    await check_all(database)


async def test_a_child_that_cannot_be_begun_fails_its_step(roles: Roles, database: Database) -> None:
    define(roles, step("sub", kind=StepKind.WORKFLOW, target="nobody"))
    run = (await execute(roles.publisher)).run
    assert (run.status, run.error_code) == (RunStatus.FAILED, "NOT_FOUND")
    await check_all(database)


async def test_children_are_cancelled_with_their_parent(roles: Roles, database: Database) -> None:
    """WM-4: cancel reaches running workers and children."""
    define_child(roles, step("a"), step("wait", kind=StepKind.SLEEP, sleep=1000.0))
    define(roles, step("sub", kind=StepKind.WORKFLOW, target="child"))
    async with Worker(roles.worker, kinds=["a"]) as worker:
        running = asyncio.create_task(execute(roles.publisher))
        lease = await worker.take()
        child = await roles.publisher.runs.get(ROOT, lease.task.run_id)
        await roles.publisher.runs.cancel(ROOT, child.parent_id, "enough", None)
        assert (await running).run.status is RunStatus.CANCELLED
        await worker.told()
        await worker.complete(lease)

        async def cancelled() -> bool:
            return (await roles.publisher.runs.get(ROOT, child.id)).status is RunStatus.CANCELLED

        await eventually(cancelled)
    await check_all(database)


async def test_a_step_runs_an_agent(roles: Roles, database: Database) -> None:
    """All that follows from it is waited for, and is the step's output."""
    await register(roles.publisher, ("Order", "Payment"), agent("payments", "Order", "Payment"))
    define(
        roles, step("pay", kind=StepKind.AGENT, target="payments", input={"type": "Order", "payload": {"n": 7}}),
        output="${steps.pay.output.artifacts.map(a, a.payload)}",
    )  # fmt: skip

    def answer(lease: Lease) -> Completion:
        return done(lease, made("Payment", paid=payload_of(lease.artifacts[0])["n"]))

    agents = [agent("payments", "Order", "Payment")]
    async with Worker(roles.worker, agents=agents, known=types("Order", "Payment"), handler=answer):
        assert output_of(await execute(roles.publisher)) == [{"paid": 7}]
    await check_all(database)


@pytest.mark.parametrize("runs", [1, 2])
async def test_an_agent_in_a_step_is_tried_as_it_says(roles: Roles, database: Database, runs: int) -> None:
    """By its own policy and time-outs; where the step has a policy too, all of that again."""
    twice = RetryPolicy(initial_us=0, jitter=0.0, max_attempts=2)
    limits = Timeouts(schedule_to_start_us=seconds(50), start_to_close_us=seconds(40), heartbeat_us=seconds(30))
    spec = agent("payments", "Order", retry=twice, timeouts=limits)
    await register(roles.publisher, ("Order",), spec)
    more = {"retry": twice} if runs == 2 else {"retry": DEFAULT_RETRY}
    given = {"type": "Order", "payload": {}}
    define(roles, step("pay", kind=StepKind.AGENT, target="payments", input=given, **more))
    async with Worker(roles.worker, agents=[spec], known=types("Order"), handler=failed) as worker:
        run = (await execute(roles.publisher)).run
        assert (run.status, run.error_code) == (RunStatus.FAILED, "BROKEN")
        assert run.error_message.endswith(": agent:payments: BROKEN it is")
        assert [lease.tries for lease in worker.seen] == [1, 2] * runs
        assert {lease.task.timeouts for lease in worker.seen} == {limits}
        assert len({lease.task.run_id for lease in worker.seen}) == runs
    await check_all(database)


@pytest.mark.parametrize("wait", [True, False])
async def test_a_step_publishes(roles: Roles, database: Database, wait: bool) -> None:
    """Its cascade is waited for where that is asked for."""
    await register(roles.publisher, ("Order", "Payment"), agent("payments", "Order", "Payment"))
    define(
        roles, step("out", kind=StepKind.PUBLISH, target="Order", input={"n": "${input.n}"}, wait=wait),
        output="${steps.out.output}",
    )  # fmt: skip

    def answer(lease: Lease) -> Completion:
        return done(lease, made("Payment", paid=payload_of(lease.artifacts[0])["n"]))

    agents = [agent("payments", "Order", "Payment")]
    async with Worker(roles.worker, agents=agents, known=types("Order", "Payment"), handler=answer):
        output = output_of(await execute(roles.publisher, {"n": 7}))
    assert isinstance(output, dict)
    if wait:
        artifacts = output["artifacts"]
        assert isinstance(artifacts, list)
        assert [each["payload"] for each in artifacts if isinstance(each, dict)] == [{"paid": 7}]
    else:
        assert output.keys() == {"artifact_id", "correlation_id"}
    await check_all(database)


async def test_a_step_is_told_all_that_a_cascade_made(roles: Roles, database: Database) -> None:
    """Up to 1 MiB of it: what the step itself gave to it does not count."""
    spec = agent("payments", "Order", "Payment")
    await register(roles.publisher, ("Order", "Payment"), spec)
    orders = '[1, 2, 3, 4, 5, 6, 7, 8, 9].map(n, {"type": "Order", "payload": {"n": input}})'
    define(roles, step("pay", kind=StepKind.AGENT, target="payments", input="${" + orders + "}"))

    def answer(lease: Lease) -> Completion:
        return done(lease, *(made("Payment", paid="y" * 90_000) for _ in lease.artifacts[:3]))

    async with Worker(roles.worker, agents=[spec], known=types("Order", "Payment"), handler=answer):
        output = output_of(await execute(roles.publisher, "x" * 100_000))
    assert isinstance(output, dict)
    assert isinstance(output["artifacts"], list)
    assert (len(output["artifacts"]), output["truncated"]) == (3, False)
    await check_all(database)


async def test_the_other_server_goes_on_when_one_forgets(roles: Roles, database: Database) -> None:
    """What a run was given and made is read again where it is not at hand."""
    define(roles, step("a", input="${input.x}"), step("b", "a", input=("${input.x}", "${steps.a.output.given}")))
    async with Worker(roles.worker, kinds=["a", "b"]) as worker:
        running = asyncio.create_task(execute(roles.publisher, {"x": "y"}))
        lease = await worker.take()
        for service in (roles.publisher, roles.worker):
            service.advancing._values.clear()
            service.engine.cache.clear()
        await worker.complete(lease, output=encode_value({"given": 7}))
        last = await worker.take()
        assert decode_value(last.task.input) == ["y", 7]
        await worker.complete(last, output=encode_value("end"))
        assert output_of(await running) == "end"
    await check_all(database)


async def test_steps_are_shown_as_they_stand(roles: Roles, database: Database) -> None:
    """WM-5: status, input, output, attempts, children, items."""
    define_child(roles, step("leaf"))
    each = step("one")
    define(
        roles, step("a", output={"short": "${result.n}"}), step("left", when="false"),
        step("all", "a", kind=StepKind.MAP, over="[1, 2, 3]", each=each, width=1),
        step("sub", "a", kind=StepKind.WORKFLOW, target="child"), step("end", "all", "sub"),
    )  # fmt: skip
    async with Worker(roles.worker, kinds=["a", "one", "leaf", "end"]) as worker:
        running = asyncio.create_task(execute(roles.publisher, {"x": 1}))
        first = await worker.take()
        run_id = first.task.run_id
        steps = await shown(roles.publisher, run_id)
        assert {name: each.status for name, each in steps.items()} == {
            "a": "RUNNING", "left": "SKIPPED", "all": "WAITING", "sub": "WAITING", "end": "WAITING",
        }  # fmt: skip
        await worker.complete(first, output=encode_value({"n": 1, "long": 2}))
        found = {lease.task.kind: lease for lease in (await worker.take(), await worker.take())}
        steps = await shown(roles.publisher, run_id)
        assert decode_value(steps["a"].output) == {"short": 1}
        assert decode_value(steps["a"].input) == {"x": 1}
        assert (steps["all"].status, steps["all"].items) == ("RUNNING", ItemCounts(1, 0, 0))
        assert (steps["sub"].status, steps["sub"].child_run_id) == ("PENDING", found["leaf"].task.run_id)
        await worker.fail(found["one"], retryable=False)
        await worker.complete(found["leaf"])
        assert (await running).run.status is RunStatus.FAILED
    steps = await shown(roles.publisher, run_id)
    assert {name: each.status for name, each in steps.items()} == {
        "a": "COMPLETED", "left": "SKIPPED", "all": "FAILED", "sub": "COMPLETED", "end": "CANCELLED",
    }  # fmt: skip
    assert steps["all"].items == ItemCounts(1, 1, 1)


async def shown(service: Service, run_id: str) -> dict[str, StepView]:
    """The steps of a run by their ids."""
    page = await service.steps.list(ROOT, run_id, PageRequest())
    return {each.id: each for each in page.items}


async def test_a_step_waits_for_a_promise(roles: Roles, database: Database) -> None:
    """FV-17: found by its key, settled once; its value is the step's output."""
    define(roles, step("ok", kind=StepKind.WAIT_PROMISE, target="approval", key="${'order-' + string(input.n)}"))
    running = asyncio.create_task(execute(roles.publisher, {"n": 7}))

    async def waits() -> bool:
        found = await roles.worker.promises.list(ROOT, PromiseQuery(key="order-7"), PageRequest())
        return len(found.items) == 1

    await eventually(waits)
    value = Resolution(encode_value({"by": "Ann"}))
    await roles.worker.promises.settle(ROOT, PromiseRef(key="order-7"), value, None)
    assert output_of(await running) == {"by": "Ann"}
    await check_all(database)


async def test_a_keys_first_call_stands_whatever_became_of_the_workflow(roles: Roles, database: Database) -> None:
    """FL-8: its duplicate is answered, not refused."""
    define(roles, step("a"))
    new = NewRun("w", input=encode_value(1))
    first = await roles.publisher.workflow_runs.execute(ROOT, new, key("k", "ExecuteWorkflow"))
    again = NewRun("gone", input=encode_value(1))
    second = await roles.worker.workflow_runs.execute(ROOT, again, key("k", "ExecuteWorkflow"))
    assert (second.run.id, second.replayed) == (first.run.id, True)
    with pytest.raises(NotFound):
        await roles.worker.workflow_runs.execute(ROOT, again, key("other", "ExecuteWorkflow"))


async def test_an_answer_that_breaks_the_schema_fails_the_run(roles: Roles, database: Database) -> None:
    define(roles, step("a"), output_schema='{"type": "object"}', output="${steps.a.output.kind}")
    async with Worker(roles.worker, kinds=["a"], handler=adding):
        run = (await execute(roles.publisher)).run
    assert (run.status, run.error_code) == (RunStatus.FAILED, "INVALID_OUTPUT")
    await check_all(database)


async def test_a_key_bounds_how_many_steps_run_at_once(roles: Roles, database: Database) -> None:
    """Over all runs: the second waits in line for the first."""
    define(roles, step("a", concurrency_key="${input.who}", concurrency_limit=1))
    async with Worker(roles.worker, kinds=["a"]) as worker:
        runs = [asyncio.create_task(execute(roles.publisher, {"who": "ann"})) for _ in range(2)]
        first = await worker.take()
        assert worker.leases.empty()
        await worker.complete(first, output=encode_value(1))
        await worker.complete(await worker.take(), output=encode_value(2))
        assert {output_of(await each) for each in runs} == {1, 2}
    await check_all(database)


async def test_a_childs_time_is_bounded(roles: Roles, database: Database) -> None:
    """It is cancelled; the step is tried with another, and fails in the end."""
    define_child(roles, step("wait", kind=StepKind.SLEEP, sleep=1000.0))
    limit = Timeouts(schedule_to_start_us=seconds(60), start_to_close_us=0)
    again = RetryPolicy(initial_us=0, jitter=0.0, max_attempts=2)
    define(roles, step("sub", kind=StepKind.WORKFLOW, target="child", timeouts=limit, retry=again))
    running = asyncio.create_task(execute(roles.publisher))

    async def children() -> list[Run]:
        return list((await roles.worker.runs.list(ROOT, RunQuery(workflow="child"), PageRequest())).items)

    for number in (1, 2):

        async def begun(number: int = number) -> bool:
            return len(await children()) == number

        await eventually(begun)
        await database.pass_time(61)
        await roles.worker.loops.poll()
    run = (await running).run
    assert (run.status, run.error_code) == (RunStatus.FAILED, "CHILD_TIMEOUT")

    async def cancelled() -> bool:
        return {(each.parent_id, each.status) for each in await children()} == {(run.id, RunStatus.CANCELLED)}

    await eventually(cancelled)
    await check_all(database)


async def test_what_a_late_worker_says_decides_nothing(roles: Roles, database: Database) -> None:
    """Its completion is refused, with all that would have followed from it; also where the server that refused it goes
    on with the run: that forgets the run's state at the refusal, and has it again with the next lease."""
    each = step("one", input="${item}")
    define(
        roles, step("a"), step("size", "a", kind=StepKind.BRANCH, branches=(("long", "size(steps.a.output) > 2"),)),
        step("all", "size", kind=StepKind.MAP, over="steps.a.output", each=each, cases=(("size", "long"),)),
    )  # fmt: skip
    async with Worker(roles.worker, kinds=["a"], slots=1) as worker:
        running = asyncio.create_task(execute(roles.publisher))
        late = await worker.take()
        # It has no room for another task yet.
        await worker.session.report(Reports(failures=(failed(late),)))
        (refused,) = await worker.session.report(Reports(completions=(done(late, output=encode_value([1, 2, 3])),)))
        assert isinstance(refused.error, LeaseLost)
        worker.session.add_credit(1)
        again = await worker.take()
        async with Worker(roles.worker, kinds=["one"], handler=adding):
            await worker.complete(again, output=encode_value([7, 8, 9]))
            assert output_of(await running) == [{"kind": "one", "given": n} for n in (7, 8, 9)]
    await check_all(database)


async def test_a_held_workflow_begins_nothing_until_it_is_resumed(roles: Roles, database: Database) -> None:
    """What runs goes on to its end, runs may be begun; on every server."""
    await roles.publisher.workflows.create(
        ROOT, {"name": "held", "steps": [
            {"id": "a", "kind": "task", "task": "a"}, {"id": "b", "kind": "task", "task": "b", "needs": ["a"]},
        ]}, None,
    )  # fmt: skip
    async with Worker(roles.worker, kinds=["a", "b"]) as worker:
        first = await roles.publisher.workflow_runs.execute(ROOT, NewRun("held"), None)
        lease = await worker.take()
        held, _ = await roles.worker.workflow_pauses.pause(ROOT, "held", "look", None)
        assert (held.workflow, held.paused_by, held.reason) == ("held", "root", "look")
        await roles.publisher.core.pauses.refresh()
        second = await roles.publisher.workflow_runs.execute(ROOT, NewRun("held"), None)
        await worker.complete(lease)

        async def put_off() -> bool:
            rows = await database.rows("SELECT due_us FROM run WHERE workflow = 'held'")
            return all(row["due_us"] > roles.publisher.engine.clock.now_us() for row in rows)

        await eventually(put_off)
        assert worker.leases.empty()
        assert [each.workflow for each in await roles.publisher.workflow_pauses.list(ROOT)] == ["held"]
        await roles.publisher.workflow_pauses.resume(ROOT, "held", None)
        await roles.worker.core.pauses.refresh()
        found = {each.task.kind: each for each in (await worker.take(), await worker.take())}
        assert {kind: each.task.run_id for kind, each in found.items()} == {"b": first.run.id, "a": second.run.id}
        await worker.complete(found["b"])
        await worker.complete(found["a"])
        await worker.complete(await worker.take())
        for run in (first.run, second.run):
            assert (await roles.worker.workflow_runs.result(ROOT, run.id, 5.0)).run.status is RunStatus.COMPLETED
    with pytest.raises(NotFound):
        await roles.publisher.workflow_pauses.pause(ROOT, "nobody", "", None)
    await check_all(database)
