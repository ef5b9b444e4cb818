"""`millstream serve`: one server process, for production. It starts nothing else."""

from typing import Annotated

import typer

from millstream.cli.settings import ConfigFile, Overrides, effective, refuse

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
    # Only now: a wrong setting is told at once.
    from millstream.bootstrap import run
    from millstream.config import ConfigError

    try:
        code = run(chosen)
    except ConfigError as error:
        refuse(str(error))
    raise typer.Exit(code)
