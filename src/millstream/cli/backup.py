"""`millstream backup` and `millstream restore`: the embedded database, whole, to a directory and back."""

import asyncio
import contextlib
import fcntl
import os
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from millstream.cli.interrupts import run

if TYPE_CHECKING:
    from millstream.store.embedded.backup import Manifest

DataDir = Annotated[Path, typer.Option(file_okay=False, help="The data directory of millstream dev.")]
_DEFAULT = Path(".millstream")


def backup(
    path: Annotated[Path, typer.Argument(help="A new directory; it appears when the backup is whole.")],
    data_dir: DataDir = _DEFAULT,
) -> None:
    """Back up the embedded database, be it running or stopped. It holds all data and a password: keep it private."""
    from millstream.store.embedded import EmbeddedPostgresError
    from millstream.store.embedded.backup import BackupError
    from millstream.store.migrations import MigrationError

    try:
        taken = run(_backup(data_dir.absolute(), path))
    except (BackupError, EmbeddedPostgresError, MigrationError) as error:
        _refuse(str(error))
    print(f"{path}: {len(taken.files)} files, PostgreSQL {taken.postgres_major}, schema {taken.revision}")


def restore(
    path: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="What millstream backup wrote.")],
    data_dir: DataDir = _DEFAULT,
    force: Annotated[bool, typer.Option("--force", help="Put data that is there aside, and keep it.")] = False,
) -> None:
    """Check a backup and make it the data of a stopped installation."""
    from millstream.store.embedded import EmbeddedPostgres, EmbeddedPostgresError
    from millstream.store.embedded.backup import BackupError, put_back

    # Outermost last: what is made here and not filled goes again.
    made = [each for each in (data_dir / "postgres", data_dir, *data_dir.parents) if not os.path.lexists(each)]
    try:
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o711 if os.geteuid() == 0 else 0o700)
        with _claim(data_dir) as stopped:
            if not stopped:
                _refuse(f"{data_dir} is in use: stop that millstream, or choose another --data-dir")
            aside = put_back(path, EmbeddedPostgres(data_dir.absolute() / "postgres"), force=force)
    except (BackupError, EmbeddedPostgresError) as error:
        _refuse(str(error))
    except OSError as error:
        _refuse(f"cannot use {data_dir} (--data-dir): {error.strerror}")
    finally:
        _drop_empty(made)
    print(f"restored to {data_dir}" + (f"; what was there is in {aside}" if aside else ""))


def _drop_empty(directories: list[Path]) -> None:
    """Remove directories, inner ones first, as far as they are empty; also one that a link leads to."""
    for directory in directories:
        with contextlib.suppress(OSError):
            place = directory.resolve()
            place.rmdir()
            if directory.is_symlink():
                directory.unlink()


async def _backup(data_dir: Path, target: Path) -> "Manifest":
    from millstream.store import migrations
    from millstream.store.embedded import EmbeddedPostgres
    from millstream.store.embedded.backup import take

    if not (data_dir / "postgres" / "data").exists():
        _refuse(f"{data_dir} has no embedded database (--data-dir); back up a given one with its own tools")
    server = EmbeddedPostgres(data_dir / "postgres")
    with _claim(data_dir) as stopped:
        async with server if stopped else contextlib.nullcontext(server):
            revision = await migrations.current(server.url)
            return await asyncio.to_thread(take, server, target, version=version("millstream"), revision=revision)


@contextlib.contextmanager
def _claim(data_dir: Path) -> Iterator[bool]:
    """Hold the lock of the data directory, as `millstream dev` does; False where one holds it already."""
    lock = os.open(data_dir, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            free = False
        else:
            free = True
        yield free
    finally:
        os.close(lock)


def _refuse(line: str) -> NoReturn:
    typer.echo(f"millstream: {line}", err=True)
    raise typer.Exit(1)
