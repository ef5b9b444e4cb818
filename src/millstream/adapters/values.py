"""What steps of a workflow are given: JSON in which "${CEL}" stands for the value of an expression."""

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from cel_expr_python import cel

from millstream.adapters.expressions import Cost, reason_of
from millstream.application.ports import NoValue
from millstream.domain.struct_wire import Json
from millstream.domain.templates import VARIABLES, expression_of
from millstream.domain.workflows import Template

_TEXTS = re.compile(r"\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'")
_steps_in = re.compile(r"(?<![\w.])steps\s*(?:\.\s*([A-Za-z_]\w*)|(\W|$))").findall
_is_place = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*").fullmatch
_variables_in = re.compile(rf"(?<![\w.])({'|'.join(sorted(VARIABLES))})\b").findall


@dataclass(frozen=True, slots=True)
class Expression:
    """A compiled expression.

    Attributes:
        steps: Steps that it refers to by name.
        variables: Which variables it uses.
        type: Of its value, by CEL's name, such as "BOOL"; "DYN" where that depends.
        all_steps: It uses `steps` otherwise than by the name of one.
        path: Where its value stands, where it only names a place; else ().
    """

    text: str
    steps: frozenset[str]
    variables: frozenset[str]
    type: str
    all_steps: bool
    path: tuple[str, ...]
    _compiled: Any
    _cost: Cost

    def __call__(self, variables: Mapping[str, Json], size_bytes: int) -> Json:
        """Its value for variables of so many bytes. Raises NoValue, and Costly where to find out may take long."""
        self._cost.check(size_bytes)
        return evaluated(self._compiled, variables)


def compile_expression(text: str, scope: frozenset[str] = VARIABLES) -> Expression:
    """Raises ValueError, with line and column, on an expression that does not compile, or uses a variable that is not
    in the scope."""
    try:
        compiled = _environment(scope).compile(text)
    except RuntimeError as error:
        raise ValueError(reason_of(str(error)).replace(" (in container '')", "")) from error
    bare = _TEXTS.sub('""', text)
    found = [name for name, _ in _steps_in(bare)]
    return Expression(
        text, frozenset(name for name in found if name), frozenset(_variables_in(bare)), compiled.return_type().name(),
        "" in found, tuple(text.strip().split(".")) if _is_place(text.strip()) else (), compiled, Cost(text),
    )  # fmt: skip


class CelExpressions:
    """Compiles the expressions of workflows. See application.workflow_rules.Expressions and step_values.Templates."""

    def compile(self, text: str, scope: frozenset[str] = VARIABLES) -> Expression:
        """See compile_expression."""
        return compile_expression(text, scope)

    def fill(self, template: Template, value_of: Callable[[str], Json]) -> Json:
        """See fill."""
        return fill(template, value_of)


@functools.cache
def _environment(scope: frozenset[str]) -> Any:
    return cel.NewEnv(variables=dict.fromkeys(sorted(scope), cel.Type.DYN))


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


def fill(template: Template, value_of: Callable[[str], Json]) -> Json:
    """The template with each expression replaced by its value. Raises what `value_of` raises."""
    if isinstance(template, str):
        found = expression_of(template)
        return template if found is None else value_of(found)
    if isinstance(template, Mapping):
        return {key: fill(each, value_of) for key, each in template.items()}
    if isinstance(template, tuple):
        return [fill(each, value_of) for each in template]
    return template
