"""`millstream publish` and `millstream artifacts`."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.text import Text

from millstream.cli.connect import DEFAULT_LIMIT, DEFAULT_TARGET, INCOMPLETE, ApiKey, Json, Limit, Target, call
from millstream.cli.given import json_object
from millstream.cli.lines import FileOptions, publish_lines
from millstream.cli.output import console, print_fields, print_json, print_list, print_table
from millstream.cli.payloads import uploaded
from millstream.cli.watch import watch
from millstream.sdk import Artifact, Client, MillstreamError, Published, SyncResult

app = typer.Typer(help="Read artifacts.", no_args_is_help=True)
app.command("watch")(watch)

_COLUMNS = {
    "id": lambda a: a.id,
    "type": lambda a: a.type,
    "produced by": lambda a: a.produced_by,
    "created": lambda a: a.created_at,
    "tags": lambda a: a.tags,
    "payload": lambda a: a.payload,
}
_FAILURES = {
    "agent": lambda f: f.agent,
    "code": lambda f: f.code,
    "message": lambda f: f.message,
    "attempts": lambda f: f.attempts,
    "task": lambda f: f.task_id,
}
_POLL_S = 1.0


def publish(
    type: Annotated[  # noqa: A002
        str, typer.Argument(metavar="TYPE", help="Name of the artifact type; with --file, of all its lines.")
    ] = "",
    payload: Annotated[
        str, typer.Argument(metavar="[JSON|@FILE|-]", help="The data: JSON, @file, or - for stdin.")
    ] = "{}",
    sync: Annotated[bool, typer.Option("--sync", help="Wait for the whole cascade.")] = False,
    timeout: Annotated[float, typer.Option(min=1, max=300, help="With --sync: seconds to wait.")] = 30.0,
    tag: Annotated[list[str] | None, typer.Option("--tag", help="A tag; may be repeated.")] = None,
    partition_key: Annotated[str, typer.Option(help="A key of your own, kept and returned.")] = "",
    correlation_id: Annotated[str, typer.Option(help="A UUID: join this cascade, or name the new one.")] = "",
    key: Annotated[str, typer.Option("--key", help="Idempotency key: the same again publishes nothing.")] = "",
    payload_ref: Annotated[str, typer.Option(help="In place of JSON: what `payloads upload` gave.")] = "",
    payload_file: Annotated[str, typer.Option(help="In place of JSON: upload this file first.")] = "",
    file: Annotated[
        str,
        typer.Option(
            "--file", "-f", help="Publish each line of a file (-: stdin): an artifact, or with TYPE a payload."
        ),
    ] = "",
    results: Annotated[
        str,
        typer.Option(
            help="With --file: what became of each line. Default: the file's (or --progress's) name and .results."
        ),
    ] = "",
    progress: Annotated[
        str, typer.Option(help="With --file: where it is kept how far it is. Default: the file's name and .progress.")
    ] = "",
    restart: Annotated[bool, typer.Option("--restart", help="With --file: publish all of it, again.")] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="With --file: publish the lines that failed, as they are by now.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, max=1000, help="With --file: lines a call.")] = 100,
    parallel: Annotated[int, typer.Option(min=1, max=64, help="With --file: calls at once.")] = 4,
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Publish an artifact. With --sync, wait for all it sets off, and show it. With --file, publish each of its lines;
    interrupted, the same command goes on where it stopped, and publishes nothing twice.

    Exit codes: 0 done, 1 refused, 2 usage, 3 no connection, 4 with --sync: not completed, or with failures.
    """
    if file:
        if sync or tag or partition_key or correlation_id or key or payload_ref or payload_file or payload != "{}":
            raise typer.BadParameter("goes with TYPE alone: each line says the rest", param_hint="--file")
        options = FileOptions(file, type, results, progress, restart, retry_failed, batch_size, parallel)
        publish_lines(options, target, api_key, as_json)
        return
    if not type:
        raise typer.BadParameter("is missing", param_hint="TYPE")
    if (payload != "{}") + bool(payload_ref) + bool(payload_file) > 1:
        raise typer.BadParameter("give one of JSON, --payload-ref and --payload-file", param_hint="JSON")
    if payload_file:
        payload_ref = uploaded(payload_file, target, api_key).ref
    item = type if payload_ref else (type, json_object(payload))
    common: dict[str, Any] = {
        "tags": tag or (), "partition_key": partition_key, "idempotency_key": key, "payload_ref": payload_ref,
    }  # fmt: skip
    if not sync:
        published = call(target, api_key, lambda c: c.publish(item, correlation_id=correlation_id, **common))
        _show_published(published, as_json)
        return

    # Known beforehand the id can be watched; with a key it would make a repeated call another request.
    cascade = correlation_id or ("" if key else str(uuid.uuid4()))

    async def wait(client: Client) -> SyncResult:
        async with _progress(client, cascade):
            return await client.publish_sync(item, timeout=timeout, correlation_id=cascade, **common)

    _show_result(call(target, api_key, wait), as_json)


def _show_published(published: Published, as_json: bool) -> None:
    if as_json:
        print_json(published)
        return
    replayed = "an earlier call with this key published it" if published.replayed else None
    print_fields({"artifact": published.artifact_id, "cascade": published.correlation_id, "replayed": replayed})


def _show_result(result: SyncResult, as_json: bool) -> None:
    if as_json:
        print_json(result)
    else:
        _show_cascade(result)
    if not result.completed or result.failures:
        raise typer.Exit(INCOMPLETE)


@asynccontextmanager
async def _progress(client: Client, cascade: str) -> AsyncIterator[None]:
    """While a sync publish waits: the time, and what is there by now. On a terminal only."""
    err = console(stderr=True)
    if not err.is_terminal:
        yield
        return
    with err.status("waiting for the cascade") as status:
        began = time.monotonic()

        async def watch() -> None:
            made = ""
            while True:
                await asyncio.sleep(_POLL_S)
                if cascade:
                    # What is shown is a courtesy: a caller who may publish need not be allowed to read.
                    with suppress(MillstreamError):
                        made = _counts((await client.artifacts.summary(correlation_id=cascade)).by_type)
                status.update(Text(f"waiting for the cascade, {time.monotonic() - began:.0f} s{made}"))

        watcher = asyncio.create_task(watch())
        try:
            yield
        finally:
            watcher.cancel()


def _counts(by_type: Any) -> str:
    counts = ", ".join(f"{count} {name}" for name, count in sorted(by_type.items()))
    return f": {counts}" if counts else ""


def _show_cascade(result: SyncResult) -> None:
    print_table(result.artifacts, _COLUMNS, title="artifacts")
    out = console()
    if result.truncated:
        out.print(Text(f"and more: millstream artifacts list --correlation-id {result.correlation_id}"))
    if result.failures:
        out.print()
        print_table(result.failures, _FAILURES, title="failures")
    outcome = "completed" if result.completed else "not completed"
    out.print(Text(f"\n{outcome} after {result.duration_ms:.1f} ms, cascade {result.correlation_id}", style="dim"))


@app.command("list")
def list_(
    type: Annotated[str, typer.Option("--type", help="Of this type.")] = "",  # noqa: A002
    produced_by: Annotated[str, typer.Option(help='Made by this agent, or "external".')] = "",
    correlation_id: Annotated[str, typer.Option(help="Of this cascade.")] = "",
    tag: Annotated[str, typer.Option(help="With this tag.")] = "",
    since: Annotated[datetime | None, typer.Option(help="Stored at this time or later.")] = None,
    until: Annotated[datetime | None, typer.Option(help="Stored before this time.")] = None,
    limit: Limit = DEFAULT_LIMIT,
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """List artifacts, newest first."""

    async def work(client: Client) -> None:
        listing = client.artifacts.list(
            type=type,
            produced_by=produced_by,
            correlation_id=correlation_id,
            tag=tag,
            created_from=since,
            created_to=until,
            page_size=min(limit or 100, 100),
        )
        await print_list(listing, _COLUMNS, as_json=as_json, limit=limit, title="artifacts")

    call(target, api_key, work)


@app.command()
def get(
    artifact_id: Annotated[str, typer.Argument(help="Id of the artifact.", show_default=False)],
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Show one artifact."""
    artifact = call(target, api_key, lambda client: client.artifacts.get(artifact_id))
    if as_json:
        print_json(artifact)
    else:
        print_fields(_fields(artifact))


def _fields(artifact: Artifact) -> dict[str, object]:
    return {
        "id": artifact.id,
        "type": f"{artifact.type} (version {artifact.version})",
        "produced by": artifact.produced_by,
        "cascade": artifact.correlation_id,
        "created": artifact.created_at,
        "visibility": artifact.visibility,
        "tags": artifact.tags,
        "partition key": artifact.partition_key,
        "payload": artifact.payload,
        "kept outside": f"{artifact.payload_ref} ({artifact.payload_bytes:,} bytes)" if artifact.payload_ref else None,
    }
