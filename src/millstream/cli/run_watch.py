"""`millstream runs watch` and `millstream workflow watch-tasks`: a run as it goes."""

import asyncio
import sys
from typing import Annotated

import typer
from rich.live import Live
from rich.text import Text

from millstream.cli.connect import DEFAULT_TARGET, ApiKey, Json, Target, showing
from millstream.cli.output import console, print_json, show
from millstream.cli.run_operations import RunId
from millstream.cli.run_tree import RunTree
from millstream.sdk import Client, RunHappening, RunWatch

DRAWN_EVERY_S = 0.1

Cursor = Annotated[str, typer.Option(help="Go on behind this, which --json shows with each event.")]


def watch(
    run_id: RunId,
    descendants: Annotated[bool, typer.Option(help="With the runs that it began, and theirs.")] = True,
    cursor: Cursor = "",
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Watch a run until it ends: a live tree of its tasks and of the runs that it began, with how far they are; a line
    for each event where it is piped. A lost connection is resumed: nothing is missed, and nothing shown twice."""

    async def work(client: Client) -> None:
        found = client.runs.watch(run_id, include_descendants=descendants, cursor=cursor)
        await (_tree(found, run_id.lower()) if sys.stdout.isatty() and not as_json else _lines(found, as_json))

    showing(target, api_key, work)


def watch_tasks(
    run_id: RunId,
    cursor: Cursor = "",
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Watch what happens to the tasks of a run, a line each, until it ends."""

    async def work(client: Client) -> None:
        await _lines(client.runs.watch(run_id, tasks_only=True, cursor=cursor), as_json)

    showing(target, api_key, work)


async def _tree(found: RunWatch, run_id: str) -> None:
    tree, changed = RunTree(run_id), asyncio.Event()

    async def draw(live: Live) -> None:
        while True:
            await changed.wait()
            changed.clear()
            live.update(tree.show(), refresh=True)
            # Of much that comes at once the last is drawn.
            await asyncio.sleep(DRAWN_EVERY_S)

    with Live(tree.show(), console=console(), auto_refresh=False) as live:
        drawing = asyncio.create_task(draw(live))
        try:
            async for each in found.messages():
                tree.add(each)
                changed.set()
        finally:
            drawing.cancel()
        live.update(tree.show(), refresh=True)


async def _lines(found: RunWatch, as_json: bool) -> None:
    async for each in found.messages():
        if as_json:
            print_json(each, indent=False)
        elif each.event is not None:
            console().print(_line(each), soft_wrap=True)
        elif each.streamed is not None:
            console().print(Text(f"  {each.streamed.task_id}  {show(each.streamed.value)}", "dim"), soft_wrap=True)
        sys.stdout.flush()


def _line(happening: RunHappening) -> Text:
    event = happening.event
    if event is None:
        return Text()
    return Text.assemble(
        (show(event.created_at), "dim"), f"  {happening.run_id}  {event.sequence:>4}  {event.type:<18}",
        (f"  {event.task_id}" if event.task_id else "", "cyan"), (f"  {show(event.data)}" if event.data else "", "dim"),
    )  # fmt: skip
