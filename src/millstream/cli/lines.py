"""`millstream publish --file`: the command around the publisher: files, the progress bar, how it ends."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

import typer
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from millstream.cli.connect import REFUSED, call
from millstream.cli.output import console, print_json
from millstream.cli.publish_file import Counts, FilePublisher
from millstream.cli.publish_progress import ProgressError, Results, Standing
from millstream.sdk import Client

INTERRUPTED: Final = 130


def publish_lines(
    file: str,
    type_name: str,
    results: str,
    restart: bool,
    batch_size: int,
    parallel: int,
    target: str,
    api_key: str | None,
    as_json: bool,
) -> None:
    """Publish each line of a file. Raises Exit with 1 where lines failed, 130 where it was interrupted."""
    with _opened(file) as source:
        standing = _standing(file, source, restart)
        if standing.ended:
            console(stderr=True).print(f"all {standing.line:,} lines are published; --restart publishes them again")
            return
        path = Path(results) if results else (Path(file + ".results") if file != "-" else None)
        written = Results(path, standing.results_at)
        begun = standing.line
        with _bar(file, standing.offset) as (advanced, told):

            async def work(client: Client) -> Counts:
                publisher = FilePublisher(client, type_name, standing, written, batch_size, parallel, advanced, told)
                return await publisher.run(source)

            try:
                counts = call(target, api_key, work)
            except KeyboardInterrupt:
                told(f"stopped behind line {standing.line:,}; the same command goes on from there")
                raise typer.Exit(INTERRUPTED) from None
            finally:
                written.close()
    _show(counts, standing.line - begun, path, written, as_json)
    if counts.failed:
        raise typer.Exit(REFUSED)


@contextlib.contextmanager
def _opened(file: str) -> Iterator[BinaryIO]:
    if file == "-":
        yield sys.stdin.buffer
        return
    try:
        source = Path(file).open("rb")  # noqa: SIM115  (closed below)
    except OSError as error:
        raise typer.BadParameter(f"cannot read {file}: {error.strerror}", param_hint="--file") from error
    with source:
        yield source


def _standing(file: str, source: BinaryIO, restart: bool) -> Standing:
    if file == "-":
        return Standing(None)
    path = Path(file + ".progress")
    if restart:
        return Standing(path)
    try:
        return Standing.read(path, source)
    except ProgressError as error:
        raise typer.BadParameter(str(error), param_hint="--file") from error


@contextlib.contextmanager
def _bar(file: str, done: int) -> Iterator[tuple[Callable[[int, Counts], None], Callable[[str], None]]]:
    """A progress bar on a terminal; elsewhere only what a person should know."""
    err = console(stderr=True)
    if not err.is_terminal:
        yield (lambda offset, counts: None), lambda text: err.print(escape(text))
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    size = Path(file).stat().st_size if file != "-" else None
    with Progress(*columns, console=err) as progress:
        task = progress.add_task("publishing", total=size, completed=done)

        def advanced(offset: int, counts: Counts) -> None:
            text = f"{counts.published + counts.duplicates:,} published, {counts.failed:,} failed"
            progress.update(task, completed=offset, description=text)

        yield advanced, lambda text: progress.console.print(escape(text))


def _show(counts: Counts, lines: int, path: Path | None, results: Results, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "lines": lines,
                "published": counts.published,
                "duplicates": counts.duplicates,
                "failed": counts.failed,
                "results": str(path) if path else None,
            }
        )
        return
    out = console()
    for result in results.failures:
        out.print(escape(f"line {result['line']}: {result['error']['code']}: {result['error']['message']}"))
    more = f", {counts.duplicates:,} of them before" if counts.duplicates else ""
    where = f"; results in {path}" if path else ""
    published = counts.published + counts.duplicates
    out.print(escape(f"{published:,} published{more}, {counts.failed:,} failed of {lines:,} lines{where}"))
