"""Rules of fields (buf.validate) as constraints of JSON Schema, in the dialect of OpenAPI 3.0."""

from __future__ import annotations

import re
from typing import Any

JSON = dict[str, Any]

_STRINGS = {"min_len": "minLength", "max_len": "maxLength", "pattern": "pattern", "len": None, "const": None}
_FORMATS = {"uuid": "uuid", "email": "email", "uri": "uri", "hostname": "hostname", "ipv4": "ipv4", "ipv6": "ipv6"}


def constraints(rules: Any) -> JSON:
    """What the rules of one value say, of a list or map what they say of it and of its items."""
    kind = rules.WhichOneof("type")
    if kind is None or _ignored(rules):
        return {}
    given = getattr(rules, kind)
    match kind:
        case "string":
            found = _of_string(given)
        case "repeated":
            found = _of_list(given)
        case "map":
            found = _of_map(given)
        case "duration" | "timestamp" | "enum" | "bool" | "bytes" | "any":
            return {}
        case _:
            found = _of_number(given)
    return _or_empty(found) if _empty_is_fine(rules) else found


def is_required(rules: Any, presence: bool) -> bool:
    """Whether leaving the field out breaks its rules; `presence`: it tells absent from empty."""
    if rules.required:
        return True
    kind = rules.WhichOneof("type")
    if presence or kind is None or _ignored(rules) or _empty_is_fine(rules):
        return False
    given = getattr(rules, kind)
    match kind:
        case "string":
            return _refuses_empty(given)
        case "repeated":
            return bool(given.min_items)
        case "map":
            return bool(given.min_pairs)
        case "duration" | "timestamp" | "enum" | "bool" | "bytes" | "any":
            return False
        case _:
            return _least(given) > 0


def _ignored(rules: Any) -> bool:
    return _ignore(rules) == "IGNORE_ALWAYS"


def _empty_is_fine(rules: Any) -> bool:
    return _ignore(rules) == "IGNORE_IF_ZERO_VALUE"


def _ignore(rules: Any) -> str:
    return str(rules.DESCRIPTOR.fields_by_name["ignore"].enum_type.values_by_number[rules.ignore].name)


def _of_string(given: Any) -> JSON:
    found: JSON = {}
    for field, _ in given.ListFields():
        value = getattr(given, field.name)
        if name := _STRINGS.get(field.name):
            found[name] = value
        elif field.name == "len":
            found |= {"minLength": value, "maxLength": value}
        elif field.name == "const":
            found["enum"] = [value]
        elif field.name == "in":
            found["enum"] = list(value)
        elif field.name in _FORMATS:
            found["format"] = _FORMATS[field.name]
        else:
            raise SystemExit(f"the documentation does not know the rule string.{field.name}: teach {__file__}")
    return found


def _of_number(given: Any) -> JSON:
    found: JSON = {}
    for field, _ in given.ListFields():
        value = getattr(given, field.name)
        match field.name:
            case "gte":
                found["minimum"] = _plain(value)
            case "gt":
                found |= {"minimum": _plain(value), "exclusiveMinimum": True}
            case "lte":
                found["maximum"] = _plain(value)
            case "lt":
                found |= {"maximum": _plain(value), "exclusiveMaximum": True}
            case "in":
                found["enum"] = [_plain(each) for each in value]
            case "const":
                found["enum"] = [_plain(value)]
            case "finite":
                pass
            case _:
                raise SystemExit(f"the documentation does not know the rule {field.full_name}: teach {__file__}")
    return found


def _of_list(given: Any) -> JSON:
    found: JSON = {}
    if given.min_items:
        found["minItems"] = given.min_items
    if given.HasField("max_items"):
        found["maxItems"] = given.max_items
    if given.unique:
        found["uniqueItems"] = True
    return found | ({"items": items} if (items := constraints(given.items)) else {})


def _of_map(given: Any) -> JSON:
    found: JSON = {}
    if given.min_pairs:
        found["minProperties"] = given.min_pairs
    if given.HasField("max_pairs"):
        found["maxProperties"] = given.max_pairs
    return found | ({"additionalProperties": values} if (values := constraints(given.values)) else {})


def _or_empty(found: JSON) -> JSON:
    """The same where an empty string, or 0, is taken for none."""
    found = {**found}
    if "enum" in found:
        found["enum"] = ["", *found["enum"]]
    if "pattern" in found:
        found["pattern"] = f"^$|{found['pattern']}"
    if found.pop("format", None):
        found["pattern"] = "^$|^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$"
    if "minLength" in found:
        found["minLength"] = 0
    if found.get("minimum", 0) > 0:
        found["minimum"] = 0
        found.pop("exclusiveMinimum", None)
    return found


def _refuses_empty(given: Any) -> bool:
    found = _of_string(given)
    if found.get("minLength", 0) > 0 or "format" in found:
        return True
    if "enum" in found:
        return "" not in found["enum"]
    return "pattern" in found and re.search(found["pattern"], "") is None


def _least(given: Any) -> float:
    found = _of_number(given)
    if "enum" in found:
        return float(min(found["enum"]))
    return float(found.get("minimum", 0)) + (1e-9 if found.get("exclusiveMinimum") else 0)


def _plain(value: float) -> float:
    return int(value) if float(value).is_integer() else value
