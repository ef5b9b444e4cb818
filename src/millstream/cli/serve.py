"""`millstream serve`: one server process, for production. It starts nothing else."""

import asyncio
from typing import Annotated

import typer

from millstream.cli.settings import ConfigFile, Overrides, load

app = typer.Typer()


@app.command()
def serve(
    config: ConfigFile = None,
    settings: Overrides = None,
    database_url: Annotated[
        str | None, typer.Option(help="postgresql://user:password@host/database [env: MILLSTREAM_DATABASE_URL]")
    ] = None,
) -> None:
    """Run one server. Flags go before the environment (MILLSTREAM_<NAME>), the environment before the file."""
    effective = load(config, settings or (), database_url=database_url)
    from millstream.bootstrap import serve as run

    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        raise typer.Exit(runner.run(run(effective)))


def _loop_factory() -> "type[asyncio.AbstractEventLoop] | None":
    try:
        import uvloop
    except ImportError:  # no wheel for this platform: slower, not different
        return None
    return uvloop.Loop
