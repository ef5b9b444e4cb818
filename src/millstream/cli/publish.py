"""`millstream publish`."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Any

import typer
import uuid_utils
from rich.text import Text

from millstream.cli.connect import DEFAULT_TARGET, INCOMPLETE, ApiKey, Json, Target, call
from millstream.cli.given import BadVisibility, json_object, visibility_of
from millstream.cli.lines import FileOptions, publish_lines
from millstream.cli.output import ARTIFACT_COLUMNS, console, print_fields, print_json, print_table
from millstream.cli.payloads import uploaded
from millstream.cli.publish_file import deprecated
from millstream.sdk import Client, MillstreamError, Published, SyncResult, Visibility

_FAILURES = {
    "agent": lambda f: f.agent,
    "code": lambda f: f.code,
    "message": lambda f: f.message,
    "attempts": lambda f: f.attempts,
    "task": lambda f: f.task_id,
}


def publish(
    type: Annotated[  # noqa: A002
        str, typer.Argument(metavar="TYPE", help="Name of the artifact type; with --file, of all its lines.")
    ] = "",
    payload: Annotated[
        str, typer.Argument(metavar="[JSON|@FILE|-]", help="The data: JSON, @file, or - for stdin.")
    ] = "{}",
    sync: Annotated[bool, typer.Option("--sync", help="Wait for the whole cascade.")] = False,
    timeout: Annotated[float, typer.Option(min=1, max=300, help="With --sync: seconds to wait.")] = 30.0,
    only_type: Annotated[
        list[str] | None, typer.Option(help="With --sync: show artifacts of this type alone; may be repeated.")
    ] = None,
    only_from: Annotated[
        list[str] | None, typer.Option(help="With --sync: show what this agent made alone; may be repeated.")
    ] = None,
    tag: Annotated[list[str] | None, typer.Option("--tag", help="A tag; may be repeated.")] = None,
    visibility: Annotated[
        str, typer.Option(metavar="JSON|@FILE", help='Who may see it, as {"kind": "Private", "agents": ["a"]}.')
    ] = "",
    partition_key: Annotated[str, typer.Option(help="A key of your own, kept and returned.")] = "",
    correlation_id: Annotated[
        str, typer.Option("--correlation-id", "--correlation", help="A UUID: join this cascade, or name the new one.")
    ] = "",
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
    shown = {"type_names": only_type or (), "produced_by": only_from or ()}
    if any(shown.values()) and not sync:
        raise typer.BadParameter(
            "goes with --sync: nothing else shows artifacts", param_hint="--only-type, --only-from"
        )
    if file:
        said = (sync, tag, partition_key, correlation_id, key, payload_ref, payload_file, visibility, payload != "{}")
        if any(said):
            raise typer.BadParameter("goes with TYPE alone: each line says the rest", param_hint="--file")
        options = FileOptions(file, type, results, progress, restart, retry_failed, batch_size, parallel)
        publish_lines(options, target, api_key, as_json)
        return
    if results or progress or restart or retry_failed:
        raise typer.BadParameter("goes with --file", param_hint="--results, --progress, --restart, --retry-failed")
    if not type:
        raise typer.BadParameter("is missing", param_hint="TYPE")
    if (payload != "{}") + bool(payload_ref) + bool(payload_file) > 1:
        raise typer.BadParameter("give one of JSON, --payload-ref and --payload-file", param_hint="JSON")
    seen_by = _visibility(visibility)
    if payload_file:
        payload_ref = uploaded(payload_file, target, api_key).ref
    item = type if payload_ref else (type, json_object(payload))
    common: dict[str, Any] = {
        "tags": tag or (), "partition_key": partition_key, "idempotency_key": key, "payload_ref": payload_ref,
        "visibility": seen_by,
    }  # fmt: skip
    if sync:
        _publish_sync(item, target, api_key, as_json, correlation_id, {"timeout": timeout, **shown, **common})
        return
    published = call(target, api_key, lambda c: c.publish(item, correlation_id=correlation_id, **common))
    _note(type, published.deprecation)
    _show_published(published, as_json)


def _publish_sync(
    item: Any, target: str, api_key: str | None, as_json: bool, correlation_id: str, options: dict[str, Any]
) -> None:
    # Known beforehand the id can be watched; with a key it would make a repeated call another request.
    cascade = correlation_id or ("" if options["idempotency_key"] else str(uuid_utils.uuid7()))

    async def wait(client: Client) -> SyncResult:
        async with _progress(client, cascade):
            return await client.publish_sync(item, correlation_id=cascade, **options)

    result = call(target, api_key, wait)
    _note(item if isinstance(item, str) else item[0], result.deprecation)
    _show_result(result, as_json)


def _visibility(text: str) -> Visibility | None:
    try:
        return visibility_of(json_object(text, "--visibility")) if text else None
    except BadVisibility as error:
        raise typer.BadParameter(str(error), param_hint="--visibility") from error


def _note(type_name: str, deprecation: str) -> None:
    """Tells of a deprecated type, on stderr: the output is the same."""
    if deprecation:
        console(stderr=True).print(Text(deprecated(type_name, deprecation)))


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
    waiting = _Waiting()
    with err.status(waiting):
        watching = asyncio.create_task(_count(client, cascade, waiting)) if cascade else None
        try:
            yield
        finally:
            if watching is not None:
                watching.cancel()
                await asyncio.wait({watching})


class _Waiting:
    """What a terminal shows meanwhile; it looks by itself, from a thread of its own."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()
        self.made = ""

    def __rich__(self) -> Text:
        return Text(f"waiting for the cascade, {time.monotonic() - self._began_s:.0f} s{self.made}")


async def _count(client: Client, cascade: str, waiting: _Waiting) -> None:
    counts: Counter[str] = Counter()
    # What is shown is a courtesy: a caller who may publish need not be allowed to read.
    with suppress(MillstreamError):
        async for artifact in client.artifacts.watch(correlation_id=cascade):
            counts[artifact.type] += 1
            waiting.made = ": " + ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))


def _show_cascade(result: SyncResult) -> None:
    print_table(result.artifacts, ARTIFACT_COLUMNS, title="artifacts")
    out = console()
    if result.truncated:
        out.print(Text(f"and more: millstream artifacts list --correlation-id {result.correlation_id}"))
    if result.failures:
        out.print()
        print_table(result.failures, _FAILURES, title="failures")
    outcome = "completed" if result.completed else "not completed"
    out.print(Text(f"\n{outcome} after {result.duration_ms:.1f} ms, cascade {result.correlation_id}", style="dim"))
