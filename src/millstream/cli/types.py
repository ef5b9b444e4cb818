"""`millstream types`."""

from typing import Annotated

import typer

from millstream.cli.connect import DEFAULT_LIMIT, DEFAULT_TARGET, ApiKey, Json, Limit, Target, call
from millstream.cli.output import print_fields, print_json, print_list
from millstream.sdk import Client

app = typer.Typer()

_COLUMNS = {
    "name": lambda t: t.name,
    "version": lambda t: t.version,
    "created": lambda t: t.created_at,
    "description": lambda t: t.description,
}


@app.command("list")
def list_(
    limit: Limit = DEFAULT_LIMIT, target: Target = DEFAULT_TARGET, api_key: ApiKey = None, as_json: Json = False
) -> None:
    """List artifact types, each in its latest version."""

    async def work(client: Client) -> None:
        await print_list(client.types.list(), _COLUMNS, as_json=as_json, limit=limit, title="types")

    call(target, api_key, work)


@app.callback(invoke_without_command=True)
def types(
    context: typer.Context,
    limit: Limit = DEFAULT_LIMIT,
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Read artifact types; list them, where no command is given."""
    if context.invoked_subcommand is None:
        list_(limit, target, api_key, as_json)


@app.command()
def get(
    name: Annotated[str, typer.Argument(help="Name of the type.", show_default=False)],
    version: Annotated[int | None, typer.Option(min=1, help="Default: the latest.", show_default=False)] = None,
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Show an artifact type with its JSON Schema."""
    found = call(target, api_key, lambda client: client.types.get(name, version))
    if as_json:
        print_json(found)
    else:
        print_fields(
            {
                "name": found.name,
                "version": found.version,
                "description": found.description,
                "created": found.created_at,
                "schema": found.schema,
            }
        )
