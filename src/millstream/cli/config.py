"""`millstream config`: the effective configuration."""

import json
from typing import Annotated

import typer

from millstream.cli.settings import ConfigFile, Overrides, effective

app = typer.Typer()


@app.command()
def config(
    config: ConfigFile = None,
    settings: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Print the settings that a server here would run with. Secrets are masked."""
    values = effective(config, settings or ()).effective()
    if as_json:
        print(json.dumps(values, indent=2))
        return
    for name, value in values.items():
        print(f"{name} = {json.dumps(value)}")
