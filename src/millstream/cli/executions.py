"""Runs of workflows, and their steps, on the terminal."""

import sys
from typing import Annotated

import orjson
import typer

from millstream.cli.connect import DEFAULT_LIMIT, DEFAULT_TARGET, REFUSED, ApiKey, Json, Limit, Target, call, showing
from millstream.cli.given import json_value, labels_of
from millstream.cli.output import print_fields, print_json, print_list
from millstream.sdk import Client, Execution, RunEvent, RunResult, Step
from millstream.sdk.payload import JsonValue

RunId = Annotated[str, typer.Argument(help="Id of the run.", show_default=False)]
Queue = Annotated[str, typer.Option(help="Of its tasks that name none. Default: default.", show_default=False)]
Priority = Annotated[int, typer.Option(min=-100, max=100, help="Of its tasks that name none; the higher the sooner.")]
RunTimeout = Annotated[
    float | None, typer.Option(min=0.001, help="Seconds that the run may take; then it fails.", show_default=False)
]


def print_execution(found: Execution | RunResult) -> None:
    """Show a run that was begun, and what it came to."""
    shown: dict[str, object] = {
        "run id": found.run_id,
        "workflow": f"{found.workflow}, version {found.version}" if found.workflow else None,
        "status": found.status,
    }
    if isinstance(found, RunResult):
        shown["error"] = f"{found.error.code}: {found.error.message}" if found.error else None
        shown["took"] = f"{found.duration_ms / 1000:.3f} s" if found.duration_ms else None
        shown["output"] = orjson.dumps(found.output).decode() if found.status == "COMPLETED" else None
    print_fields(shown)


def steps(
    run_id: RunId,
    limit: Limit = DEFAULT_LIMIT,
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """List the steps of a run of a workflow, as they stand."""

    async def work(client: Client) -> None:
        await print_list(client.runs.steps(run_id), _STEPS, as_json=as_json, limit=limit, title="steps")

    call(target, api_key, work)


def result(
    run_id: RunId,
    wait_most: Annotated[float, typer.Option("--timeout", min=0, max=300, help="Seconds to wait.")] = 30,
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Wait for the end of a run, and show what it came to; exit code 1 unless it completed."""

    async def work(client: Client) -> RunResult:
        return await client.runs.result(run_id, wait_most)

    found = call(target, api_key, work)
    if as_json:
        print_json(found)
    else:
        print_execution(found)
    if found.status != "COMPLETED":
        raise typer.Exit(REFUSED)


def tail(
    run_id: RunId,
    after: Annotated[int, typer.Option(min=0, help="Only events with a higher number.")] = 0,
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Print the events of a run as they happen, until it ends. A lost connection is resumed: nothing is missed, and
    nothing printed twice."""

    async def work(client: Client) -> None:
        async for happening in client.runs.watch(run_id, after_sequence=after):
            if happening.event is not None:
                print_event(happening.event, as_json)
                sys.stdout.flush()

    showing(target, api_key, work)


def print_event(event: RunEvent, as_json: bool) -> None:
    """One event on a line."""
    if as_json:
        print_json(event, indent=False)
        return
    at = event.created_at.strftime("%H:%M:%S.%f")[:-3] if event.created_at else ""
    about = " ".join(part for part in (event.task_id, event.artifact_id) if part)
    data = orjson.dumps(event.data).decode() if event.data else ""
    print(f"{event.sequence:>6} {at} {event.type:<20} {about} {data}".rstrip())


def start(
    workflow: Annotated[str, typer.Argument(help="Name of the code-first workflow.", show_default=False)],
    given: Annotated[str, typer.Argument(metavar="[INPUT]", help="JSON, @file, or - for stdin.")] = "null",
    version: Annotated[str, typer.Option(help="Default: the latest.", show_default=False)] = "",
    run_id: Annotated[str, typer.Option(help="A UUID. Default: a new one.", show_default=False)] = "",
    signal: Annotated[str, typer.Option(help="Signal the run of --run-id, begun where there is none.")] = "",
    value: Annotated[str, typer.Option(help="Of the signal: JSON, @file, or - for stdin.")] = "null",
    queue: Queue = "",
    priority: Priority = 0,
    label: Annotated[list[str] | None, typer.Option(help="NAME=VALUE; repeat for more.", show_default=False)] = None,
    run_timeout: RunTimeout = None,
    wait: Annotated[float, typer.Option(min=0, max=300, help="Seconds to wait for its end.")] = 0,
    key: Annotated[str, typer.Option(help="Idempotency key.", show_default=False)] = "",
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Start a run of a code-first workflow, or signal it and start it where there is none."""
    labels, told = labels_of(label), (signal, json_value(value, "--value")) if signal else None
    value_given = json_value(given, "INPUT")

    async def work(client: Client) -> RunResult:
        return await client.runs.start(
            workflow, value_given, version=version, run_id=run_id, labels=labels, queue=queue, priority=priority,
            signal=told, wait=wait, run_timeout=run_timeout, idempotency_key=key,
        )  # fmt: skip

    found = call(target, api_key, work)
    if as_json:
        print_json(found)
    else:
        print_execution(found)


def signal(
    run_id: RunId,
    name: Annotated[str, typer.Argument(help="Name of the signal.", show_default=False)],
    value: Annotated[str, typer.Argument(metavar="[VALUE]", help="JSON, @file, or - for stdin.")] = "null",
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
) -> None:
    """Send a signal to a code-first run."""
    told = json_value(value, "VALUE")

    async def work(client: Client) -> None:
        await client.runs.signal(run_id, name, told)

    call(target, api_key, work)
    print(f"run {run_id} is told {name}")


def state(run_id: RunId, target: Target = DEFAULT_TARGET, api_key: ApiKey = None) -> None:
    """Print what a code-first run remembers by name, as JSON."""

    async def work(client: Client) -> dict[str, JsonValue]:
        return await client.runs.state(run_id)

    print_json(call(target, api_key, work))


def status_of(step: Step) -> str:
    """Where a step stands; of a map with how far it is."""
    if step.items is not None:
        begun, ended, failed = step.items
        return f"{step.status} ({ended} of {begun} items{f', {failed} failed' if failed else ''})"
    return step.status


_STEPS = {
    "id": lambda s: s.id,
    "kind": lambda s: s.kind,
    "status": status_of,
    "attempt": lambda s: s.attempt or None,
    "task": lambda s: s.task_id,
    "child run": lambda s: s.child_run_id,
    "finished": lambda s: s.finished_at,
    "error": lambda s: f"{s.error.code}: {s.error.message}" if s.error else None,
    "output": lambda s: orjson.dumps(s.output).decode()[:80] if s.status == "COMPLETED" else None,
}
