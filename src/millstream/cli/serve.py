"""`millstream serve`: one server process, for production. It starts nothing else."""

from typing import TYPE_CHECKING, Annotated

import typer

from millstream.cli.settings import ConfigFile, Overrides, effective, refuse

if TYPE_CHECKING:
    from millstream.config import Settings

app = typer.Typer()


@app.command()
def serve(
    config: ConfigFile = None,
    settings: Overrides = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="gRPC port.")] = None,
    database_url: Annotated[str | None, typer.Option(help="postgresql://user:password@host/database")] = None,
) -> None:
    """Run one server. Flags go before the environment (MILLSTREAM_<NAME>), the environment before the file."""
    chosen = effective(config, settings or (), host=host, port=port, database_url=database_url)
    _complete(chosen)
    # Only now: a wrong setting is told at once.
    from millstream.bootstrap import run
    from millstream.config import ConfigError

    try:
        code = run(chosen)
    except ConfigError as error:
        refuse(str(error))
    raise typer.Exit(code)


def _complete(settings: "Settings") -> None:
    """Name all that a server cannot do without, at once."""
    missing = []
    if not settings.database_url.get_secret_value():
        missing.append("database_url (postgresql://user:password@host/database)")
    if settings.auth_mode != "developer" and not settings.api_keys:
        missing.append("api_keys (who may call; or auth_mode=developer, on loopback only)")
    if missing:
        how = "set what is missing by --set, MILLSTREAM_<NAME> or millstream.toml (docs/configuration.md)"
        refuse(f"a server needs {' and '.join(missing)}; {how}. To try it on this machine alone: millstream dev")
