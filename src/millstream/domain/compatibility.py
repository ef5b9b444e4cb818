"""Whether every payload that was valid under a schema still is under the next one, judged by their structure.

The rules, for a JSON Schema (2020-12), from the new one's point of view; what a rule cannot show counts as a break:

- TYPE: `type`, `enum` and `const` allow at least what they allowed (an integer is a number).
- REQUIRED: nothing more is `required`.
- BOUND: no bound is tighter (minimum, maxLength, minItems, maxProperties, uniqueItems, multipleOf, ...).
- CLOSED: `additionalProperties`, and a property's removal from under it, refuse nothing that was allowed.
- PATTERN: a `pattern` is absent, or as it was.
- COMBINED: `allOf`, `anyOf` and `$ref` hold by these rules; oneOf, not, if, contains and their like are as they were.

A property that the old schema does not name is taken as one that nobody sends, so an optional one may be added.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

CHANGES = ("TYPE", "REQUIRED", "BOUND", "CLOSED", "PATTERN", "COMBINED")
"""Kinds of breaks; a type may allow some of them."""
BREAKS_MOST = 20
STEPS_MOST = 5000
SIZE_MOST = 128 * 1024
"""Characters of both schemas."""
_DEPTH_MOST = 60
_LOWER = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties", "minContains")
_UPPER = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties", "maxContains")
_AS_IT_WAS = (
    "oneOf", "not", "if", "then", "else", "contains", "patternProperties", "propertyNames", "dependentRequired",
    "dependentSchemas", "dependencies", "unevaluatedItems", "unevaluatedProperties", "$dynamicRef", "$recursiveRef",
)  # fmt: skip
_TYPES = frozenset({"null", "boolean", "object", "array", "number", "string", "integer"})


@dataclass(frozen=True, slots=True)
class Break:
    """A place of the new schema, such as "properties.amount.type", that refuses what was valid; and how to mend it."""

    path: str
    kind: str
    message: str


class TooInvolved(Exception):
    """The schemas are too large, or refer to themselves too deeply, to be compared."""


def breaks(old: str, new: str) -> list[Break]:
    """Where a new schema refuses what an old one took, the first few; both as JSON text, "" for anything.

    Raises TooInvolved.
    """
    if len(old) + len(new) > SIZE_MOST:
        raise TooInvolved
    before = _read(old)
    if isinstance(before, dict):
        # Payloads are objects, whether a schema says so or not.
        before = {"type": "object", **before}
    return _Comparison(before, _read(new)).all()


def _read(schema: str) -> Any:
    return json.loads(schema) if schema else {}


class _Comparison:
    """Two documents, which their references are followed in."""

    def __init__(self, old: Any, new: Any) -> None:
        self._documents = (old, new)
        self._steps = 0
        self._seen: set[tuple[int, int]] = set()
        self._kept: list[Any] = []

    def all(self) -> list[Break]:
        """The first breaks."""
        found: list[Break] = []
        for each in self._compare(*self._documents, "", 0):
            found.append(each)
            if len(found) == BREAKS_MOST:
                break
        return found

    def _compare(self, old: Any, new: Any, path: str, depth: int) -> Iterator[Break]:
        self._steps += 1
        if self._steps > STEPS_MOST or depth > _DEPTH_MOST:
            raise TooInvolved
        if old is False or new is True or new == {} or (old == new and not _refers(new)):
            return
        if new is False:
            yield Break(path, "CLOSED", "takes nothing any more; leave the schema as it was")
            return
        old, new = self._resolved(old, 0), self._resolved(new, 1)
        if (id(old), id(new)) in self._seen:
            # Met again on a way through references: what holds on the first way holds on all.
            return
        self._seen.add((id(old), id(new)))
        # An id is its object's only while that lives.
        self._kept += (old, new)
        if old == new and not _refers(new):
            return
        was = {} if old is True else dict(old)
        for branches in ("anyOf", "oneOf"):
            if branches in was and was.get(branches) != new.get(branches):
                rest = {key: value for key, value in was.items() if key != branches}
                for branch in was[branches]:
                    yield from self._compare({**rest, **_schema(self._resolved(branch, 0))}, new, path, depth + 1)
                return
        yield from _types(was, new, path)
        yield from _bounds(was, new, path)
        yield from self._object(was, new, path, depth)
        yield from self._array(was, new, path, depth)
        yield from self._combined(was, new, path, depth)

    def _object(self, old: Mapping[str, Any], new: Mapping[str, Any], path: str, depth: int) -> Iterator[Break]:
        if "object" not in _allowed(old):
            return
        for name in sorted(set(new.get("required", ())) - set(old.get("required", ()))):
            yield Break(
                _at(path, "required"), "REQUIRED", f"{name!r} is required now; make it optional, or let it be as it was"
            )
        had, has = old.get("properties", {}), new.get("properties", {})
        for name in sorted(set(had) & set(has)):
            yield from self._compare(had[name], has[name], _at(path, f"properties.{name}"), depth + 1)
        closed = new.get("additionalProperties", True)
        if closed is True or closed == {}:
            return
        where = _at(path, "additionalProperties")
        for name in sorted(set(had) - set(has)):
            if had[name] is not False and closed is False:
                yield Break(where, "CLOSED", f"refuses {name!r}, which was a property; keep it among the properties")
            else:
                yield from self._compare(had[name], closed, where, depth + 1)
        before = old.get("additionalProperties", True)
        if closed is False and before is not False:
            yield Break(where, "CLOSED", "refuses properties that were let pass; leave additionalProperties as it was")
        elif closed is not False:
            yield from self._compare(before, closed, where, depth + 1)

    def _array(self, old: Mapping[str, Any], new: Mapping[str, Any], path: str, depth: int) -> Iterator[Break]:
        if "array" not in _allowed(old):
            return
        had, has = old.get("prefixItems", []), new.get("prefixItems", [])
        for index in range(max(len(had), len(has))):
            before = had[index] if index < len(had) else old.get("items", True)
            now = has[index] if index < len(has) else new.get("items", True)
            yield from self._compare(before, now, _at(path, f"prefixItems[{index}]"), depth + 1)
        yield from self._compare(old.get("items", True), new.get("items", True), _at(path, "items"), depth + 1)

    def _combined(self, old: Mapping[str, Any], new: Mapping[str, Any], path: str, depth: int) -> Iterator[Break]:
        for index, part in enumerate(new.get("allOf", ())):
            if part not in old.get("allOf", ()):
                yield from self._compare(old, part, _at(path, f"allOf[{index}]"), depth + 1)
        if "anyOf" in new and new["anyOf"] != old.get("anyOf") and not self._one_takes(old, new["anyOf"], depth):
            yield Break(_at(path, "anyOf"), "COMBINED", "none of these takes all that was valid; keep those there were")
        for key in _AS_IT_WAS:
            if key in new and new[key] != old.get(key):
                yield Break(_at(path, key), "COMBINED", f"{key} cannot be compared; leave it as it was, or out")

    def _one_takes(self, old: Mapping[str, Any], branches: list[Any], depth: int) -> bool:
        for branch in branches:
            before = set(self._seen)
            if next(self._compare(old, branch, "", depth + 1), None) is None:
                return True
            self._seen = before
        return False

    def _resolved(self, schema: Any, side: int) -> Any:
        """The schema that references lead to, which may stand beside other keywords."""
        for _ in range(_DEPTH_MOST):
            if not (isinstance(schema, dict) and isinstance(schema.get("$ref"), str)):
                return schema
            target = _target(self._documents[side], schema["$ref"])
            rest = {key: value for key, value in schema.items() if key not in ("$ref", "title", "description")}
            schema = target if not rest or not isinstance(target, dict) else {**target, **rest}
        raise TooInvolved


def _target(document: Any, reference: str) -> Any:
    if not reference.startswith("#"):
        raise TooInvolved
    for part in reference[1:].split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(document, list) and name.isdigit() and int(name) < len(document):
            document = document[int(name)]
        elif isinstance(document, dict) and name in document:
            document = document[name]
        else:
            raise TooInvolved
    return document


def _refers(schema: Any) -> bool:
    return "$ref" in json.dumps(schema)


def _schema(schema: Any) -> dict[str, Any]:
    if schema is False:
        return {"enum": []}
    return {} if schema is True else dict(schema)


def _at(path: str, part: str) -> str:
    return f"{path}.{part}" if path else part


def _allowed(schema: Mapping[str, Any]) -> set[str]:
    """Types that a value may have."""
    given = schema.get("type")
    found = set(_TYPES) if given is None else {given} if isinstance(given, str) else set(given)
    return found | {"integer"} if "number" in found else found


def _values(schema: Mapping[str, Any]) -> list[Any] | None:
    """The only values there are, where a schema lists them."""
    if "const" in schema:
        return [schema["const"]]
    return list(schema["enum"]) if "enum" in schema else None


def _types(old: Mapping[str, Any], new: Mapping[str, Any], path: str) -> Iterator[Break]:
    had, has = _values(old), _values(new)
    if has is not None:
        gone = [value for value in had or () if value not in has]
        key = "const" if "const" in new else "enum"
        if had is None:
            yield Break(_at(path, key), "TYPE", f"{key} limits what was free; leave it out")
        elif gone:
            yield Break(_at(path, key), "TYPE", f"no longer takes {json.dumps(gone[0])[:60]}; keep it")
    lost = sorted(_allowed(old) - _allowed(new))
    if had is not None:
        lost = sorted({_type_of(value) for value in had} - _allowed(new))
    if lost:
        yield Break(_at(path, "type"), "TYPE", f"no longer takes {', '.join(lost)}; let type include what it did")


def _type_of(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "integer" if float(value).is_integer() else "number"
    if value is None:
        return "null"
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"


def _bounds(old: Mapping[str, Any], new: Mapping[str, Any], path: str) -> Iterator[Break]:
    for key in (*_LOWER, *_UPPER):
        if key in new:
            before, sign = old.get(key), 1 if key in _LOWER else -1
            if before is None or sign * new[key] > sign * before:
                was = "there was none" if before is None else f"it was {before:g}"
                yield Break(_at(path, key), "BOUND", f"is tighter than it was ({was}); leave it as it was, or out")
    if "multipleOf" in new and new["multipleOf"] != old.get("multipleOf"):
        yield Break(_at(path, "multipleOf"), "BOUND", "is another than it was; leave it as it was, or out")
    if new.get("uniqueItems") and not old.get("uniqueItems"):
        yield Break(_at(path, "uniqueItems"), "BOUND", "is asked for now; leave it out")
    if "pattern" in new and new["pattern"] != old.get("pattern"):
        yield Break(_at(path, "pattern"), "PATTERN", "is another than it was; leave it as it was, or out")
