"""What is given on the command line."""

import sys
from collections.abc import Iterable
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Any, Final, get_args, get_type_hints

import orjson
import typer

from millstream.sdk import Visibility

_VISIBILITY_FIELDS: Final = {each.name for each in fields(Visibility)}
_VISIBILITY_KINDS: Final[tuple[str, ...]] = get_args(get_type_hints(Visibility)["kind"])
_TTL_MOST_S: Final = 2_592_000
_NESTED_MOST: Final = 30


def json_value(text: str, name: str = "JSON") -> Any:
    """The JSON that is the argument, in the @file it names, or on stdin for "-". Raises BadParameter."""
    try:
        if text == "-":
            raw = sys.stdin.buffer.read()
        elif text.startswith("@"):
            raw = Path(text[1:]).read_bytes()
        else:
            raw = text.encode()
        return orjson.loads(raw)
    except OSError as error:
        raise typer.BadParameter(f"cannot read {text[1:]}: {error.strerror}", param_hint=name) from error
    except orjson.JSONDecodeError as error:
        raise typer.BadParameter(f"not JSON: {error}", param_hint=name) from error


def json_object(text: str, name: str = "JSON") -> dict[str, Any]:
    """The JSON object that is the argument, in the @file it names, or on stdin for "-". Raises BadParameter."""
    data = json_value(text, name)
    if not isinstance(data, dict):
        raise typer.BadParameter("it must be a JSON object", param_hint=name)
    return data


def labels_of(given: Iterable[str] | None) -> dict[str, str]:
    """Labels given as NAME=VALUE. Raises BadParameter."""
    labels: dict[str, str] = {}
    for each in given or ():
        name, equals, value = each.partition("=")
        if not (name and equals):
            raise typer.BadParameter(f"{each!r} is not NAME=VALUE", param_hint="--label")
        labels[name] = value
    return labels


def aware(moment: datetime | None) -> datetime | None:
    """A time as given on the command line, which is that of this machine's clock."""
    return moment.astimezone() if moment else None


class BadVisibility(Exception):
    """What is given is no visibility; says which field is at fault."""


def visibility_of(value: Any, path: str = "visibility") -> Visibility | None:
    """The visibility that JSON says, as REST takes it; None where it says nothing. Raises BadVisibility."""
    if value is None:
        return None
    if not isinstance(value, dict):
        raise BadVisibility(f"{path} must be a JSON object with a kind")
    if path.count(".then") > _NESTED_MOST:
        raise BadVisibility(f"{path} is nested too deep")
    unknown = sorted(value.keys() - _VISIBILITY_FIELDS)
    if unknown:
        raise BadVisibility(f"{path} has the unknown field {unknown[0]!r}; it may have {_listed(_VISIBILITY_FIELDS)}")
    kind = value.get("kind") or "Public"
    if kind not in _VISIBILITY_KINDS:
        raise BadVisibility(f"{path}.kind must be one of {_listed(_VISIBILITY_KINDS)}")
    for name in ("agents", "required_labels"):
        texts = value.get(name, [])
        if not isinstance(texts, list) or not all(isinstance(each, str) for each in texts):
            raise BadVisibility(f"{path}.{name} must be a list of texts")
    if not isinstance(value.get("tenant_id", ""), str):
        raise BadVisibility(f"{path}.tenant_id must be a text")
    given = dict(value) | {"kind": kind, "then": visibility_of(value.get("then"), f"{path}.then")}
    return Visibility(**given | {"ttl": _seconds(value.get("ttl"), f"{path}.ttl")})


def _seconds(value: Any, path: str) -> float | None:
    if value is None:
        return None
    try:
        seconds = float(value.removesuffix("s") if isinstance(value, str) else value)
    except (TypeError, ValueError):
        raise BadVisibility(f"{path} must be a time such as 30s") from None
    if not 0 <= seconds <= _TTL_MOST_S:
        raise BadVisibility(f"{path} must be a time of 0 s to {_TTL_MOST_S} s")
    return seconds


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
