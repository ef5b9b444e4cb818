"""`millstream runs`."""

from typing import Annotated

import typer

from millstream.cli.connect import DEFAULT_LIMIT, DEFAULT_TARGET, ApiKey, Json, Limit, Target, call
from millstream.cli.output import print_fields, print_json, print_list
from millstream.cli.tasks import fault
from millstream.sdk import Client, Run

app = typer.Typer(help="Read and cancel runs.", no_args_is_help=True)

RunId = Annotated[str, typer.Argument(help="Id of the run.", show_default=False)]

_COLUMNS = {
    "id": lambda r: r.run_id,
    "kind": lambda r: r.kind,
    "status": lambda r: r.status,
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


@app.command("list")
def list_(
    status: Annotated[str, typer.Option(help="In this status, such as FAILED.")] = "",
    kind: Annotated[str, typer.Option(help="CASCADE or SINGLE.")] = "",
    limit: Limit = DEFAULT_LIMIT,
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """List runs, newest first."""

    async def work(client: Client) -> None:
        try:
            listing = client.runs.list(status=status, kind=kind)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
        await print_list(listing, _COLUMNS, as_json=as_json, limit=limit, title="runs")

    call(target, api_key, work)


@app.command()
def get(run_id: RunId, target: Target = DEFAULT_TARGET, api_key: ApiKey = None, as_json: Json = False) -> None:
    """Show a run."""
    _show(call(target, api_key, lambda client: client.runs.get(run_id)), as_json)


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
def cancel(
    run_id: RunId,
    reason: Annotated[str, typer.Option(help="Why, for the run's events.")] = "",
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Cancel a run: running tasks are told, and have 10 s to end."""
    _show(call(target, api_key, lambda client: client.runs.cancel(run_id, reason)), as_json)


def _show(run: Run, as_json: bool) -> None:
    if as_json:
        print_json(run)
        return
    print_fields(
        {
            "id": run.run_id,
            "kind": run.kind,
            "status": run.status,
            "created": run.created_at,
            "updated": run.updated_at,
            "finished": run.finished_at,
            "error": fault(run.error),
            "tasks": f"{run.task_count} ({run.open_tasks} open, {run.failed_tasks} failed)",
            "open gates": run.open_gates or None,
            "parents": run.parent_run_ids,
            "artifacts": run.artifact_count,
            "events": run.last_sequence,
            "created by": run.created_by,
            "labels": run.labels,
        }
    )
