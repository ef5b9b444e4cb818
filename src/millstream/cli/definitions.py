"""Definitions of workflows in files, and how two of them differ."""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson
import typer
import yaml

from millstream.sdk.documents import documents_in
from millstream.sdk.errors import PayloadError

_ORDER: Final = (
    "name", "description", "labels", "timeout", "input_schema", "output_schema", "output", "id", "kind", "task",
    "agent", "workflow", "version", "type", "promise", "key", "queue", "needs", "when", "seconds", "over", "branches",
    "each", "input", "payload",
)  # fmt: skip
"""How definitions are shown: a Struct keeps no order of its fields. What is not named here follows by name."""


def definitions_of(path: str) -> list[dict[str, Any]]:
    """The definitions in a file of JSON or YAML, which may hold several, or on stdin for "-". Raises BadParameter."""
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
        return documents_in(text, path)
    except OSError as error:
        raise typer.BadParameter(f"cannot read {path}: {error.strerror}", param_hint="--file") from error
    except UnicodeDecodeError as error:
        raise typer.BadParameter(f"{path} is no text in UTF-8", param_hint="--file") from error
    except PayloadError as error:
        raise typer.BadParameter(error.message, param_hint="--file") from error


def yaml_of(definition: Mapping[str, Any]) -> str:
    """A definition as YAML, for people, and for `apply` to read again."""
    text: str = yaml.safe_dump(_ordered(definition), sort_keys=False, allow_unicode=True, width=110)
    return text


def _ordered(value: Any) -> Any:
    if isinstance(value, Mapping):
        rank = {name: number for number, name in enumerate(_ORDER)}
        names = sorted(value, key=lambda name: (name == "steps", rank.get(name, len(rank)), name))
        return {name: _ordered(value[name]) for name in names}
    return [_ordered(each) for each in value] if isinstance(value, list | tuple) else value


@dataclass(frozen=True, slots=True)
class Difference:
    """A place where two definitions differ; None where there is nothing.

    Attributes:
        step: Id of the step, "" outside of steps.
        path: Of the field within; "" for a step as a whole.
    """

    step: str
    path: str
    before: Any
    after: Any


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Difference]:
    """Where definitions differ: steps are told apart by their ids, wherever they stand."""
    out = [Difference("", *each) for each in _changes(_without(before, "steps"), _without(after, "steps"), "")]
    old, new = _steps(before), _steps(after)
    for name in [*old, *(name for name in new if name not in old)]:
        if name not in new or name not in old:
            out.append(Difference(name, "", old.get(name), new.get(name)))
        else:
            out += [Difference(name, *each) for each in _changes(old[name], new[name], "")]
    kept = ([name for name in old if name in new], [name for name in new if name in old])
    if kept[0] != kept[1]:
        out.append(Difference("", "steps", *kept))
    return out


def _without(definition: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {each: value for each, value in definition.items() if each != name}


def _steps(definition: Mapping[str, Any]) -> dict[str, Any]:
    return {str(step["id"]): _ordered(step) for step in definition.get("steps", [])}


def _changes(before: Any, after: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    if before == after:
        return
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for name in _ordered({**before, **after}):
            yield from _changes(before.get(name), after.get(name), f"{path}.{name}" if path else name)
    else:
        yield path, before, after


def shown(found: list[Difference]) -> str:
    """Differences, a line for each field and the whole of a step that came or went."""
    lines: list[str] = []
    step = ""
    for each in found:
        if each.step and not each.path:
            lines.append(f"{'+' if each.before is None else '-'} step {each.step}")
            whole = yaml_of(each.after if each.before is None else each.before)
            lines += [f"    {line}" for line in whole.splitlines()]
            continue
        if each.step and each.step != step:
            lines.append(f"~ step {each.step}")
        step = each.step
        lines.append(f"{'    ' if step else '~ '}{each.path}: {_one_line(each.before)} -> {_one_line(each.after)}")
    return "\n".join(lines)


def _one_line(value: Any) -> str:
    return "nothing" if value is None else orjson.dumps(_ordered(value)).decode()
