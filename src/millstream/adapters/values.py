"""What steps of a workflow are given: JSON in which "${CEL}" stands for the value of an expression."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from cel_expr_python import cel

from millstream.adapters.expressions import Cost, reason_of
from millstream.domain.struct_wire import Json
from millstream.domain.workflows import Template

_ENVIRONMENT = cel.NewEnv(variables=dict.fromkeys(("input", "steps", "result"), cel.Type.DYN))
_whole = re.compile(r"\$\{(.*)\}", re.DOTALL).fullmatch
_TEXTS = re.compile(r"\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'")
_steps_in = re.compile(r"(?<![\w.])steps\s*(?:\.\s*([A-Za-z_]\w*)|(\W|$))").findall
_variables_in = re.compile(r"(?<![\w.])(input|steps|result)\b").findall


class NoValue(ValueError):
    """An expression has no value, such as where a key is missing."""


@dataclass(frozen=True, slots=True)
class Expression:
    """A compiled expression.

    Attributes:
        steps: Steps that it refers to by name.
        variables: Which of `input`, `steps` and `result` it uses.
    """

    text: str
    steps: frozenset[str]
    variables: frozenset[str]
    _compiled: Any
    _cost: Cost

    def __call__(self, variables: Mapping[str, Json], size_bytes: int) -> Json:
        """Its value for variables of so many bytes. Raises NoValue, and Costly where to find out may take long."""
        self._cost.check(size_bytes)
        return evaluated(self._compiled, variables)


def compile_expression(text: str) -> Expression:
    """Raises ValueError, with line and column, on an expression that does not compile."""
    try:
        compiled = _ENVIRONMENT.compile(text)
    except RuntimeError as error:
        raise ValueError(reason_of(str(error))) from error
    bare = _TEXTS.sub('""', text)
    steps = frozenset(name for name, _ in _steps_in(bare) if name)
    return Expression(text, steps, frozenset(_variables_in(bare)), compiled, Cost(text))


def evaluated(compiled: Any, variables: Mapping[str, Json]) -> Json:
    """The value of a compiled expression as JSON. Raises NoValue."""
    try:
        found = compiled.eval(data=variables)
    except RuntimeError as error:
        raise NoValue(reason_of(str(error))) from error
    if found.type().name() == "ERROR":
        raise NoValue(str(found.value()).partition(": ")[2] or str(found.value()))
    return _json(found.plain_value() if hasattr(found, "plain_value") else found.value())


def _json(value: Any) -> Json:
    match value:
        case None | bool() | int() | float() | str():
            return value
        case datetime():
            return value.isoformat().replace("+00:00", "Z")
        case timedelta():
            return f"{value.total_seconds():g}s"
        case dict():
            return {str(key): _json(each) for key, each in value.items()}
        case list() | tuple():
            return [_json(each) for each in value]
        case _ if hasattr(value, "plain_value"):
            return _json(value.plain_value())
    raise NoValue(f"gives a {type(value).__name__}, which is no JSON")


def expressions_in(template: Template, path: str = "") -> Iterator[tuple[str, str]]:
    """The expressions of a template, each with its path."""
    if isinstance(template, str):
        if found := _whole(template):
            yield path, found[1]
    elif isinstance(template, Mapping):
        for key, each in template.items():
            yield from expressions_in(each, f"{path}.{key}" if path else key)
    elif isinstance(template, tuple):
        for index, each in enumerate(template):
            yield from expressions_in(each, f"{path}[{index}]")


def fill(template: Template, value_of: Callable[[str], Json]) -> Json:
    """The template with each expression replaced by its value. Raises what `value_of` raises."""
    if isinstance(template, str):
        found = _whole(template)
        return value_of(found[1]) if found else template
    if isinstance(template, Mapping):
        return {key: fill(each, value_of) for key, each in template.items()}
    if isinstance(template, tuple):
        return [fill(each, value_of) for each in template]
    return template
