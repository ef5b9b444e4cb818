"""`millstream migrate`: bring the database's tables to this version, and back."""

from collections.abc import Coroutine
from typing import Annotated, Any, TypeVar

import typer

from millstream.cli.interrupts import run

app = typer.Typer(no_args_is_help=True, help="Bring the database to the tables of this version, and back.")

_T = TypeVar("_T")

DatabaseUrl = Annotated[
    str,
    typer.Option(envvar="MILLSTREAM_DATABASE_URL", show_envvar=True, help="postgresql://user:password@host/database"),
]


@app.command()
def up(database_url: DatabaseUrl, revision: Annotated[str, typer.Argument(help="How far.")] = "head") -> None:
    """Upgrade. Safe to call from several places at once: one does it, the others wait."""
    from millstream.store import migrations

    _run(migrations.upgrade(database_url, revision))
    _print_current(database_url)


@app.command()
def down(
    database_url: DatabaseUrl,
    revision: Annotated[str, typer.Argument(help='How far: a revision, "-1" for one step, "base" for nothing.')],
) -> None:
    """Downgrade. What only the newer tables hold is lost."""
    from millstream.store import migrations

    _run(migrations.downgrade(database_url, revision))
    _print_current(database_url)


@app.command()
def current(database_url: DatabaseUrl) -> None:
    """Show the database's revision and this version's newest."""
    _print_current(database_url)


@app.command(hidden=True)
def new(message: Annotated[str, typer.Argument(help="What changes, in a few words.")]) -> None:
    """Write the migration that leads from the last one to the tables in the code (for development)."""
    from millstream.store import migrations
    from millstream.store.embedded import EmbeddedPostgres

    async def write() -> str:
        async with EmbeddedPostgres(ephemeral=True) as server:
            await migrations.upgrade(server.url)
            return str(await migrations.write(server.url, message))

    print(_run(write()))


def _print_current(database_url: str) -> None:
    from millstream.store import migrations

    revision, head = _run(migrations.current(database_url)), migrations.head()
    print(f"{revision or 'not migrated'}{' (newest)' if revision == head else f', newest is {head}'}")


def _run(work: Coroutine[Any, Any, _T]) -> _T:
    """Run it, and turn what cannot be done into one line and exit code 1."""
    from millstream.store.migrations import MigrationError

    try:
        return run(work)
    except MigrationError as error:
        typer.echo(f"millstream: {error}", err=True)
        raise typer.Exit(1) from None
