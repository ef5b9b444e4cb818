"""`millstream queues`."""

from typing import Annotated

import typer

from millstream.cli.connect import DEFAULT_LIMIT, DEFAULT_TARGET, ApiKey, Json, Limit, Target, call
from millstream.cli.output import print_json, print_list
from millstream.sdk import Client, Queue

app = typer.Typer(help="Show queues, and pause and resume them.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="Name of the queue.", show_default=False)]
_COUNTED = 10_000


def counted(number: int) -> str:
    """A count that ends at 10,001."""
    return str(number) if number <= _COUNTED else f"over {_COUNTED:,}"


def pause_of(queue: Queue) -> str:
    """Who paused it and why; "" where nobody has."""
    if not queue.paused:
        return ""
    return f"by {queue.paused_by}" + (f": {queue.pause_reason}" if queue.pause_reason else "")


_COLUMNS = {
    "queue": lambda q: q.queue,
    "ready": lambda q: counted(q.ready),
    "in line": lambda q: counted(q.in_line),
    "scheduled": lambda q: counted(q.scheduled),
    "running": lambda q: counted(q.running),
    "oldest ready": lambda q: q.oldest_ready_at,
    "paused": pause_of,
}


@app.command("list")
def list_(
    limit: Limit = DEFAULT_LIMIT, target: Target = DEFAULT_TARGET, api_key: ApiKey = None, as_json: Json = False
) -> None:
    """List the queues in which something waits or runs, that a worker serves, or that are paused."""

    async def work(client: Client) -> None:
        await print_list(client.queues.list(), _COLUMNS, as_json=as_json, limit=limit, title="queues")

    call(target, api_key, work)


@app.command()
def pause(
    queue: Name,
    reason: Annotated[str, typer.Option(help="Why, for people.", show_default=False)] = "",
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Let a queue's tasks wait until it is resumed; what runs goes on."""
    _print(call(target, api_key, lambda client: client.queues.pause(queue, reason)), as_json)


@app.command()
def resume(queue: Name, target: Target = DEFAULT_TARGET, api_key: ApiKey = None, as_json: Json = False) -> None:
    """Let a paused queue's tasks go on."""
    _print(call(target, api_key, lambda client: client.queues.resume(queue)), as_json)


def _print(queue: Queue, as_json: bool) -> None:
    if as_json:
        print_json(queue)
    else:
        print(f"{queue.queue}: " + (f"PAUSED {pause_of(queue)}" if queue.paused else "goes on"))
