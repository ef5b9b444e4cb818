"""What is given on the command line."""

import sys
from pathlib import Path
from typing import Any

import orjson
import typer


def json_object(text: str, name: str = "JSON") -> dict[str, Any]:
    """The JSON object that is the argument, in the @file it names, or on stdin for "-". Raises BadParameter."""
    try:
        if text == "-":
            raw = sys.stdin.buffer.read()
        elif text.startswith("@"):
            raw = Path(text[1:]).read_bytes()
        else:
            raw = text.encode()
        data = orjson.loads(raw)
    except OSError as error:
        raise typer.BadParameter(f"cannot read {text[1:]}: {error.strerror}", param_hint=name) from error
    except orjson.JSONDecodeError as error:
        raise typer.BadParameter(f"not JSON: {error}", param_hint=name) from error
    if not isinstance(data, dict):
        raise typer.BadParameter("it must be a JSON object", param_hint=name)
    return data
