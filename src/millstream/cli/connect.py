"""How data commands reach the service, and how they end when they do not."""

import sys
from collections.abc import Awaitable, Callable
from typing import Annotated, Final, TypeAlias, TypeVar

import typer

from millstream.cli.interrupts import run
from millstream.cli.output import print_error
from millstream.sdk import Client, ConnectError, MillstreamError, PayloadError
from millstream.sdk.channel import check_target

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
_REASONS: Final = {
    "Connection refused": "nothing listens there; start it (millstream dev), or name it by --target",
    "resolving": "there is no such host; name the service by --target",
    "lookup failed": "there is no such host; name the service by --target",
    "unreachable": "there is no way to that host from here",
    "imed out": "it does not answer",
    "imeout": "it does not answer",
}
"""What stands in gRPC's messages, and what it means."""


def call(target: str, api_key: str | None, work: Callable[[Client], Awaitable[T]]) -> T:
    """Does the work with a client, and returns what it returns.

    Raises:
        typer.Exit: with the exit code of what went wrong, which has been printed.
        KeyboardInterrupt: Ctrl-C, which is heeded at once.
    """
    try:
        check_target(target)
    except ValueError as error:
        typer.echo(f"error: --target: {error}", err=True)
        raise typer.Exit(USAGE) from None

    async def connected() -> T:
        async with Client(target, api_key=api_key, retries=_RETRIES) as client:
            return await work(client)

    try:
        return run(connected())
    except ConnectError as error:
        print_error(error, f"cannot reach the service at {target}: {_why(error.message)}")
        raise typer.Exit(UNREACHABLE) from error
    except PayloadError as error:
        print_error(error)
        raise typer.Exit(USAGE) from error
    except MillstreamError as error:
        print_error(error)
        raise typer.Exit(REFUSED) from error


def showing(target: str, api_key: str | None, work: Callable[[Client], Awaitable[None]]) -> None:
    """Does work that shows what comes, as `call` does; it is no failure to be interrupted, or that whoever reads the
    output has enough."""
    try:
        call(target, api_key, work)
    except KeyboardInterrupt:
        raise typer.Exit(0) from None
    except BrokenPipeError:
        # Nothing more may be written, not even at the end of the process.
        sys.stdout = None
        raise typer.Exit(0) from None


def _why(message: str) -> str:
    """What gRPC says of a connection, for people."""
    for part, why in _REASONS.items():
        if part in message:
            return why
    return "it closed the connection, or is no Millstream"
