"""`millstream correlations export`: a cascade as lines of JSON, in a file that can be gone on with."""

import io
import sys
from pathlib import Path
from typing import Annotated, BinaryIO, Final

import orjson
import typer

from millstream.cli.connect import DEFAULT_TARGET, ApiKey, Target, call
from millstream.cli.output import console
from millstream.sdk import Client

_BLOCK_BYTES: Final = 1024 * 1024
_BEGIN: Final = b'{"id":"'
"""How every line begins, also one that was cut."""


def export(
    correlation_id: Annotated[str, typer.Argument(help="Id of the cascade.", show_default=False)],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write to this file. Default: stdout.", dir_okay=False)
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the file: behind its last whole line, whenever that was.")
    ] = False,
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
) -> None:
    """Export the artifacts of a cascade as JSON, one a line, in the order stored. Interrupted, or with new artifacts
    since, the same command with --resume goes on."""
    if output is None:
        if resume:
            raise typer.BadParameter("goes with --output: it goes on with a file", param_hint="--resume")
        _told(call(target, api_key, lambda client: _write(client, correlation_id, "", sys.stdout.buffer)))
        return
    if output.exists() and not resume:
        raise typer.BadParameter(f"{output} is there already: go on with it by --resume", param_hint="--output")
    try:
        with output.open("r+b" if output.exists() else "w+b") as file:
            cursor = _rewound(file, correlation_id, output)
            _told(call(target, api_key, lambda client: _write(client, correlation_id, cursor, file)))
    except OSError as error:
        raise typer.BadParameter(f"{output}: {error.strerror}", param_hint="--output") from error


async def _write(client: Client, correlation_id: str, cursor: str, file: BinaryIO) -> int:
    count = 0
    async for line in client.correlations.export_lines(correlation_id, cursor):
        file.write(line)
        count += 1
    file.flush()
    return count


def _told(count: int) -> None:
    console(stderr=True).print(f"{count:,} artifacts")


def _rewound(file: BinaryIO, correlation_id: str, path: Path) -> str:
    """Cut a file behind its last whole line, and return the cursor of that; "" where there is none. A file that is no
    export of the cascade is left as it is."""
    size = file.seek(0, io.SEEK_END)
    end = _last_break(file, size)
    begin = _last_break(file, end - 1) if end else 0
    file.seek(begin)
    cursor = ""
    if end:
        try:
            last = orjson.loads(file.read(end - begin))
            cursor, named = str(last["cursor"]), last["correlation_id"]
        except (ValueError, KeyError, TypeError):
            raise _refused(f"{path} is no export: its last line has no cursor") from None
        if named != correlation_id.lower():
            raise _refused(f"{path} is an export of the cascade {named}")
    elif not _BEGIN.startswith(file.read(len(_BEGIN))):
        raise _refused(f"{path} is no export")
    file.truncate(end)
    file.seek(end)
    return cursor


def _refused(message: str) -> typer.BadParameter:
    return typer.BadParameter(message, param_hint="--output")


def _last_break(file: BinaryIO, before: int) -> int:
    """The place behind the last line break before a place; 0 where there is none."""
    while before > 0:
        begin = max(0, before - _BLOCK_BYTES)
        file.seek(begin)
        found = file.read(before - begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        before = begin
    return 0
