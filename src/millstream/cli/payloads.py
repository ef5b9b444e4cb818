"""`millstream payloads`."""

import sys
from contextlib import aclosing
from pathlib import Path
from typing import Annotated

import typer

from millstream.cli.connect import DEFAULT_TARGET, REFUSED, ApiKey, Json, Target, call
from millstream.cli.output import console, print_fields, print_json
from millstream.sdk import Client, StoredPayload

app = typer.Typer(help="Upload and download large payloads.", no_args_is_help=True)

Ref = Annotated[str, typer.Argument(metavar="REF", help='Its reference: "sha256:" and 64 digits.', show_default=False)]


@app.command()
def upload(
    file: Annotated[str, typer.Argument(metavar="FILE|-", help="The file; - for stdin.", show_default=False)],
    media_type: Annotated[str, typer.Option(help="What it is. Default: by the file's name.")] = "",
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Upload a file, and print its reference for `payload_ref` of an artifact."""
    stored = uploaded(file, target, api_key, media_type)
    if as_json:
        print_json(stored)
    else:
        print_fields(_fields(stored) | {"known": "the same was uploaded before" if stored.existed else None})


def uploaded(file: str, target: str, api_key: str | None, media_type: str = "") -> StoredPayload:
    """Uploads a file, or stdin for "-". Raises BadParameter where there is no such file, and as `call` does."""
    if file != "-" and not Path(file).is_file():
        raise typer.BadParameter(f"there is no file {file}", param_hint="FILE")

    async def work(client: Client) -> StoredPayload:
        source = sys.stdin.buffer if file == "-" else Path(file)
        return await client.payloads.upload(source, media_type=media_type)

    try:
        return call(target, api_key, work)
    except OSError as error:
        raise _unusable(file, error) from error


@app.command()
def download(
    ref: Ref,
    output: Annotated[
        str, typer.Option("--output", "-o", help="The file to write; broken off, it goes on. Default: stdout.")
    ] = "",
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
) -> None:
    """Download a payload. What comes is compared with its reference."""

    async def work(client: Client) -> None:
        if output:
            await client.payloads.download_to(ref, output, resume=True)
            return
        async with aclosing(client.payloads.download(ref)) as pieces:
            async for piece in pieces:
                sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()

    try:
        call(target, api_key, work)
    except OSError as error:
        raise _unusable(output or "stdout", error) from error


@app.command()
def get(ref: Ref, target: Target = DEFAULT_TARGET, api_key: ApiKey = None, as_json: Json = False) -> None:
    """Show what is known of a payload."""
    found = call(target, api_key, lambda client: client.payloads.get(ref))
    if as_json:
        print_json(found)
    else:
        print_fields(_fields(found) | {"created": found.created_at})


def _fields(found: StoredPayload) -> dict[str, object]:
    return {"payload": found.ref, "size": f"{found.size_bytes:,} bytes", "type": found.media_type}


def _unusable(name: str, error: OSError) -> typer.Exit:
    console(stderr=True).print(f"error: {name}: {error.strerror or error}", style="bold red", markup=False)
    return typer.Exit(REFUSED)
