"""`millstream config`: the effective configuration."""

import json
import re
from typing import Annotated, Any

import typer

from millstream.cli.settings import ConfigFile, Overrides, load

app = typer.Typer()

_MASK = "**********"
_SECRET = re.compile(r"password|secret|token|api_key", re.IGNORECASE)
_URL_PASSWORD = re.compile(r"(?<=://)([^/@:]*):[^@]*@")


@app.command()
def config(
    config: ConfigFile = None,
    settings: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Print the settings that a server here would run with. Secrets are masked."""
    effective = load(config, settings or ())
    values = {name: masked(name, value) for name, value in effective.model_dump(mode="json").items()}
    if as_json:
        print(json.dumps(values, indent=2))
        return
    import yaml

    print(yaml.safe_dump(values, sort_keys=False, default_flow_style=False), end="")


def masked(name: str, value: Any) -> Any:
    """Return the value without what nobody should read over a shoulder or in a bug report."""
    if isinstance(value, dict):
        return {key: masked(str(key), inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [masked(name, inner) for inner in value]
    if isinstance(value, str) and value:
        return _MASK if _SECRET.search(name) else _URL_PASSWORD.sub(rf"\1:{_MASK}@", value)
    return value
