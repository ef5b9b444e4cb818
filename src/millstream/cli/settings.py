"""The options that the commands share which read the configuration."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from millstream.config import Settings

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", help="Settings as TOML. Default: MILLSTREAM_CONFIG, or millstream.toml if it exists."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Any setting (see millstream config); repeat it."),
]


def effective(file: Path | None, overrides: Sequence[str], **flags: object) -> "Settings":
    """Return the settings: flags and overrides over environment over file. Flags that are None were not given.

    Ends the command with exit code 2 and one line where a setting is wrong or unknown.
    """
    from millstream.config import ConfigError, load

    if file is not None:
        os.environ["MILLSTREAM_CONFIG"] = str(file)
    try:
        return load(**_parse(overrides), **flags)
    except ConfigError as error:
        refuse(str(error))


def refuse(line: str) -> NoReturn:
    """End the command: nothing can run with this configuration."""
    typer.echo(f"millstream: {line}", err=True)
    raise typer.Exit(2)


def _parse(overrides: Sequence[str]) -> dict[str, object]:
    parsed: dict[str, object] = {}
    for override in overrides:
        name, equals, value = override.partition("=")
        if not equals:
            raise typer.BadParameter(f"{override!r} is not NAME=VALUE", param_hint="--set")
        parsed[name.strip().replace("-", "_")] = _value(value)
    return parsed


def _value(text: str) -> object:
    """Lists and tables are written as JSON; the settings themselves read anything else."""
    if not text.startswith(("[", "{")):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is no JSON: {error}", param_hint="--set") from None
