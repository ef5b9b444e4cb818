"""`millstream workflows`."""

import sys
from collections.abc import Iterable
from dataclasses import replace
from typing import Annotated, Any, TypeAlias

import typer

from millstream.cli.connect import DEFAULT_LIMIT, DEFAULT_TARGET, REFUSED, ApiKey, Json, Limit, Target, call
from millstream.cli.definitions import definitions_of, differences, shown, yaml_of
from millstream.cli.executions import Priority, Queue, RunTimeout, print_execution
from millstream.cli.given import json_value, labels_of
from millstream.cli.output import print_fields, print_json, print_list
from millstream.sdk import (
    Applied,
    Client,
    DefinitionCheck,
    Execution,
    FieldDetail,
    InvalidRequestError,
    RunResult,
    Triggered,
    Workflow,
    WorkflowPause,
    WorkflowVersion,
)

app = typer.Typer(help="Define workflows and read them.", no_args_is_help=True)

Name: TypeAlias = Annotated[str, typer.Argument(help="Name or id of the workflow.", show_default=False)]
Files: TypeAlias = Annotated[
    list[str],
    typer.Option("--file", "-f", help="JSON (.json) or YAML; - for stdin. Repeat for more.", show_default=False),
]
_COLUMNS = {
    "name": lambda w: w.name,
    "version": lambda w: w.version,
    "status": lambda w: w.status,
    "updated": lambda w: w.updated_at,
    "description": lambda w: w.description,
}
_VERSION_COLUMNS = {
    "version": lambda v: v.version,
    "created": lambda v: v.created_at,
    "by": lambda v: v.created_by,
    "workflow id": lambda v: v.workflow_id,
}


@app.command()
def apply(file: Files, target: Target = DEFAULT_TARGET, api_key: ApiKey = None, as_json: Json = False) -> None:
    """Create workflows from files, or make their next versions where they differ."""
    definitions = [each for path in file for each in definitions_of(path)]

    async def work(client: Client) -> None:
        for definition in definitions:
            _print_applied(await _applied(client, definition), as_json)

    call(target, api_key, work)


@app.command()
def validate(file: Files, target: Target = DEFAULT_TARGET, api_key: ApiKey = None, as_json: Json = False) -> None:
    """Say what is wrong with definitions; nothing is saved."""
    definitions = [each for path in file for each in definitions_of(path)]

    async def work(client: Client) -> list[DefinitionCheck]:
        return [await client.workflows.validate(each) for each in definitions]

    found = call(target, api_key, work)
    for definition, check in zip(definitions, found, strict=True):
        if as_json:
            print_json(check, indent=False)
            continue
        name = definition.get("name", "a definition without a name")
        print(f"{name} is fine" if check.valid else f"{name} has faults:")
        for each in check.faults:
            print(f"  {_line(each)}")
        _warn(check.warnings)
    if not all(check.valid for check in found):
        raise typer.Exit(REFUSED)


@app.command("list")
def list_(
    name: Annotated[str, typer.Option(help="With this name.")] = "",
    status: Annotated[str, typer.Option(help="ACTIVE or DELETED.")] = "",
    sort: Annotated[str, typer.Option(help="name, created_at or updated_at; with - before it: descending.")] = "",
    limit: Limit = DEFAULT_LIMIT,
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """List workflows."""

    async def work(client: Client) -> None:
        try:
            listing = client.workflows.list(name=name, status=status, sort=sort)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--status") from error
        await print_list(listing, _COLUMNS, as_json=as_json, limit=limit, title="workflows")

    call(target, api_key, work)


@app.command()
def get(
    workflow: Name,
    version: Annotated[int | None, typer.Option(min=1, help="Default: the latest.", show_default=False)] = None,
    as_yaml: Annotated[bool, typer.Option("--yaml", help="Print the definition alone, as apply takes it.")] = False,
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Show a workflow with its definition."""

    async def work(client: Client) -> Workflow | WorkflowVersion:
        if version is None:
            return await client.workflows.get(workflow)
        return await client.workflows.version(workflow, version)

    found = call(target, api_key, work)
    text = yaml_of(found.definition or {})
    if as_json:
        print_json(found)
    elif as_yaml:
        sys.stdout.write(text)
    else:
        head = {"workflow id": found.workflow_id} if isinstance(found, WorkflowVersion) else _head(found)
        print_fields({**head, "version": found.version, "created": found.created_at, "created by": found.created_by})
        sys.stdout.write("\n" + text)


def _head(found: Workflow) -> dict[str, object]:
    return {"name": found.name, "id": found.id, "status": found.status, "updated": found.updated_at}


@app.command()
def execute(
    workflow: Name,
    given: Annotated[str, typer.Argument(metavar="[INPUT]", help="JSON, @file, or - for stdin.")] = "null",
    version: Annotated[str, typer.Option(help="Default: the latest.", show_default=False)] = "",
    label: Annotated[list[str] | None, typer.Option(help="NAME=VALUE; repeat for more.", show_default=False)] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for its end; exit code 1 unless it completed.")] = False,
    wait_most: Annotated[float, typer.Option("--timeout", min=1, max=300, help="Seconds to wait.")] = 30,
    run_timeout: RunTimeout = None,
    key: Annotated[str, typer.Option(help="Idempotency key.", show_default=False)] = "",
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Begin a run of a workflow."""
    value, labels = json_value(given, "INPUT"), labels_of(label)

    async def work(client: Client) -> Execution | RunResult:
        if wait:
            return await client.workflows.execute_sync(
                workflow, value, version=version, labels=labels, timeout=wait_most, run_timeout=run_timeout,
                idempotency_key=key,
            )  # fmt: skip
        return await client.workflows.execute(
            workflow, value, version=version, labels=labels, run_timeout=run_timeout, idempotency_key=key
        )

    found = call(target, api_key, work)
    if as_json:
        print_json(found)
    else:
        print_execution(found)
    if isinstance(found, RunResult) and found.status != "COMPLETED":
        raise typer.Exit(REFUSED)


@app.command()
def trigger(
    workflow: Annotated[str, typer.Argument(help="Name of the workflow.", show_default=False)],
    given: Annotated[str, typer.Argument(metavar="[INPUT]", help="JSON, @file, or - for stdin.")] = "null",
    tenant: Annotated[str, typer.Option(help="The caller's own.")] = "default",
    version: Annotated[str, typer.Option(help="Default: the latest.", show_default=False)] = "",
    queue: Queue = "",
    priority: Priority = 0,
    label: Annotated[list[str] | None, typer.Option(help="NAME=VALUE; repeat for more.", show_default=False)] = None,
    run_key: Annotated[
        str, typer.Option(help="While a run of this workflow and key stands, it is the answer.", show_default=False)
    ] = "",
    run_key_ttl: Annotated[
        int | None, typer.Option(min=1, help="Seconds that the key holds. Default: 24 h.", show_default=False)
    ] = None,
    key: Annotated[str, typer.Option(help="Idempotency key of this call.", show_default=False)] = "",
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Begin a run of a workflow, unless one with its key stands."""
    value, labels = json_value(given, "INPUT"), labels_of(label)

    async def work(client: Client) -> Triggered:
        return await client.workflows.trigger(
            workflow, value, tenant=tenant, version=version, queue=queue, priority=priority, labels=labels,
            run_key=run_key, run_key_ttl=run_key_ttl, idempotency_key=key,
        )  # fmt: skip

    found = call(target, api_key, work)
    if as_json:
        print_json(found)
    else:
        there = ", which was there" if found.existing else ""
        print_fields({"run id": found.run_id, "workflow": found.workflow, "status": f"{found.status}{there}"})


@app.command()
def pause(
    workflow: Name,
    reason: Annotated[str, typer.Option(help="Why, for people.", show_default=False)] = "",
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
) -> None:
    """Hold a workflow: no step of its runs begins until it is resumed."""

    async def work(client: Client) -> str:
        return (await client.workflows.pause(workflow, reason)).workflow

    print(f"{call(target, api_key, work)} is held")


@app.command()
def resume(workflow: Name, target: Target = DEFAULT_TARGET, api_key: ApiKey = None) -> None:
    """Let a held workflow go on."""

    async def work(client: Client) -> None:
        await client.workflows.resume(workflow)

    call(target, api_key, work)
    print(f"{workflow} goes on")


@app.command()
def paused(target: Target = DEFAULT_TARGET, api_key: ApiKey = None, as_json: Json = False) -> None:
    """List the workflows that are held."""

    async def work(client: Client) -> list[WorkflowPause]:
        return await client.workflows.paused()

    found = call(target, api_key, work)
    if as_json:
        print_json(found)
        return
    for each in found:
        print_fields({"workflow": each.workflow, "since": each.paused_at, "by": each.paused_by, "why": each.reason})


@app.command()
def versions(
    workflow: Name,
    limit: Limit = DEFAULT_LIMIT,
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """List the versions of a workflow, newest first."""

    async def work(client: Client) -> None:
        listing = client.workflows.versions(workflow)
        await print_list(listing, _VERSION_COLUMNS, as_json=as_json, limit=limit, title="versions")

    call(target, api_key, work)


@app.command()
def diff(
    workflow: Name,
    before: Annotated[int, typer.Argument(min=1, help="A version.", show_default=False)],
    after: Annotated[int, typer.Argument(min=1, help="Another version.", show_default=False)],
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Show how two versions of a workflow differ."""

    async def work(client: Client) -> tuple[WorkflowVersion, WorkflowVersion]:
        return await client.workflows.version(workflow, before), await client.workflows.version(workflow, after)

    first, second = call(target, api_key, work)
    found = differences(first.definition or {}, second.definition or {})
    if as_json:
        for each in found:
            print_json(each, indent=False)
    else:
        print(shown(found) or f"versions {before} and {after} are the same")


@app.command()
def delete(workflow: Name, target: Target = DEFAULT_TARGET, api_key: ApiKey = None) -> None:
    """Delete a workflow: no run of it begins any more; those that began go on."""
    call(target, api_key, lambda client: client.workflows.delete(workflow))
    print(f"{workflow} is deleted")


@app.command()
def schema(target: Target = DEFAULT_TARGET, api_key: ApiKey = None) -> None:
    """Print the JSON Schema of definitions, for editors."""
    print_json(call(target, api_key, lambda client: client.workflows.schema()))


async def _applied(client: Client, definition: dict[str, Any]) -> Applied:
    """What became of a definition. Raises InvalidRequestError with all faults, by the fields of the file."""
    try:
        return await client.workflows.apply(definition)
    except InvalidRequestError as error:
        # An error has room for some of them only.
        found = (await client.workflows.validate(definition)).faults or error.details
        error.details = tuple(replace(each, field=_field(each)) for each in found)
        raise


def _print_applied(applied: Applied, as_json: bool) -> None:
    found = applied.workflow
    if as_json:
        print_json(applied, indent=False)
        return
    texts = {"created": "created as", "updated": "changed to", "unchanged": "unchanged at"}
    print(f"{found.name} is {texts[applied.outcome]} version {found.version}")
    _warn(found.warnings)


def _warn(warnings: Iterable[FieldDetail]) -> None:
    for each in warnings:
        print(f"warning: {_line(each)}", file=sys.stderr)


def _line(fault: FieldDetail) -> str:
    field = _field(fault)
    return f"{field}: {fault.message}" if field else fault.message


def _field(fault: FieldDetail) -> str:
    """The field within the file."""
    return fault.field.removeprefix("definition").removeprefix(".")
