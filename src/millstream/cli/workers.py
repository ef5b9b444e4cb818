"""`millstream workers` and `millstream kinds`."""

from typing import Annotated

import typer

from millstream.cli.connect import DEFAULT_LIMIT, DEFAULT_TARGET, ApiKey, Json, Limit, Target, call
from millstream.cli.output import print_fields, print_json, print_list
from millstream.sdk import Client, KindInfo, WorkerInfo

app = typer.Typer(help="Show who the workers are.", no_args_is_help=True)


def _kind(found: KindInfo) -> str:
    return f"{found.kind} {found.version}".rstrip()


def _slots(found: WorkerInfo) -> str:
    return f"{found.slots_used}/{found.slots}"


_COLUMNS = {
    "id": lambda w: w.worker_id,
    "name": lambda w: w.name,
    "status": lambda w: w.status,
    "slots": _slots,
    "heard of": lambda w: w.last_heartbeat_at,
    "queues": lambda w: w.queues,
    "kinds": lambda w: [_kind(each) for each in w.kinds],
    "agents": lambda w: w.agents,
}
_KINDS = {
    "kind": lambda k: k.kind,
    "version": lambda k: k.version,
    "of": lambda k: k.category,
    "status": lambda k: k.status,
    "workers": lambda k: k.worker_count,
    "queues": lambda k: k.queues,
    "description": lambda k: k.description,
}


@app.command("list")
def list_(
    status: Annotated[str, typer.Option(help="ONLINE, DRAINING or OFFLINE.")] = "",
    kind: Annotated[str, typer.Option(help="That serve this kind; agent:NAME for an agent.")] = "",
    queue: Annotated[str, typer.Option(help="That take tasks from this queue.")] = "",
    name: Annotated[str, typer.Option(help="Of this name.")] = "",
    limit: Limit = DEFAULT_LIMIT,
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """List workers that are connected, or were not long ago; the last connected first."""

    async def work(client: Client) -> None:
        try:
            listing = client.workers.list(status=status, kind=kind, queue=queue, name=name)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--status") from error
        await print_list(listing, _COLUMNS, as_json=as_json, limit=limit, title="workers")

    call(target, api_key, work)


@app.command()
def get(
    worker_id: Annotated[str, typer.Argument(help="Id of the worker.", show_default=False)],
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Show a worker with its kinds and their schemas."""
    found = call(target, api_key, lambda client: client.workers.get(worker_id))
    if as_json:
        print_json(found)
        return
    print_fields(
        {
            "id": found.worker_id,
            "name": found.name,
            "status": found.status,
            "server": found.server,
            "connected": found.connected_at,
            "heard of": found.last_heartbeat_at,
            "went": found.disconnected_at,
            "slots": _slots(found),
            "queues": found.queues,
            "agents": found.agents,
            "kinds": [_spec(each) for each in found.kinds],
        }
    )


def _spec(found: KindInfo) -> dict[str, object]:
    said = {
        "kind": found.kind,
        "category": found.category,
        "version": found.version,
        "description": found.description,
        "input_schema": found.input_schema,
        "output_schema": found.output_schema,
    }
    return {name: value for name, value in said.items() if value}


def kinds(
    kind: Annotated[str, typer.Option(help="Of this name, in all versions.")] = "",
    category: Annotated[str, typer.Option(help="TASK or WORKFLOW.")] = "",
    status: Annotated[str, typer.Option(help="ONLINE or OFFLINE.")] = "",
    limit: Limit = DEFAULT_LIMIT,
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """List the kinds of tasks and workflows that workers serve, and who serves them; --json has their schemas."""

    async def work(client: Client) -> None:
        try:
            listing = client.kinds.list(kind=kind, category=category, status=status)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
        await print_list(listing, _KINDS, as_json=as_json, limit=limit, title="kinds")

    call(target, api_key, work)
