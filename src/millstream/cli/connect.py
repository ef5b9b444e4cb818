"""How data commands reach the service, and how they end when they do not."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, Final, TypeAlias, TypeVar

import typer

from millstream.cli.output import print_error
from millstream.sdk import Client, ConnectError, MillstreamError, PayloadError

T = TypeVar("T")

REFUSED: Final = 1
"""Exit code: the service answered with an error."""
USAGE: Final = 2
"""Exit code: the command line is wrong."""
UNREACHABLE: Final = 3
"""Exit code: the service cannot be reached."""
INCOMPLETE: Final = 4
"""Exit code: a sync publish did not complete, or completed with failures."""

Target: TypeAlias = Annotated[
    str,
    typer.Option("--target", envvar="MILLSTREAM_TARGET", help="host:port of the service.", show_envvar=True),
]
ApiKey: TypeAlias = Annotated[
    str | None,
    typer.Option("--api-key", envvar="MILLSTREAM_API_KEY", help="Who calls.", show_envvar=True, show_default=False),
]
Json: TypeAlias = Annotated[
    bool, typer.Option("--json", help="Print JSON for machines: one document, or one per line for lists.")
]
Limit: TypeAlias = Annotated[int, typer.Option("--limit", "-n", min=0, help="Items at most; 0: all.")]

DEFAULT_TARGET: Final = "127.0.0.1:8080"
DEFAULT_LIMIT: Final = 50

_RETRIES: Final = 2


def call(target: str, api_key: str | None, work: Callable[[Client], Awaitable[T]]) -> T:
    """Does the work with a client, and returns what it returns.

    Raises:
        typer.Exit: with the exit code of what went wrong, which has been printed.
    """

    async def run() -> T:
        async with Client(target, api_key=api_key, retries=_RETRIES) as client:
            return await work(client)

    try:
        return asyncio.run(run())
    except ConnectError as error:
        print_error(error, f"cannot reach the service at {target}")
        raise typer.Exit(UNREACHABLE) from error
    except PayloadError as error:
        print_error(error)
        raise typer.Exit(USAGE) from error
    except MillstreamError as error:
        print_error(error)
        raise typer.Exit(REFUSED) from error
