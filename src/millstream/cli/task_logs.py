"""`millstream runs logs`, `millstream tasks logs` and `millstream workflow task-logs`: what tasks log."""

import sys
from dataclasses import fields
from typing import Annotated

import typer
from rich.text import Text

from millstream.cli.connect import DEFAULT_TARGET, ApiKey, Json, Target, showing
from millstream.cli.output import console, print_json, show
from millstream.sdk import Client, Listing, LogEntry, LogWatch, NotFoundError

_STYLES = {"ERROR": "bold red", "WARN": "yellow", "DEBUG": "dim"}

RunId = Annotated[str, typer.Argument(help="Id of the run.", show_default=False)]
TaskId = Annotated[str, typer.Argument(help="Id of the task.", show_default=False)]
Level = Annotated[str, typer.Option(help="Of this level, or of some with commas between: WARN,ERROR.")]
TextIn = Annotated[str, typer.Option("--text", help="With this in the message.")]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="From the first line on, to the end as it comes.")]
Cursor = Annotated[str, typer.Option(help="With --follow: go on behind this, which --json shows with each line.")]
Last = Annotated[int, typer.Option("--limit", "-n", min=0, help="The last so many lines; 0: all.")]


def run_logs(
    run_id: RunId,
    follow: Follow = False,
    level: Level = "",
    text: TextIn = "",
    task: Annotated[str, typer.Option(help="Of this task alone.")] = "",
    limit: Last = 100,
    cursor: Cursor = "",
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Show what the tasks of a run logged, or follow it as they do. A lost connection is resumed: nothing is missed,
    and nothing shown twice."""

    async def work(client: Client) -> None:
        if task:
            await _check_task(client, run_id, task)
        if follow and task:
            await _follow(client.logs.watch_task(task, level=level, text=text, cursor=cursor), as_json)
        elif follow:
            await _follow(client.logs.watch_run(run_id, level=level, text=text, cursor=cursor), as_json)
        else:
            found = client.logs.of_run(run_id, task_id=task, level=level, text=text, newest_first=bool(limit))
            await _last(found, limit, as_json)

    showing(target, api_key, work)


def task_logs(
    task_id: TaskId,
    follow: Follow = False,
    level: Level = "",
    text: TextIn = "",
    attempt: Annotated[int, typer.Option(min=0, help="Of this attempt alone; 0: of all.")] = 0,
    limit: Last = 100,
    cursor: Cursor = "",
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Show what a task logged, or follow it as it does. A lost connection is resumed: nothing is missed, and nothing
    shown twice."""

    async def work(client: Client) -> None:
        if follow:
            watch = client.logs.watch_task(task_id, level=level, text=text, attempt=attempt, cursor=cursor)
            await _follow(watch, as_json)
            return
        found = client.logs.of_task(task_id, level=level, text=text, attempt=attempt, newest_first=bool(limit))
        await _last(found, limit, as_json)

    showing(target, api_key, work)


def workflow_task_logs(
    run_id: RunId,
    task_id: TaskId,
    level: Level = "",
    limit: Last = 100,
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Show what a task of a run logged."""

    async def work(client: Client) -> None:
        await _check_task(client, run_id, task_id)
        await _last(client.logs.of_task(task_id, level=level, newest_first=bool(limit)), limit, as_json)

    showing(target, api_key, work)


async def _check_task(client: Client, run_id: str, task_id: str) -> None:
    if (await client.tasks.get(task_id)).run_id != run_id.lower():
        raise NotFoundError("NOT_FOUND", f"run {run_id} has no task {task_id}")


async def _last(found: Listing[LogEntry], limit: int, as_json: bool) -> None:
    """The last lines in their order, which are listed the other way round; without a limit as they come."""
    if not limit:
        async for entry in found:
            _show(entry, "", as_json)
        return
    for entry in reversed(await found.first(limit)):
        _show(entry, "", as_json)


async def _follow(watch: LogWatch, as_json: bool) -> None:
    async for cursor, entry in watch.messages():
        if entry is not None:
            _show(entry, cursor, as_json)
            sys.stdout.flush()


def _show(entry: LogEntry, cursor: str, as_json: bool) -> None:
    if as_json:
        found = {each.name: getattr(entry, each.name) for each in fields(entry)}
        print_json(found | ({"cursor": cursor} if cursor else {}), indent=False)
        return
    line = Text.assemble(
        (show(entry.timestamp), "dim"), f"  {entry.task_id}/{entry.attempt}  ", (f"{entry.level:<5}", _style(entry)),
        f"  {entry.message}", (f"  {show(entry.fields)}" if entry.fields else "", "dim"),
    )  # fmt: skip
    console().print(line, soft_wrap=True)


def _style(entry: LogEntry) -> str:
    return _STYLES.get(entry.level, "")
