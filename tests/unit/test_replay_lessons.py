"""What went wrong in other durable engines, and the tests which prove that it does not go wrong here.

The index names for each lesson the tests that would fail; that they are there is checked. Lessons that no other test
was about have theirs below.
"""

import ast
import inspect
from pathlib import Path
from typing import Any

import pytest

from millstream.sdk import Worker, WorkflowContext
from millstream.testing import Environment, RunFailed, replay

TESTS = Path(__file__).parents[1]
LESSONS: dict[str, list[str]] = {
    "a run that waited for parallel tasks was not woken by an end that came while its code ran": [
        "engine/test_code_runs.py::test_no_end_is_lost_while_the_code_runs",
        "engine/test_code_runs.py::test_an_end_that_has_not_seen_all_is_put_off",
        "engine/test_graph_runs.py::test_needs_that_end_in_one_message_start_what_joins_them",
    ],
    "a wake-up asked for a status that was written later": [
        "engine/test_code_runs.py::test_an_end_that_has_not_seen_all_is_put_off",
        "engine/test_waiting.py::test_a_lost_wake_up_is_found_by_the_safety_poll",
        "engine/test_promises.py::test_a_lost_wake_up_is_found_by_the_safety_poll",
    ],
    "five parallel tasks hung where four worked": [
        "engine/test_code_runs.py::test_no_end_is_lost_while_the_code_runs",
        "engine/test_code_runs.py::test_a_cold_worker_pages_through_a_long_history",
        "unit/test_replay_lessons.py::test_as_many_at_once_as_anybody_likes",
    ],
    "replayed commands were submitted again": [
        "engine/test_code_runs.py::test_an_answer_counts_once_however_often_it_comes",
        "unit/test_sdk_activations.py::test_a_run_that_is_kept_goes_on_from_what_it_has_seen",
        "unit/test_workflow_replay.py::test_a_recorded_side_effect_happens_once",
    ],
    "the second child got the id of the first": [
        "unit/test_replay_lessons.py::test_children_of_equal_names_are_runs_of_their_own",
    ],
    "matching by name confused loops": [
        "unit/test_workflow_replay.py::test_a_changed_history_is_reported_with_both_sides",
        "unit/test_replay_lessons.py::test_a_loop_over_one_kind_is_matched_by_place",
    ],
    "a signal was taken on replay by a check that had come before it": [
        "unit/test_replay_lessons.py::test_a_signal_is_not_seen_by_what_came_before_it",
    ],
    "runs stayed RUNNING after their worker died": [
        "engine/test_code_runs.py::test_a_worker_lost_between_activation_and_answer_is_replaced_cold",
        "engine/test_leases.py::test_a_worker_that_goes_loses_its_tasks_to_another",
        "engine/test_leases.py::test_a_server_that_dies_loses_its_leases",
        "crash/test_kills.py::test_a_killed_worker_loses_and_repeats_nothing",
    ],
    "idle workers used the processor": [
        "engine/test_watching.py::test_while_nobody_watches_the_feed_is_not_read",
        "bench/idlers.py",
    ],
    "workers ran one task at a time by default": [
        "unit/test_replay_lessons.py::test_workers_run_many_tasks_at_once_by_default",
        "unit/test_sdk_worker.py::test_no_more_tasks_run_at_once_than_there_are_slots",
    ],
    "without an authenticator all were let in": [
        "rpc/test_config.py::test_without_an_authenticator_there_is_no_start",
    ],
    "back-off overflowed": [
        "unit/test_domain_retry.py::test_no_number_of_tries_overflows",
    ],
    "time-outs were accepted and not enforced": [
        "engine/test_retries.py::test_nobody_starts_it_in_time",
        "engine/test_retries.py::test_an_attempt_that_takes_too_long_is_ended",
        "engine/test_retries.py::test_a_worker_without_signs_of_life_loses_the_attempt",
        "engine/test_promises.py::test_a_promise_is_rejected_when_its_time_has_passed",
        "engine/test_graph_runs.py::test_a_childs_time_is_bounded",
        "engine/test_code_runs.py::test_an_executed_run_of_code_has_its_time",
        "e2e/test_testing_parity_of_documents.py::test_a_document_goes_the_same_way",
    ],
    "events came after the end": [
        "unit/test_replay_lessons.py::test_nothing_happens_after_the_end",
        "engine/test_run_watching.py::test_a_run_is_watched_from_its_first_event_to_its_end",
        "engine/test_watching.py::test_what_is_committed_late_comes_late_and_once",
    ],
    "a standalone task had no stream": [
        "engine/test_run_watching.py::test_a_flood_of_what_is_streamed_takes_no_room_from_events",
    ],
    "an input schema was checked at one door only": [
        "engine/test_workflows.py::test_the_input_of_a_run_is_checked_with_the_schema",
        "engine/test_code_runs.py::test_a_rerun_has_its_input_checked_like_any_new_run",
        "e2e/test_rest_code_runs.py::test_an_input_is_checked_against_the_workflows_schema",
        "unit/test_replay_lessons.py::test_a_childs_input_is_checked_like_any_runs",
    ],
}


@pytest.mark.parametrize("lesson", LESSONS, ids=str)
def test_every_lesson_has_its_tests(lesson: str) -> None:
    """They are where the index says."""
    assert LESSONS[lesson]
    for place in LESSONS[lesson]:
        path, _, name = place.partition("::")
        source = (TESTS / path).read_text(encoding="utf-8")
        functions = (ast.FunctionDef, ast.AsyncFunctionDef)
        found = {each.name for each in ast.walk(ast.parse(source)) if isinstance(each, functions)}
        assert not name or name in found, place


@pytest.mark.parametrize("count", [1, 4, 5, 50, 5000])
async def test_as_many_at_once_as_anybody_likes(count: int) -> None:
    """No number of parallel tasks is special; each end comes to whom it belongs, also in a replay."""
    own = Worker()

    @own.workflow("wide")
    async def wide(ctx: WorkflowContext) -> Any:
        return await ctx.gather(*(ctx.task("echo", n) for n in range(count)))

    async with Environment(own) as env:
        env.fake_task("echo", lambda n: n)
        assert await env.execute("wide") == [*range(count)]


async def test_children_of_equal_names_are_runs_of_their_own() -> None:
    """Their ids come from the command's place: begun together, one after the other, and again after a cold start."""
    own = Worker()
    seen: list[str] = []

    @own.workflow("child")
    async def child(ctx: WorkflowContext) -> str:
        seen.append(ctx.run_id)
        return ctx.run_id

    @own.workflow("parent")
    async def parent(ctx: WorkflowContext) -> Any:
        both = await ctx.gather(ctx.child("child"), ctx.child("child"))
        return [*both, await ctx.child("child")]

    async with Environment(own, replays=False) as env:
        run = await env.start("parent")
        found = await run.result()
        assert found == seen
        assert len({*found}) == 3
        await replay(run.history, own)
        assert len(seen) == 3


async def test_a_loop_over_one_kind_is_matched_by_place() -> None:
    """Each turn gets its own result, though all are of one kind and input."""
    own = Worker()
    calls: list[int] = []

    @own.workflow("loop")
    async def loop(ctx: WorkflowContext) -> Any:
        return [await ctx.task("next", "same") for _ in range(5)]

    def next_(_: Any) -> int:
        calls.append(len(calls))
        return len(calls)

    async with Environment(own) as env:
        env.fake_task("next", next_)
        assert await env.execute("loop") == [1, 2, 3, 4, 5]
        assert len(calls) == 5


async def test_a_signal_is_not_seen_by_what_came_before_it() -> None:
    """A check that found nothing finds nothing when it is replayed, though the signal is in the history by then."""
    own = Worker()
    found: list[list[str]] = []

    @own.workflow("checks")
    async def checks(ctx: WorkflowContext) -> list[str]:
        seen: list[str] = []
        found.append(seen)
        try:
            await ctx.signal("go", timeout=60)
            seen.append("first")
        except TimeoutError:
            seen.append("nothing")
        seen.append(str(await ctx.signal("go")))
        return seen

    async with Environment(own) as env:
        run = await env.start("checks")
        await env.sleep(61)
        await run.signal("go", "later")
        assert await run.result() == ["nothing", "later"]
    assert found == [["nothing", "later"]] * 2


def test_workers_run_many_tasks_at_once_by_default() -> None:
    """One that waits for a service does not hold up all others."""
    assert inspect.signature(Worker.__init__).parameters["slots"].default >= 50


@pytest.mark.parametrize("how", ["COMPLETED", "FAILED", "CANCELLED"])
async def test_nothing_happens_after_the_end(how: str) -> None:
    """The last event of a run is its end, however it ends and whatever it leaves open."""
    own = Worker()

    @own.workflow("child")
    async def child(ctx: WorkflowContext) -> None:
        await ctx.signal("never")

    @own.workflow("leaves")
    async def leaves(ctx: WorkflowContext) -> None:
        ctx.task("hang")
        ctx.sleep(3600)
        ctx.child("child")
        ctx.promise("open")
        await ctx.sleep(1)
        if how == "FAILED":
            raise ValueError
        if how == "CANCELLED":
            await ctx.signal("never")

    async with Environment(own) as env:
        env.fake_task("hang", None, takes=None)
        run = await env.start("leaves")
        await env.sleep(2)
        if how == "CANCELLED":
            await run.cancel()
        await env.sleep(7200)
        assert run.status == how
        ends = [each for each in run.events if each in ("RUN_COMPLETED", "RUN_FAILED", "RUN_CANCELLED")]
        assert ends == [f"RUN_{how}"]
        assert run.events[-1] == f"RUN_{how}"


async def test_a_childs_input_is_checked_like_any_runs() -> None:
    """Of documents as of code, begun by documents as by code."""
    own = Worker()

    @own.workflow("typed")
    async def typed(ctx: WorkflowContext, n: int) -> int:
        return n

    @own.workflow("begins")
    async def begins(ctx: WorkflowContext, name: str) -> Any:
        return await ctx.child(name, "five")

    schema = {"type": "integer"}
    one = {"name": "one", "input_schema": schema, "steps": [{"id": "a", "kind": "sleep", "seconds": 1}]}
    steps = [{"id": "child", "kind": "workflow", "workflow": "one", "input": "five"}]
    async with Environment(own) as env:
        await env.define(one, {"name": "two", "steps": steps})
        for name, given in (("begins", "typed"), ("begins", "one"), ("two", None)):
            with pytest.raises(RunFailed) as failed:
                await env.execute(name, given)
            assert failed.value.code == "VALIDATION_ERROR"
