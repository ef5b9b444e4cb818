"""`millstream publish --file`: the command around the publisher: files, the progress bar, how it ends."""

import contextlib
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import typer
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from millstream.cli.connect import REFUSED, call
from millstream.cli.output import console, print_json
from millstream.cli.publish_file import FilePublisher
from millstream.cli.publish_progress import Bound, Counts, ProgressError, Results, Standing
from millstream.sdk import Client

INTERRUPTED: Final = 130
STDIN: Final = "-"


@dataclass(frozen=True, slots=True)
class FileOptions:
    """What the command line says of a file.

    Attributes:
        file: Its name; "-" for stdin.
        type_name: The type of all lines; "" where each names its own.
        results, progress: Names of files; "" for those beside it.
        restart: Forget how far it is.
        retry_failed: Publish the lines that failed, and no others.
        batch_size, parallel: Lines a call, and calls at once.
    """

    file: str
    type_name: str
    results: str
    progress: str
    restart: bool
    retry_failed: bool
    batch_size: int
    parallel: int

    @property
    def results_path(self) -> Path | None:
        """Where the results go; None: nowhere."""
        if self.results:
            return Path(self.results)
        return None if self.file == STDIN else Path((self.progress or self.file) + ".results")

    @property
    def results_named(self) -> str:
        """Where they go, as the progress keeps it; "" where it needs no words."""
        beside = Path((self.progress or self.file) + ".results")
        named = Path(self.results).absolute() if self.results else None
        return "" if named is None or named == beside.absolute() else str(named)

    @property
    def progress_path(self) -> Path:
        """Where it is kept how far the file is."""
        return Path(self.progress or self.file + ".progress")


def publish_lines(options: FileOptions, target: str, api_key: str | None, as_json: bool) -> None:
    """Publish the lines of a file. Raises Exit with 1 while lines of it are failed, 130 where it was interrupted."""
    with _opened(options) as source, _told_of_files():
        standing = _standing(options, _bound(options, target, api_key), source)
        done = standing.counts.failed == 0 if options.retry_failed else _ended(standing, source)
        if done:
            _show_ended(options, standing, as_json)
        else:
            _publish(options, standing, source, target, api_key, as_json)
    if standing.counts.failed:
        raise typer.Exit(REFUSED)


def _bound(options: FileOptions, target: str, api_key: str | None) -> Bound:
    return Bound.of(target, options.type_name, api_key, options.results_named)


def _publish(
    options: FileOptions, standing: Standing, source: BinaryIO, target: str, api_key: str | None, as_json: bool
) -> None:
    written = Results(options.results_path, standing.results_at)
    if not options.retry_failed:
        written.failures.extend(standing.failures)
    begun = standing.line
    with _bar(options.file, 0 if options.retry_failed else standing.offset) as (advanced, told):

        async def work(client: Client) -> None:
            await FilePublisher(
                client, options.type_name, standing, written, options.retry_failed, options.batch_size,
                options.parallel, advanced, told,
            ).run(source)  # fmt: skip

        try:
            call(target, api_key, work)
        except KeyboardInterrupt:
            told(f"stopped behind line {standing.line:,}; the same command goes on from there")
            raise typer.Exit(INTERRUPTED) from None
        finally:
            written.close()
    _show(options, standing, standing.line - begun, written, as_json)


@contextlib.contextmanager
def _opened(options: FileOptions) -> Iterator[BinaryIO]:
    if options.file == STDIN:
        if options.progress or options.restart or options.retry_failed:
            raise _wrong("stdin cannot be gone on with: no --progress, --restart or --retry-failed goes with -")
        yield sys.stdin.buffer
        return
    try:
        kind = Path(options.file).stat().st_mode
        # What stands there is not the command's to write beside.
        if not stat.S_ISREG(kind) or options.file.startswith(("/dev/", "/proc/")):
            raise _wrong(
                f"{options.file} is no regular file, so it could not be gone on with; save it in a file first, "
                "or pipe it in (--file -)"
            )
        source = Path(options.file).open("rb")  # noqa: SIM115  (closed below)
    except OSError as error:
        raise _wrong(f"cannot read {options.file}: {error.strerror}") from error
    with source:
        yield source


@contextlib.contextmanager
def _told_of_files() -> Iterator[None]:
    """What the progress and the results cannot be written for, in one line."""
    try:
        yield
    except OSError as error:
        console(stderr=True).print(escape(f"error: cannot write {error.filename or 'the results'}: {error.strerror}"))
        raise typer.Exit(REFUSED) from error


def _standing(options: FileOptions, bound: Bound, source: BinaryIO) -> Standing:
    if options.file == STDIN:
        return Standing(None, bound)
    path, results = options.progress_path, options.results_path
    names = [each.resolve() for each in (Path(options.file), path, results) if each is not None]
    if len(set(names)) < len(names):
        raise _wrong("the file, its results (--results) and its progress (--progress) must be three files")
    if options.restart and options.retry_failed:
        raise _wrong("--restart publishes all lines, --retry-failed those that failed: one of them")
    if options.restart or results is None:
        return Standing(path, bound)
    if options.retry_failed and not path.exists():
        raise _wrong(f"nothing of it is published yet: there is no {path} (--progress)")
    try:
        return Standing.read(path, bound, source, results)
    except ProgressError as error:
        raise _wrong(str(error)) from error


def _ended(standing: Standing, source: BinaryIO) -> bool:
    """All of the file is done, and nothing has come since."""
    if not standing.ended_at:
        return False
    here = source.tell()
    more = source.read(1)
    source.seek(here)
    return not more


def _wrong(message: str) -> typer.BadParameter:
    return typer.BadParameter(message, param_hint="--file")


@contextlib.contextmanager
def _bar(file: str, done: int) -> Iterator[tuple[Callable[[int, Counts], None], Callable[[str], None]]]:
    """A progress bar on a terminal; elsewhere only what a person should know."""
    err = console(stderr=True)
    if not err.is_terminal:
        yield (lambda offset, counts: None), lambda text: err.print(escape(text))
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    size = Path(file).stat().st_size if file != STDIN else None
    with Progress(*columns, console=err) as progress:
        task = progress.add_task("publishing", total=size, completed=done)

        def advanced(offset: int, counts: Counts) -> None:
            text = f"{counts.published + counts.duplicates:,} published, {counts.failed:,} failed"
            progress.update(task, completed=offset, description=text)

        yield advanced, lambda text: progress.console.print(escape(text))


def _show_ended(options: FileOptions, standing: Standing, as_json: bool) -> None:
    """That there is nothing to do: where and when it was done, since nothing is asked of the service now."""
    nothing = Results(None)
    nothing.failures = standing.failures
    if as_json:
        _show(options, standing, 0, nothing, as_json)
        return
    when, where = standing.ended_at or "not ended", standing.bound.target
    if standing.counts.failed:
        console(stderr=True).print(escape(f"the file was published to {where} ({when}); nothing is sent now"))
        _show(options, standing, 0, nothing, as_json)
    elif options.retry_failed:
        console(stderr=True).print(escape(f"none of the {standing.line:,} lines published to {where} failed"))
    else:
        console(stderr=True).print(
            escape(f"all {standing.line:,} lines were published to {where} ({when}); --restart publishes them again")
        )


def _show(options: FileOptions, standing: Standing, lines: int, results: Results, as_json: bool) -> None:
    """What became of the whole file."""
    counts, path = standing.counts, options.results_path
    if as_json:
        print_json(
            {
                "lines": standing.line,
                "lines_now": lines,
                "published": counts.published,
                "duplicates": counts.duplicates,
                "failed": counts.failed,
                "target": standing.bound.target,
                "ended_at": standing.ended_at or None,
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
    out.print(escape(f"{published:,} published{more}, {counts.failed:,} failed of {standing.line:,} lines{where}"))
    err = console(stderr=True)
    if counts.failed and options.file != STDIN:
        err.print("mend the lines that failed in the file, and give the same command with --retry-failed")
    if options.retry_failed and not standing.ended_at:
        err.print("the file is not done; the same command without --retry-failed goes on with it")
