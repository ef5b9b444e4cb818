"""`millstream top`: what goes on, as it goes on."""

import asyncio
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Final

import typer
from rich.live import Live

from millstream.cli.connect import DEFAULT_TARGET, ApiKey, Json, Target, showing
from millstream.cli.output import console, print_json, show
from millstream.cli.top_frame import Frame, busy, draw
from millstream.sdk import Client, ServiceError

READ_MOST: Final = 100
"""Queues, and workers, that are asked for: of queues the first by name, of workers the last connected."""


def top(
    interval: Annotated[float, typer.Option(min=0.1, max=3600, help="Seconds from one look to the next.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Look once, print it and end.")] = False,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, max=READ_MOST, help="Queues, and workers, that are shown.")
    ] = 20,
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Watch the work of a tenant until Ctrl-C: how much of it ended within the last minute, its queues, the busiest
    first, and the workers that are connected; printed one after the other where it is piped."""

    async def work(client: Client) -> None:
        async with aclosing(_frames(client, interval)) as frames:
            first = await anext(frames)
            if once or as_json or not sys.stdout.isatty():
                _print(first, target, limit, as_json, indent=once)
                while not once:
                    _print(await anext(frames), target, limit, as_json)
                return
            with Live(draw(first, target, limit), console=console(), screen=True, auto_refresh=False) as live:
                async for frame in frames:
                    live.update(draw(frame, target, limit), refresh=True)

    showing(target, api_key, work)


async def _frames(client: Client, interval_s: float) -> AsyncGenerator[Frame, None]:
    """What is found, look by look. A service that is away for a while is waited for once it has answered."""
    frame = await _look(client)
    while True:
        yield frame
        await asyncio.sleep(interval_s)
        try:
            frame = await _look(client)
        except ServiceError as error:
            if not error.retryable:
                raise
            frame = replace(frame, fault=f"no answer since {show(frame.at)[-8:]}, trying again: {error.message}")


async def _look(client: Client) -> Frame:
    # One more than are shown tells whether there are others.
    most = READ_MOST + 1
    throughput, queues, online, draining = await asyncio.gather(
        client.queues.throughput(),
        client.queues.list(page_size=most).first(most),
        client.workers.list(status="ONLINE", page_size=most).first(most),
        client.workers.list(status="DRAINING", page_size=most).first(most),
    )
    workers = [*online, *draining]
    return Frame(
        datetime.now(UTC), throughput, sorted(queues[:READ_MOST], key=busy), workers[:READ_MOST],
        len(queues) > READ_MOST, len(workers) > READ_MOST,
    )  # fmt: skip


def _print(frame: Frame, target: str, limit: int, as_json: bool, *, indent: bool = False) -> None:
    if as_json:
        print_json(replace(frame, queues=frame.queues[:limit], workers=frame.workers[:limit]), indent=indent)
    else:
        console().print(draw(frame, target, limit), "")
    sys.stdout.flush()
