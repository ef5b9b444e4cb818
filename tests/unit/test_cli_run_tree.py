"""The tree of a run that grows with what is told of it."""

from datetime import UTC, datetime
from typing import Any

from rich.console import Console

from millstream.cli.run_tree import SHOWN_MOST, RunTree
from millstream.domain.children import child_id
from millstream.sdk import RunEvent, RunHappening, StreamedValue

ROOT = "0190f5e2-0000-7000-8000-000000000001"
TASK = "0190f5e2-0000-7000-8000-000000000002"
OTHER = "0190f5e2-0000-7000-8000-000000000003"


def happened(type_: str, task_id: str = "", run_id: str = ROOT, attempt: int = 0, **data: Any) -> RunHappening:
    event = RunEvent(1, type_, datetime(2026, 1, 1, tzinfo=UTC), task_id, "", attempt, data)
    return RunHappening(run_id, "1", event)


def text(tree: RunTree) -> str:
    console = Console(width=200, no_color=True)
    with console.capture() as capture:
        console.print(tree.show())
    return capture.get()


def tree_of(*happenings: RunHappening) -> RunTree:
    tree = RunTree(ROOT)
    for each in happenings:
        tree.add(each)
    return tree


def test_a_task_shows_how_far_it_is() -> None:
    tree = tree_of(
        RunHappening("", "0"),
        happened("RUN_CREATED"),
        happened("TASK_CREATED", TASK, kind="resize", queue="default"),
        happened("TASK_STARTED", TASK, attempt=2),
        happened("TASK_PROGRESS", TASK, attempt=2, fraction=0.5, message="half of it"),
    )
    tree.add(RunHappening(ROOT, "1", streamed=StreamedValue(TASK, 2, 1, "tok")))
    tree.add(RunHappening(ROOT, "1", streamed=StreamedValue(TASK, 2, 2, "ens")))
    shown = text(tree)
    assert "resize  RUNNING, attempt 2" in shown
    assert "50%  half of it  tokens" in shown
    assert "0 of 1 tasks" in shown
    tree.add(happened("TASK_COMPLETED", TASK, attempt=2))
    tree.add(happened("RUN_COMPLETED"))
    shown = text(tree)
    assert "resize  COMPLETED, attempt 2\n" in shown
    assert "COMPLETED  ━━━━━━━━━━━━━━━━━━━━ 100%  1 of 1 tasks" in shown


def test_what_failed_says_why() -> None:
    tree = tree_of(
        happened("TASK_CREATED", TASK, kind="pay", queue="default"),
        happened("TASK_FAILED", TASK, attempt=1, code="DECLINED", message="no money"),
        happened("RUN_FAILED", message="step pay: no money"),
    )
    shown = text(tree)
    assert "pay  FAILED  DECLINED: no money" in shown
    assert "step pay: no money" in shown


def test_a_run_that_a_task_began_stands_below_it() -> None:
    """Whichever of its attempts began it."""
    child = child_id(TASK, 2)
    tree = tree_of(
        happened("TASK_CREATED", TASK, kind="workflow:child", queue="~child"),
        happened("RUN_CREATED", run_id=child),
        happened("TASK_CREATED", OTHER, run_id=child, kind="leaf", queue="default"),
    )
    lines = text(tree).splitlines()
    assert [line.lstrip(" ├└─│").split()[0] for line in lines] == ["run", "workflow:child", "run", "leaf"]
    assert child in lines[2]
    assert lines[2].index("run") > lines[1].index("workflow:child")


def test_of_many_tasks_those_under_way_are_shown() -> None:
    tree = RunTree(ROOT)
    for n in range(100):
        task = f"0190f5e2-0000-7000-8000-{n:012d}"
        tree.add(happened("TASK_CREATED", task, kind=f"t{n}", queue="default"))
        if n % 10:
            tree.add(happened("TASK_COMPLETED", task))
    shown = text(tree)
    assert all(f"t{n}  PENDING" in shown for n in range(0, 100, 10))
    assert shown.count("COMPLETED") == SHOWN_MOST - 10
    assert "t99  COMPLETED" in shown
    assert "... 70 more" in shown
