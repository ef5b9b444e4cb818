"""`millstream runs`: finding and reading them."""

from typing import Annotated

import typer
from rich.text import Text
from rich.tree import Tree

from millstream.cli import executions, run_operations, run_watch
from millstream.cli.connect import DEFAULT_LIMIT, DEFAULT_TARGET, ApiKey, Json, Limit, Target, call
from millstream.cli.given import aware, labels_of
from millstream.cli.output import console, print_json, print_list, print_table
from millstream.cli.run_operations import After, Before, Kind, Labels, RunId, TextIn, Workflow, show_run
from millstream.cli.task_logs import run_logs
from millstream.cli.tasks import ATTEMPTS, COLUMNS, TaskId, fault
from millstream.sdk import Client, NotFoundError, Run, Step, Task

app = typer.Typer(help="Read, cancel, retry, repeat and pause runs.", no_args_is_help=True)

TREE_MOST = 50
"""Tasks, and children, of each run that a tree shows."""
DEPTH_MOST = 5
_COLUMNS = {
    "id": lambda r: r.run_id,
    "kind": lambda r: r.kind,
    "status": lambda r: f"{r.status} (paused)" if r.paused_at else r.status,
    "workflow": lambda r: r.workflow,
    "created": lambda r: r.created_at,
    "finished": lambda r: r.finished_at,
    "tasks": lambda r: r.task_count,
    "open": lambda r: r.open_tasks,
    "failed": lambda r: r.failed_tasks,
    "artifacts": lambda r: r.artifact_count,
}
_EVENTS = {
    "sequence": lambda e: e.sequence,
    "type": lambda e: e.type,
    "created": lambda e: e.created_at,
    "task": lambda e: e.task_id,
    "artifact": lambda e: e.artifact_id,
    "data": lambda e: e.data or None,
}
_HISTORY = {
    "event": lambda line: line[0],
    "command": lambda line: line[1],
    "type": lambda line: line[2],
    "about": lambda line: line[3],
}


@app.command("list")
def list_(
    status: Annotated[list[str] | None, typer.Option(help="In this status, such as FAILED; may be repeated.")] = None,
    kind: Kind = "",
    workflow: Workflow = "",
    label: Labels = None,
    text: TextIn = "",
    parent: Annotated[str, typer.Option(help="Children of this run.")] = "",
    after: After = None,
    before: Before = None,
    sort: Annotated[str, typer.Option(help="created_at or updated_at.")] = "",
    oldest_first: Annotated[bool, typer.Option("--oldest-first", help="The other way round.")] = False,
    limit: Limit = DEFAULT_LIMIT,
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """List runs, newest first."""
    labels = labels_of(label)

    async def work(client: Client) -> None:
        try:
            listing = client.runs.list(
                status=status or "",
                kind=kind,
                workflow=workflow,
                labels=labels,
                text=text,
                parent=parent,
                created_after=aware(after),
                created_before=aware(before),
                sort_by=sort,
                sort_order="asc" if oldest_first else "",
            )
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
        await print_list(listing, _COLUMNS, as_json=as_json, limit=limit, title="runs")

    call(target, api_key, work)


@app.command()
def get(
    run_id: RunId,
    tree: Annotated[bool, typer.Option(help="Show its steps or tasks, and children, too.")] = True,
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Show a run, with a tree of its steps or tasks, and of the runs that these began."""

    async def work(client: Client) -> tuple[Run, Tree | None]:
        run = await client.runs.get(run_id)
        return run, await _tree_of(client, run) if tree and (
            run.task_count or run.kind == "GRAPH"
        ) and not as_json else None

    run, found = call(target, api_key, work)
    show_run(run, as_json)
    if found is not None:
        console().print(found)


async def _tree_of(client: Client, run: Run, depth: int = 1) -> Tree:
    tree = Tree(Text(f"{run.workflow or run.kind} {run.run_id} {run.status}"))
    children: dict[str, list[Run]] = {}
    if run.kind in ("GRAPH", "CODE") and depth < DEPTH_MOST:
        for child in reversed(await client.runs.children(run.run_id).first(TREE_MOST)):
            children.setdefault(child.parent_task_id, []).append(child)
    shown, what, more = await (_steps_of if run.kind == "GRAPH" else _tasks_of)(client, run)
    for task_id, line in shown:
        branch = tree.add(Text(line))
        for child in children.pop(task_id, ()):
            branch.add(await _tree_of(client, child, depth + 1))
    for child in [each for group in children.values() for each in group]:
        # Of items of a map, or of a try before.
        tree.add(await _tree_of(client, child, depth + 1))
    if more:
        tree.add(Text(f"...{more}more: millstream runs {what} {run.run_id}"))
    return tree


async def _steps_of(client: Client, run: Run) -> tuple[list[tuple[str, str]], str, str]:
    """Lines of a run's steps by their tasks; which command shows them all, and how many more there are, in words."""
    steps = await client.runs.steps(run.run_id).first(TREE_MOST + 1)
    return [(each.task_id, _step_line(each)) for each in steps[:TREE_MOST]], "steps", " " * (len(steps) > TREE_MOST)


async def _tasks_of(client: Client, run: Run) -> tuple[list[tuple[str, str]], str, str]:
    """The same of its tasks."""
    tasks = await client.runs.tasks(run.run_id).first(TREE_MOST)
    more = run.task_count - len(tasks)
    return [(each.task_id, _line(each)) for each in tasks], "tasks", f" {more} " if more > 0 else ""


def _step_line(step: Step) -> str:
    tried = f", attempt {step.attempt}" if step.attempt > 1 else ""
    parts = [step.id, f"({step.kind})", step.task_id, f"{executions.status_of(step)}{tried}", fault(step.error)]
    return " ".join(filter(None, parts))


def _line(task: Task) -> str:
    tried = f", attempt {task.attempt}" if task.attempt > 1 else ""
    held = ", held" if task.held else ""
    return f"{task.kind} {task.task_id} {task.status}{tried}{held} {fault(task.error)}".rstrip()


app.command()(executions.steps)
app.command()(executions.result)
app.command()(executions.tail)
app.command()(run_watch.watch)
app.command("logs")(run_logs)
app.command()(executions.start)
app.command()(executions.signal)
app.command()(executions.state)


@app.command()
def events(
    run_id: RunId,
    after: Annotated[int, typer.Option(min=0, help="Only events with a higher number.")] = 0,
    limit: Limit = DEFAULT_LIMIT,
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """List what happened in a run, in order."""

    async def work(client: Client) -> None:
        listing = client.runs.events(run_id, after_sequence=after)
        await print_list(listing, _EVENTS, as_json=as_json, limit=limit, title="events")

    call(target, api_key, work)


@app.command()
def history(run_id: RunId, target: Target = DEFAULT_TARGET, api_key: ApiKey = None, as_json: Json = False) -> None:
    """Show what the code of a run has seen and done; with --json, to be kept for replays of changed code."""

    async def work(client: Client) -> None:
        found = await client.runs.history(run_id)
        if as_json:
            print_json(found.to_dict())
        else:
            print_table(list(found.lines()), _HISTORY, title="history")

    call(target, api_key, work)


@app.command()
def tasks(
    run_id: RunId,
    status: Annotated[str, typer.Option(help="In this status, such as FAILED.")] = "",
    limit: Limit = DEFAULT_LIMIT,
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """List the tasks of a run, in the order they were made."""

    async def work(client: Client) -> None:
        try:
            listing = client.runs.tasks(run_id, status=status)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--status") from error
        await print_list(listing, COLUMNS, as_json=as_json, limit=limit, title="tasks")

    call(target, api_key, work)


@app.command("task-attempts")
def task_attempts(
    run_id: RunId,
    task_id: TaskId,
    limit: Limit = DEFAULT_LIMIT,
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """List the attempts of a task of a run."""

    async def work(client: Client) -> None:
        if (await client.tasks.get(task_id)).run_id != run_id.lower():
            raise NotFoundError("NOT_FOUND", f"run {run_id} has no task {task_id}")
        await print_list(client.tasks.attempts(task_id), ATTEMPTS, as_json=as_json, limit=limit, title="attempts")

    call(target, api_key, work)


@app.command()
def children(
    run_id: RunId,
    limit: Limit = DEFAULT_LIMIT,
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """List the runs that steps of a run began, newest first."""

    async def work(client: Client) -> None:
        await print_list(client.runs.children(run_id), _COLUMNS, as_json=as_json, limit=limit, title="children")

    call(target, api_key, work)


run_operations.add_to(app)
