"""JSON Schema by jsonschema-rs: regular expressions of linear time, and nothing fetched from anywhere.

How often a schema looks at one value is in its author's hands: references may double at every step, and an error may be
gathered once for every way to it. So the work of a check is estimated from above, and where that is much, the check is
left to the sandbox.
"""

import functools
import math
from typing import Any

import jsonschema_rs
import orjson

from millstream.application.ports import Costly
from millstream.domain.errors import FieldFault
from millstream.domain.struct_wire import Json

FAULTS_MOST = 20
MESSAGE_MOST = 200
"""Characters of a fault's message."""
CHECKS_MOST = 500_000
"""Checks within the server to find out whether a value is valid; one takes about 140 ns."""
FAULT_CHECKS_MOST = 20_000
"""Checks within the server to name its faults; one takes about 10 us where each fails."""
_VALUE_BYTES = 4
"""The smallest value of a payload: a null in a list."""
_DEPTH_MOST = 100
_REPETITION = 1000
_DATA = frozenset({"const", "default", "enum", "examples", "required", "type", "$defs", "definitions", "$vocabulary"})
_REFERENCES = frozenset({"$ref", "$dynamicRef", "$recursiveRef"})


def _no_fetch(uri: str) -> Json:
    raise ValueError(f"refers to {uri}, which is outside of the schema")


class JsonSchemas:
    """Compiles JSON Schemas (2020-12 unless $schema says otherwise)."""

    def compile(self, schema: str) -> "Check":
        """A check, of a schema as JSON text. Raises ValueError on what is no JSON Schema."""
        return _check(schema)

    def is_quick_to_read(self, schema: str) -> bool:
        """Whether it has no patterns, which may take 20 ms each to read, and is not large."""
        return "attern" not in schema and len(schema) <= 16 * 1024


class Check:
    """A compiled schema."""

    __slots__ = ("_validator", "_weight")

    def __init__(self, schema: str) -> None:
        self._validator = compiled(schema)
        self._weight = _weight(orjson.loads(schema))

    def __call__(self, value: Json, prefix: str, size_bytes: int = 0) -> list[FieldFault]:
        """The faults of a value of so many bytes, their fields below a prefix. Raises Costly where that may take
        long."""
        checks = self._weight * (size_bytes // _VALUE_BYTES + 10)
        if checks > CHECKS_MOST:
            raise Costly
        if self._validator.is_valid(value):
            return []
        if checks > FAULT_CHECKS_MOST:
            raise Costly
        return faults(self._validator, value, prefix)


@functools.lru_cache(2048)
def _check(schema: str) -> Check:
    # A registry is compiled anew with every change of one of its types.
    return Check(schema)


def compiled(schema: str) -> Any:
    """The validator of a schema. Raises ValueError."""
    parsed = orjson.loads(schema)
    if not isinstance(parsed, dict):
        raise ValueError("must be an object")  # noqa: TRY004  # one error for all bad schemas
    try:
        return jsonschema_rs.validator_for(parsed, pattern_options=jsonschema_rs.RegexOptions(), retriever=_no_fetch)
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as error:
        raise ValueError(_first_line(str(error))) from error


def faults(validator: Any, value: Json, prefix: str) -> list[FieldFault]:
    """The first faults of a value, their fields below a prefix."""
    if validator.is_valid(value):
        return []
    found = []
    for error in validator.iter_errors(value):
        found.append(FieldFault(_path(prefix, error.instance_path), _cut(error.message), _code(error)))
        if len(found) == FAULTS_MOST:
            break
    return found


def _weight(schema: dict[str, Any]) -> float:
    """How many checks a value may get at most, its references followed; infinite where they lead back."""
    known: dict[str, float] = {}

    def of(node: Any, above: tuple[str, ...]) -> float:
        if not isinstance(node, dict):
            return 1
        if len(above) > _DEPTH_MOST:
            return math.inf
        total = 1.0
        for key, below in node.items():
            if key in _REFERENCES:
                total += reference(below, above)
            elif key == "pattern":
                total += _pattern_weight(below)
            elif key not in _DATA:
                total += inside(key, below, (*above, ""))
        return total

    def inside(key: str, below: Any, above: tuple[str, ...]) -> float:
        if key == "properties" and isinstance(below, dict):
            # A value stands under one name.
            return max((of(each, above) for each in below.values()), default=0)
        if isinstance(below, dict) and key in ("patternProperties", "dependentSchemas", "dependencies"):
            return sum(_pattern_weight(name) + of(each, above) for name, each in below.items())
        if isinstance(below, list):
            return sum(of(each, above) for each in below)
        return of(below, above)

    def reference(target: Any, above: tuple[str, ...]) -> float:
        if not isinstance(target, str) or target in above:
            return math.inf
        if target not in known:
            node = _resolved(schema, target)
            known[target] = math.inf if node is None else of(node, (*above, target))
        return known[target]

    return of(schema, ("#",))


def _resolved(schema: Any, target: str) -> Any:
    """What a reference within the schema points to; None where that is not plain to see."""
    if target != "#" and not target.startswith("#/"):
        return None
    for part in target[2:].split("/") if target != "#" else ():
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(schema, list):
            schema = schema[int(name)] if name.isdigit() and int(name) < len(schema) else None
        else:
            schema = schema.get(name) if isinstance(schema, dict) else None
    return schema


def _pattern_weight(pattern: Any) -> float:
    text = str(pattern)
    return 1 + len(text) / 4 + (_REPETITION if "{" in text else 0)


def _first_line(text: str) -> str:
    return text.splitlines()[0][:300] if text else "is not a JSON Schema"


def _cut(message: str) -> str:
    """The message without the middle of the value at fault, which stands in it whole: it ends with what is wrong."""
    half = MESSAGE_MOST // 2
    return message if len(message) <= MESSAGE_MOST else f"{message[:half]}...{message[-half:]}"


def _path(prefix: str, parts: list[str | int]) -> str:
    path = prefix
    for part in parts:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    return path


def _code(error: jsonschema_rs.ValidationError) -> str:
    name = type(error.kind).__name__.split("_")[-1].lower()
    return {"required": "REQUIRED", "type": "WRONG_TYPE", "additionalproperties": "UNKNOWN_FIELD"}.get(name, "INVALID")
