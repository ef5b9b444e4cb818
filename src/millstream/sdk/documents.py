"""Documents of workflows, read from JSON and YAML."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import orjson
import yaml

from millstream.sdk.errors import PayloadError

VALUES_MOST: Final = 200_000
"""A file whose aliases stand for more is not read."""


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


def read_documents(given: str | Path) -> list[dict[str, Any]]:
    """The documents in a file, or in a text. Raises PayloadError, and OSError where there is no such file."""
    if isinstance(given, Path):
        return documents_in(given.read_text(encoding="utf-8"), str(given))
    return documents_in(given, "the text")


def documents_in(text: str, name: str) -> list[dict[str, Any]]:
    """The documents in JSON (by the name's end) or YAML, which may hold several. Raises PayloadError, which calls it by
    its name."""
    try:
        if name.endswith(".json"):
            found = [orjson.loads(text)]
        else:
            found = [each for each in yaml.load_all(text, _Loader) if each is not None]
    except orjson.JSONDecodeError as error:
        raise PayloadError(f"{name} is no JSON: {error}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise PayloadError(f"{name} is no YAML: {_why(error)}") from error
    if not found or not all(isinstance(each, dict) for each in found):
        raise PayloadError(f"{name} must hold a definition: an object with name and steps")
    if any(sum(1 for _ in _values(each)) >= VALUES_MOST for each in found):
        raise PayloadError(f"{name} stands for {VALUES_MOST:,} values or more")
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
