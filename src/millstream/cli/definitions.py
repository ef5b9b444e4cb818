"""Definitions of workflows in files, and how two of them differ."""

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson
import typer
import yaml

VALUES_MOST: Final = 200_000
"""A file whose aliases stand for more is not read."""
_ORDER: Final = (
    "name", "description", "labels", "timeout", "input_schema", "output_schema", "output", "id", "kind", "task",
    "agent", "workflow", "version", "type", "promise", "key", "queue", "needs", "when", "seconds", "over", "branches",
    "each", "input", "payload",
)  # fmt: skip
"""How definitions are shown: a Struct keeps no order of its fields. What is not named here follows by name."""


class _Loader(yaml.SafeLoader):
    """YAML whose plain words are texts but for those of JSON.

    YAML 1.1, which PyYAML reads, takes `no`, `on` and `off` for truth values, `1:30` for 90 and `2026-01-02` for a
    date; YAML 1.2 and people do not.
    """


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern in (
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)$"),
    ("null", r"(?:~|null|Null|NULL|)$"),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)$"),
    ("float", r"[-+]?(?:0|[1-9][0-9]*)?(?:\.[0-9]+)?(?<=[0-9])(?:[eE][-+]?[0-9]+)?$"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), None)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> Iterator[dict[str, Any]]:
    found: dict[str, Any] = {}
    yield found
    for key_node, value_node in node.value:
        key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
        if key is None:
            raise yaml.constructor.ConstructorError(None, None, "a key must be a text", key_node.start_mark)
        if key in found:
            raise yaml.constructor.ConstructorError(None, None, f"{key!r} stands here twice", key_node.start_mark)
        found[key] = loader.construct_object(value_node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def definitions_of(path: str) -> list[dict[str, Any]]:
    """The definitions in a file of JSON or YAML, which may hold several, or on stdin for "-". Raises BadParameter."""
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
        if path.endswith(".json"):
            found = [orjson.loads(text)]
        else:
            found = [each for each in yaml.load_all(text, _Loader) if each is not None]
    except OSError as error:
        raise typer.BadParameter(f"cannot read {path}: {error.strerror}", param_hint="--file") from error
    except orjson.JSONDecodeError as error:
        raise typer.BadParameter(f"{path} is no JSON: {error}", param_hint="--file") from error
    except UnicodeDecodeError as error:
        raise typer.BadParameter(f"{path} is no text in UTF-8", param_hint="--file") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise typer.BadParameter(f"{path} is no YAML: {_why(error)}", param_hint="--file") from error
    if not found or not all(isinstance(each, dict) for each in found):
        raise typer.BadParameter(f"{path} must hold a definition: an object with name and steps", param_hint="--file")
    if any(sum(1 for _ in _values(each)) >= VALUES_MOST for each in found):
        raise typer.BadParameter(f"{path} stands for {VALUES_MOST:,} values or more", param_hint="--file")
    return found


def _why(error: Exception) -> str:
    """What is wrong, in one line, and where."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return "it is nested too deep" if isinstance(error, RecursionError) else str(error).splitlines()[0]
    mark = error.problem_mark
    return f"{error.problem} (line {mark.line + 1}, column {mark.column + 1})"


def _values(value: Any) -> Iterator[Any]:
    """A value and all within it, until there are too many."""
    left, count = [value], 0
    while left and count < VALUES_MOST:
        each = left.pop()
        count += 1
        yield each
        if isinstance(each, dict):
            left += each.values()
        elif isinstance(each, list):
            left += each


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
