"""`millstream artifacts watch`: a line for each artifact as it is stored."""

import sys
from dataclasses import fields
from typing import Annotated

import typer
from rich.text import Text

from millstream.cli.connect import DEFAULT_TARGET, ApiKey, Json, Target, showing
from millstream.cli.output import console, print_json, show
from millstream.sdk import Artifact, Client


def watch(
    type: Annotated[list[str] | None, typer.Option("--type", help="Of this type; may be repeated.")] = None,  # noqa: A002
    produced_by: Annotated[
        list[str] | None, typer.Option(help='Made by this agent, or "external"; may be repeated.')
    ] = None,
    tag: Annotated[list[str] | None, typer.Option("--tag", help="With this tag; may be repeated.")] = None,
    correlation_id: Annotated[str, typer.Option("--correlation-id", "--correlation", help="Of this cascade.")] = "",
    cursor: Annotated[str, typer.Option(help="Go on behind this, which --json shows with each artifact.")] = "",
    limit: Annotated[int, typer.Option("--limit", "-n", min=0, help="End after so many; 0: never.")] = 0,
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Watch what is stored from now on, a line each, until Ctrl-C. A lost connection is resumed: nothing is missed, and
    nothing shown twice."""

    async def work(client: Client) -> None:
        watched = client.artifacts.watch(
            types=type or (),
            produced_by=produced_by or (),
            tags=tag or (),
            correlation_id=correlation_id,
            cursor=cursor,
        )
        shown, began = 0, False
        async for behind, artifact in watched.messages():
            if not began:
                console(stderr=True).print(Text("watching; Ctrl-C ends", style="dim"))
                began = True
            if artifact is not None:
                _show(artifact, behind, as_json)
                shown += 1
                if shown == limit:
                    return

    showing(target, api_key, work)


def _show(artifact: Artifact, cursor: str, as_json: bool) -> None:
    if as_json:
        print_json(
            {**{each.name: getattr(artifact, each.name) for each in fields(artifact)}, "cursor": cursor}, indent=False
        )
    else:
        line = Text.assemble(
            (show(artifact.created_at), "dim"),
            f"  {artifact.type}  ",
            (artifact.produced_by, "cyan"),
            f"  {artifact.id}  ",
            (show(artifact.payload), "dim"),
        )
        console().print(line, soft_wrap=True)
    sys.stdout.flush()
