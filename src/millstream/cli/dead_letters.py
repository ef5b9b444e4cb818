"""`millstream tasks dead`, `retry` and `drop`."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Annotated, Final, TypeAlias

import typer

from millstream.cli.connect import DEFAULT_LIMIT, DEFAULT_TARGET, INCOMPLETE, ApiKey, Json, Limit, Target, call
from millstream.cli.output import print_error, print_json, print_list
from millstream.sdk import BulkOutcome, Client, DeadLetters, Fault, ServiceError

Kind: TypeAlias = Annotated[str, typer.Option(help="Of this kind.")]
Queue: TypeAlias = Annotated[str, typer.Option(help="In this queue.")]
Code: TypeAlias = Annotated[str, typer.Option("--error-code", help="Failed with this code.")]
Since: TypeAlias = Annotated[datetime | None, typer.Option(help="Failed at this time or later.", show_default=False)]
Until: TypeAlias = Annotated[datetime | None, typer.Option(help="Failed before this time.", show_default=False)]
Ids: TypeAlias = Annotated[list[str] | None, typer.Argument(help="Ids of tasks.", show_default=False)]
All: TypeAlias = Annotated[bool, typer.Option("--all", help="Every dead letter that the options match.")]
DryRun: TypeAlias = Annotated[bool, typer.Option("--dry-run", help="Only say how many it would be.")]
Note: TypeAlias = Annotated[str, typer.Option(help="Why, for the runs' events.")]

_MOST: Final = 1000


def fault(error: Fault | None) -> str:
    """The fault on one line."""
    return f"{error.code}: {error.message}" if error else ""


_COLUMNS = {
    "id": lambda t: t.task_id,
    "kind": lambda t: t.kind,
    "queue": lambda t: t.queue,
    "attempts": lambda t: t.attempt,
    "failed": lambda t: t.finished_at,
    "error": lambda t: fault(t.error),
}


def dead(
    kind: Kind = "",
    queue: Queue = "",
    code: Code = "",
    since: Since = None,
    until: Until = None,
    limit: Limit = DEFAULT_LIMIT,
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """List dead letters: tasks that failed finally, the latest first."""
    wanted = DeadLetters(kind, queue, code, since, until)

    async def work(client: Client) -> None:
        await print_list(client.tasks.dead.list(wanted), _COLUMNS, as_json=as_json, limit=limit, title="dead letters")

    call(target, api_key, work)


def retry(
    ids: Ids = None,
    everything: All = False,
    kind: Kind = "",
    queue: Queue = "",
    code: Code = "",
    since: Since = None,
    until: Until = None,
    note: Note = "",
    dry_run: DryRun = False,
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Try dead letters again: those with these ids, or with --all those that the options match."""
    wanted = _wanted(ids, everything, DeadLetters(kind, queue, code, since, until))
    _bulk(
        wanted,
        lambda client, part: client.tasks.dead.retry(part, note=note, dry_run=dry_run),
        ("tried again", dry_run, as_json),
        (target, api_key),
    )


def drop(
    ids: Ids = None,
    everything: All = False,
    kind: Kind = "",
    queue: Queue = "",
    code: Code = "",
    since: Since = None,
    until: Until = None,
    note: Note = "",
    dry_run: DryRun = False,
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Drop dead letters from their list: those with these ids, or with --all those that the options match."""
    wanted = _wanted(ids, everything, DeadLetters(kind, queue, code, since, until))
    _bulk(
        wanted,
        lambda client, part: client.tasks.dead.drop(part, note=note, dry_run=dry_run),
        ("dropped", dry_run, as_json),
        (target, api_key),
    )


def _wanted(ids: list[str] | None, everything: bool, chosen: DeadLetters) -> DeadLetters | list[str]:
    if bool(ids) == everything:
        raise typer.BadParameter("give ids of tasks, or --all (with options that narrow it)")
    if ids and chosen != DeadLetters():
        raise typer.BadParameter("ids stand alone; options go with --all")
    return ids or chosen


Call: TypeAlias = Callable[[Client, DeadLetters | Sequence[str]], Awaitable[BulkOutcome]]


def _bulk(
    wanted: DeadLetters | list[str], once: Call, shown: tuple[str, bool, bool], service: tuple[str, str | None]
) -> None:
    """Call until all is done, and say what became of it."""
    verb, dry_run, as_json = shown
    found = call(*service, lambda client: _all(client, wanted, once, dry_run))
    if as_json:
        print_json(found)
    elif dry_run:
        more = "more than " if found.matched > 10 * _MOST else ""
        print(f"{more}{min(found.matched, 10 * _MOST)} would be {verb}")
    else:
        print(f"{found.done} {verb}" + (f", {found.failed} not" if found.failed else ""))
        for task_id, error in [*found.errors.items()][:20]:
            print_error(error, f"{task_id}: {error.message}")
    if found.failed:
        raise typer.Exit(INCOMPLETE)


async def _all(client: Client, wanted: DeadLetters | list[str], once: Call, dry_run: bool) -> BulkOutcome:
    if isinstance(wanted, list):
        parts = [await once(client, wanted[at : at + _MOST]) for at in range(0, len(wanted), _MOST)]
    else:
        parts = [await once(client, wanted)]
        # What cannot be done stays at the head of the line: whoever meets it again has been through all.
        while parts[-1].more and parts[-1].done and not dry_run:
            parts.append(await once(client, wanted))
    errors: dict[str, ServiceError] = {}
    for part in parts:
        errors |= part.errors
    matched = sum(part.matched for part in parts) if isinstance(wanted, list) else parts[0].matched
    return BulkOutcome(matched, sum(part.done for part in parts), len(errors), errors, parts[-1].more)
