"""`millstream logs`."""

from typing import Annotated

import typer

from millstream.cli.connect import DEFAULT_TARGET, ApiKey, Json, Target, call
from millstream.cli.output import print_fields, print_json
from millstream.sdk import LogLevel

app = typer.Typer(help="See and set what the servers log.", no_args_is_help=True)


@app.callback()
def logs() -> None:
    """See and set what the servers log."""


@app.command()
def level(
    level: Annotated[
        str,
        typer.Argument(help="debug, info, warning, error, or default to take back what was set.", show_default=False),
    ] = "",
    logger: Annotated[
        str, typer.Option(help="Only this logger and those below it, such as millstream.rpc.", show_default=False)
    ] = "",
    for_seconds: Annotated[int, typer.Option("--for", min=0, metavar="SECONDS", help="When it ends; 0: never.")] = 0,
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Show from which level on the servers log, or set it on all of them while they run."""
    if not level and (logger or for_seconds):
        raise typer.BadParameter("say which level: debug, info, warning, error or default", param_hint="LEVEL")
    if level:
        wanted = level.lower()
        found = call(
            target,
            api_key,
            lambda client: client.system.set_log_level(wanted, logger=logger, for_seconds=for_seconds),
        )
    else:
        found = call(target, api_key, lambda client: client.system.log_levels())
    if as_json:
        print_json(found)
        return
    print_fields({"level": found.level, "default": found.default, "set": tuple(map(_line, found.set))})


def _line(found: LogLevel) -> str:
    until = f" until {found.until.astimezone():%Y-%m-%d %H:%M:%S}" if found.until else ""
    return f"{found.logger or 'all'}={found.level}{until}"
