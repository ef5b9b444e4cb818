"""`millstream runs`: what is done to them, one or many."""

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Annotated, Any, TypeAlias

import typer

from millstream.cli.connect import DEFAULT_TARGET, REFUSED, ApiKey, Json, Target, call
from millstream.cli.given import aware, labels_of
from millstream.cli.output import print_fields, print_json, print_table
from millstream.cli.tasks import fault
from millstream.sdk import Client, Run, RunOutcome, RunsDone

RunId: TypeAlias = Annotated[str, typer.Argument(help="Id of the run.", show_default=False)]
RunIds: TypeAlias = Annotated[
    list[str] | None, typer.Argument(help="Ids of the runs; none: those that the options tell.", show_default=False)
]
Kind: TypeAlias = Annotated[str, typer.Option(help="CASCADE, SINGLE, GRAPH or CODE.")]
Workflow: TypeAlias = Annotated[str, typer.Option(help="Of this workflow, by name or id.")]
Labels: TypeAlias = Annotated[
    list[str] | None, typer.Option("--label", help="With this label, as NAME=VALUE; may be repeated.")
]
TextIn: TypeAlias = Annotated[
    str, typer.Option(help="With this in its id, workflow, error message or a label's value.")
]
After: TypeAlias = Annotated[datetime | None, typer.Option(help="Begun at this time or later.")]
Before: TypeAlias = Annotated[datetime | None, typer.Option(help="Begun before this time.")]
DryRun: TypeAlias = Annotated[bool, typer.Option("--dry-run", help="Tell which runs these are, and change nothing.")]

Many: TypeAlias = Callable[..., Awaitable[RunsDone]]
"""The client's method for many runs."""
_OUTCOMES = {
    "id": lambda o: o.run_id,
    "outcome": lambda o: o.status,
    "error": lambda o: str(o.error) if o.error else "",
}


def show_run(run: Run, as_json: bool) -> None:
    """Print a run."""
    if as_json:
        print_json(run)
        return
    print_fields(
        {
            "id": run.run_id,
            "kind": run.kind,
            "workflow": f"{run.workflow} {run.workflow_version}".strip(),
            "status": run.status,
            "paused": run.paused_at,
            "created": run.created_at,
            "updated": run.updated_at,
            "finished": run.finished_at,
            "timeout": f"{run.timeout:g} s" if run.timeout else "",
            "deadline": run.deadline,
            "error": fault(run.error),
            "retried": run.retry_attempt or None,
            "rerun of": run.rerun_of,
            "parent": run.parent_run_id,
            "tasks": f"{run.task_count} ({run.open_tasks} open, {run.failed_tasks} failed)",
            "open gates": run.open_gates or None,
            "parents": run.parent_run_ids,
            "artifacts": run.artifact_count,
            "events": run.last_sequence,
            "created by": run.created_by,
            "labels": run.labels,
            "input": run.input,
            "output": run.output,
        }
    )


def add_to(app: typer.Typer) -> None:
    """Add the commands to `millstream runs`."""
    for command in (cancel, retry, rerun, pause, resume):
        app.command()(command)


def cancel(
    run_ids: RunIds = None,
    reason: Annotated[str, typer.Option(help="Why, for the runs' events.")] = "",
    kind: Kind = "",
    workflow: Workflow = "",
    label: Labels = None,
    text: TextIn = "",
    after: After = None,
    before: Before = None,
    dry_run: DryRun = False,
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Cancel a run, or all running ones that the options tell: running tasks are told, and have 10 s to end."""
    having = _having(kind, workflow, label, text, after, before)
    if _is_one(run_ids, having, dry_run):
        show_run(call(target, api_key, lambda client: client.runs.cancel(_one(run_ids), reason)), as_json)
        return
    _many(target, api_key, lambda client: client.runs.cancel_many, run_ids, reason, dry_run, having, as_json)


def retry(
    run_ids: RunIds = None,
    note: Annotated[str, typer.Option(help="Why, for the runs' events.")] = "",
    from_step: Annotated[str, typer.Option(help="Of one run of a workflow: the step to begin again with.")] = "",
    kind: Kind = "",
    workflow: Workflow = "",
    label: Labels = None,
    text: TextIn = "",
    after: After = None,
    before: Before = None,
    dry_run: DryRun = False,
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Retry a failed run, or all failed ones that the options tell: what is done stays, what failed begins again."""
    having = _having(kind, workflow, label, text, after, before)
    if _is_one(run_ids, having, dry_run):
        run_id = _one(run_ids)
        show_run(call(target, api_key, lambda client: client.runs.retry(run_id, note, from_step=from_step)), as_json)
        return
    if from_step:
        raise typer.BadParameter("goes with one run", param_hint="--from-step")
    _many(target, api_key, lambda client: client.runs.retry_many, run_ids, note, dry_run, having, as_json)


def rerun(
    run_id: RunId,
    latest: Annotated[bool, typer.Option("--latest", help="In its workflow's latest version: code's default.")] = False,
    same: Annotated[bool, typer.Option("--same", help="In the version of the other: a definition's default.")] = False,
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Begin a new run with what another was given."""
    if latest and same:
        raise typer.BadParameter("goes without --same", param_hint="--latest")
    version = "latest" if latest else "same" if same else ""
    show_run(call(target, api_key, lambda client: client.runs.rerun(run_id, version=version)), as_json)


def pause(
    run_id: RunId,
    reason: Annotated[str, typer.Option(help="Why, for the run's events.")] = "",
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Pause a run: nothing new of it starts, what runs ends."""
    show_run(call(target, api_key, lambda client: client.runs.pause(run_id, reason)), as_json)


def resume(run_id: RunId, target: Target = DEFAULT_TARGET, api_key: ApiKey = None, as_json: Json = False) -> None:
    """Let a paused run go on."""
    show_run(call(target, api_key, lambda client: client.runs.resume(run_id)), as_json)


def _having(
    kind: str, workflow: str, label: list[str] | None, text: str, after: datetime | None, before: datetime | None
) -> dict[str, Any]:
    """What the runs have in common, as the client takes it."""
    said = {
        "kind": kind,
        "workflow": workflow,
        "labels": labels_of(label),
        "text": text,
        "created_after": aware(after),
        "created_before": aware(before),
    }
    return {name: value for name, value in said.items() if value}


def _is_one(run_ids: list[str] | None, having: dict[str, Any], dry_run: bool) -> bool:
    if not run_ids and not having:
        raise typer.BadParameter("name runs, or say by options which")
    if run_ids and having:
        raise typer.BadParameter("name runs, or say by options which, not both")
    return bool(run_ids) and len(run_ids or ()) == 1 and not dry_run


def _one(run_ids: list[str] | None) -> str:
    return (run_ids or [""])[0]


def _many(
    target: str,
    api_key: str | None,
    method: Callable[[Client], Many],
    run_ids: list[str] | None,
    why: str,
    dry_run: bool,
    having: dict[str, Any],
    as_json: bool,
) -> None:
    """Call after call until nothing is left; a dry run asks once. Ends with an error where a run was refused."""

    async def work(client: Client) -> list[RunsDone]:
        done: list[RunsDone] = []
        try:
            while not done or (done[-1].next_page_token and not dry_run):
                token = done[-1].next_page_token if done else ""
                done.append(await method(client)(run_ids or (), why, dry_run=dry_run, page_token=token, **having))
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
        return done

    done = call(target, api_key, work)
    results: list[RunOutcome] = [each for part in done for each in part.results]
    failed = sum(part.failed for part in done)
    if as_json:
        for each in results:
            print_json(each, indent=False)
    else:
        print_table(results, _OUTCOMES, title="runs")
        left = f", {done[-1].left} left" if done[-1].left else ""
        what = "matched" if dry_run else "accepted"
        counted = done[0].matched if dry_run else sum(part.accepted for part in done)
        typer.echo(f"{counted} {what}, {failed} failed{left}")
    if failed:
        raise typer.Exit(REFUSED)
