"""`millstream types`."""

from typing import Annotated

import typer

from millstream.cli.connect import DEFAULT_LIMIT, DEFAULT_TARGET, ApiKey, Json, Limit, Target, call
from millstream.cli.given import json_object
from millstream.cli.output import print_fields, print_json, print_list
from millstream.sdk import ArtifactType, Client

app = typer.Typer()

Name = Annotated[str, typer.Argument(help="Name of the type.", show_default=False)]
Version = Annotated[int | None, typer.Option(min=1, help="Default: the latest.", show_default=False)]

_COLUMNS = {
    "name": lambda t: t.name,
    "version": lambda t: t.version,
    "created": lambda t: t.created_at,
    "deprecated": lambda t: (t.deprecation_message or "yes") if t.deprecated else "",
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
    """Read and register artifact types; list them, where no command is given."""
    if context.invoked_subcommand is None:
        list_(limit, target, api_key, as_json)


@app.command()
def get(
    name: Name,
    version: Version = None,
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Show an artifact type with its JSON Schema."""
    _show(call(target, api_key, lambda client: client.types.get(name, version)), as_json)


def _show(found: ArtifactType, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    print_fields(
        {
            "name": found.name,
            "version": found.version,
            "description": found.description,
            "deprecated": (found.deprecation_message or "yes") if found.deprecated else "",
            "compatibility": found.compatibility,
            "allowed changes": found.allowed_changes,
            "kept for": f"{found.retention_days} days" if found.retention_days else "",
            "created": found.created_at,
            "schema": found.schema,
            "examples": list(found.examples),
        }
    )


@app.command()
def create(
    name: Name,
    schema: Annotated[str, typer.Argument(metavar="[JSON|@FILE|-]", help="Its JSON Schema; default: anything.")] = "{}",
    description: Annotated[str, typer.Option(help="What it is, for people.")] = "",
    compatibility: Annotated[str, typer.Option(help="backward, rules or none; default: as before.")] = "",
    allow: Annotated[list[str] | None, typer.Option(help="With rules: a change to allow; may be repeated.")] = None,
    retention_days: Annotated[int | None, typer.Option(min=0, help="0: the server's.", show_default=False)] = None,
    example: Annotated[
        list[str] | None, typer.Option("--example", metavar="JSON|@FILE", help="A payload; may be repeated.")
    ] = None,
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Register an artifact type, or its next version; with the schema it has, change what else is given."""
    given = json_object(schema, "SCHEMA")
    examples = [json_object(each, "--example") for each in example or ()]

    async def work(client: Client) -> ArtifactType:
        return await client.types.create(
            name,
            given,
            description=description,
            compatibility=compatibility,
            allowed_changes=[each.upper() for each in allow or ()],
            retention_days=retention_days,
            examples=examples,
        )

    _show(call(target, api_key, work), as_json)


@app.command()
def update(
    name: Name,
    version: Version = None,
    description: Annotated[str | None, typer.Option(help="What it is, for people.", show_default=False)] = None,
    deprecated: Annotated[
        bool | None,
        typer.Option(
            "--deprecate/--undeprecate", help="Tell publishers not to use it, or no more.", show_default=False
        ),
    ] = None,
    message: Annotated[str | None, typer.Option(help="What to use in its place.", show_default=False)] = None,
    retention_days: Annotated[int | None, typer.Option(min=0, help="0: the server's.", show_default=False)] = None,
    compatibility: Annotated[
        str | None, typer.Option(help="Of the next version: backward, rules or none.", show_default=False)
    ] = None,
    allow: Annotated[list[str] | None, typer.Option(help="With rules: a change to allow; may be repeated.")] = None,
    example: Annotated[
        list[str] | None,
        typer.Option("--example", metavar="JSON|@FILE", help="In place of those it has; repeat for more."),
    ] = None,
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Change what a type says beside its schema; what is left out stays as it is."""
    given = (description, deprecated, message, retention_days, compatibility)
    if all(each is None for each in given) and not allow and not example:
        raise typer.BadParameter("nothing is to be changed: give an option; --help names them")
    if deprecated is False and message is None:
        message = ""
    examples = [json_object(each, "--example") for each in example or ()]

    async def work(client: Client) -> ArtifactType:
        return await client.types.update(
            name,
            version=version,
            description=description,
            deprecated=deprecated,
            deprecation_message=message,
            retention_days=retention_days,
            compatibility=compatibility,
            allowed_changes=[each.upper() for each in allow or ()],
            examples=examples,
        )

    _show(call(target, api_key, work), as_json)


@app.command()
def versions(
    name: Name,
    limit: Limit = DEFAULT_LIMIT,
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """List the versions of an artifact type, newest first."""

    async def work(client: Client) -> None:
        await print_list(client.types.versions(name), _COLUMNS, as_json=as_json, limit=limit, title="versions")

    call(target, api_key, work)


@app.command()
def deprecate(
    name: Name,
    message: Annotated[str, typer.Argument(help="What to use in its place.")] = "",
    version: Version = None,
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Tell those who publish a type what to use in its place; it goes on working."""
    _show(call(target, api_key, lambda client: client.types.deprecate(name, message, version=version)), as_json)


@app.command()
def schema(name: Name, version: Version = None, target: Target = DEFAULT_TARGET, api_key: ApiKey = None) -> None:
    """Print the JSON Schema of an artifact type."""
    print_json(call(target, api_key, lambda client: client.types.schema(name, version)))
