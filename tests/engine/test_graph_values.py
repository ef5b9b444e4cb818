"""What expressions see of steps that ended without a task, of which nothing is stored: each test with one server, and
spread over two, whether they remember the run or read it again. (WM-2, WM-3, WM-5)"""

import asyncio

import pytest
from tests.engine.database import Database
from tests.engine.servers import Roles
from tests.engine.test_graph_runs import adding, define, execute, output_of, shown, step
from tests.engine.workers import Worker, failed
from tests.engine.world import check_all, data_of, events_of, kinds_of

from millstream.application.views.leases import Lease
from millstream.application.views.reports import AttemptFailure, Completion
from millstream.domain.runs import EventType, RunStatus
from millstream.domain.struct_wire import Json, decode_value, encode_value
from millstream.domain.workflows import OnFailure, StepKind

EACH = {
    "left": "${steps.left.status}", "nothing": "${steps.left.output}", "none": "${steps.none.output}",
    "size": "${steps.sized.output}", "case": "${steps.way.output}", "why": "${steps.broken.error.code}",
    "broken": "${steps.broken.status}", "nap": "${steps.nap.output}",
}  # fmt: skip
"""Of steps without a task, and one of them with another's output."""


@pytest.mark.parametrize("forgets", [False, True], ids=["remembered", "read again"])
async def test_steps_without_a_task_are_seen(spread: Roles, database: Database, forgets: bool) -> None:
    """Skipped steps, maps of nothing, branches, pauses, and steps for which an expression has no value."""
    each = step("one")
    define(
        spread, step("left", when="false"),
        step("none", kind=StepKind.MAP, over="input.none", each=each, width=1),
        step("sized", kind=StepKind.MAP, over="input.none", each=each, width=1, output="${size(result)}"),
        step("way", kind=StepKind.BRANCH, branches=(("up", "true"),), output="${result.case + '!'}"),
        step("taken", "way", cases=(("way", "up"),), input="up"),
        step("missed", "way", cases=(("way", "default"),)),
        step("nap", kind=StepKind.SLEEP, sleep=0.01, output="${input.n}"),
        step("broken", input="${input.missing}", on_failure=OnFailure.CONTINUE),
        step("wait"),
        step("end", "left", "none", "sized", "way", "taken", "missed", "nap", "broken", "wait", input=EACH),
        output={"end": "${steps.end.output.given}", "missed": "${steps.missed.output}"},
    )  # fmt: skip
    async with Worker(spread.worker, kinds=["wait", "taken", "end"]) as worker:
        running = asyncio.create_task(execute(spread.publisher, {"none": [], "n": 7}))
        leases = {lease.task.kind: lease for lease in (await worker.take(), await worker.take())}
        if forgets:
            for service in (spread.publisher, spread.worker):
                service.advancing._values.clear()
                service.engine.cache.clear()
        await worker.complete(leases["taken"], output=encode_value("took"))
        await worker.complete(leases["wait"], output=encode_value("waited"))
        last = await worker.take()
        seen: Json = {
            "left": "SKIPPED", "nothing": None, "none": [], "size": 0, "case": "up!", "why": "EXPRESSION_ERROR",
            "broken": "FAILED", "nap": 7,
        }  # fmt: skip
        assert decode_value(last.task.input) == seen
        await worker.complete(last, output=encode_value({"given": seen}))
        result = await running
        assert output_of(result) == {"end": seen, "missed": None}
    await check_all(database)


async def test_a_step_says_why_it_has_no_task(spread: Roles, database: Database) -> None:
    """WM-5: where an expression of it has no value; its run's events tell so, too, where the run goes on."""
    define(
        spread, step("a", input={"x": "${input.missing}"}, on_failure=OnFailure.CONTINUE), step("b", "a"),
        step("c", "b", input="${steps.b.output.nothing}"),
    )  # fmt: skip
    async with Worker(spread.worker, kinds=["b"], handler=adding):
        run = (await execute(spread.publisher, {})).run
    assert (run.status, run.error_code) == (RunStatus.FAILED, "EXPRESSION_ERROR")
    steps = await shown(spread.worker, run.id)
    code, message = steps["a"].error
    assert (steps["a"].status, code) == ("FAILED", "EXPRESSION_ERROR")
    assert message.startswith("x: ")
    assert run.error_message == f"step c: {steps['c'].error[1]}"
    events = await events_of(spread.publisher, run.id)
    told = [data_of(event) for event in events if event.type == EventType.STEP_FAILED]
    assert [(each["step"], each["message"]) for each in told] == [("a", message), ("c", steps["c"].error[1])]
    await check_all(database)


async def test_what_undoes_a_step_may_have_a_condition(spread: Roles, database: Database) -> None:
    """WM-2: such as that the step came to be, as the compensation of the one that failed is called for, too."""

    def booking(id_: str, *needs: str) -> tuple[object, object]:
        undo = step(f"no_{id_}", when=f"steps.{id_}.status == 'COMPLETED'", input=f"${{steps.{id_}.output.kind}}")
        return step(id_, *needs, on_failure=OnFailure.COMPENSATE, compensation=f"no_{id_}"), undo

    define(spread, *booking("fly"), *booking("sleep", "fly"), *booking("drive", "sleep"))  # type: ignore[arg-type]

    def answer(lease: Lease) -> Completion | AttemptFailure:
        return failed(lease, retryable=False) if lease.task.kind == "drive" else adding(lease)

    kinds = ["fly", "sleep", "drive", "no_fly", "no_sleep", "no_drive"]
    async with Worker(spread.worker, kinds=kinds, handler=answer) as worker:
        run = (await execute(spread.publisher)).run
        assert (run.status, run.error_code) == (RunStatus.FAILED, "BROKEN")
        assert [lease.task.kind for lease in worker.seen] == ["fly", "sleep", "drive", "no_sleep", "no_fly"]
    steps = await shown(spread.publisher, run.id)
    assert {name: each.status for name, each in steps.items()} == {
        "fly": "COMPLETED", "no_fly": "COMPLETED", "sleep": "COMPLETED", "no_sleep": "COMPLETED",
        "drive": "FAILED", "no_drive": "SKIPPED",
    }  # fmt: skip
    assert (await kinds_of(spread.worker, run.id)).count("STEP_SKIPPED") == 1
    await check_all(database)
