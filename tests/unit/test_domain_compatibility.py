"""Whether a schema takes all that the one before it took."""

import json
from typing import Any

import pytest

from millstream.domain.compatibility import TooInvolved, breaks

ANY: dict[str, Any] = {}


def obj(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    """An object's schema."""
    return {"type": "object", "properties": properties, "required": [*required]}


TEXT, NUMBER, INTEGER = {"type": "string"}, {"type": "number"}, {"type": "integer"}
NULLABLE = {"anyOf": [TEXT, {"type": "null"}]}
TREE = {"$ref": "#/$defs/node", "$defs": {"node": obj(next={"$ref": "#/$defs/node"}, name=TEXT)}}
TREES = {"$ref": "#/$defs/node", "$defs": {"node": obj(next={"$ref": "#/$defs/node"}, name={"type": "string"}, x=TEXT)}}
STRICT_TREE = {"$ref": "#/$defs/n", "$defs": {"n": obj(("name",), next={"$ref": "#/$defs/n"}, name=TEXT)}}

FINE: list[tuple[str, Any, Any]] = [
    ("the same", obj(a=TEXT), obj(a=TEXT)),
    ("an optional property", obj(a=TEXT), obj(a=TEXT, b=INTEGER)),
    ("less required", obj(("a",), a=TEXT), obj(a=TEXT)),
    ("a wider type", obj(a=INTEGER), obj(a=NUMBER)),
    ("another type beside", obj(a=TEXT), obj(a={"type": ["string", "null"]})),
    ("an object, which payloads are", ANY, obj()),
    ("nullable", obj(a=TEXT), obj(a=NULLABLE)),
    ("a longer enum", obj(a={"enum": ["x"]}), obj(a={"enum": ["x", "y"]})),
    ("no enum", obj(a={"enum": ["x"]}), obj(a=TEXT)),
    ("const among an enum", obj(a={"const": 1}), obj(a={"enum": [1, 2]})),
    ("looser bounds", {"type": "number", "minimum": 2, "maximum": 5}, {"type": "number", "minimum": 1, "maximum": 6}),
    ("bounds gone", {"type": "string", "minLength": 2}, TEXT),
    ("open at last", {**obj(a=TEXT), "additionalProperties": False}, obj(a=TEXT)),
    ("closed with more", {**obj(a=TEXT), "additionalProperties": False},
     {**obj(a=TEXT, b=TEXT), "additionalProperties": False}),
    ("words for people", {**TEXT, "title": "A"}, {**TEXT, "title": "B", "description": "c", "examples": ["x"]}),
    ("anything", obj(("a",), a=TEXT), ANY),
    ("items wider", {"type": "array", "items": INTEGER}, {"type": "array", "items": NUMBER}),
    ("a tree that grows", TREE, TREES),
    ("all of what was", obj(("a",), a=TEXT), {"allOf": [obj(("a",)), obj(a=TEXT)]}),
    ("pattern gone", {"type": "string", "pattern": "^a"}, TEXT),
    ("one of the same", {"oneOf": [TEXT, NUMBER]}, {"oneOf": [TEXT, NUMBER]}),
    ("a union that grows", {"anyOf": [TEXT, NUMBER]}, {"anyOf": [TEXT, NUMBER, {"type": "null"}]}),
]  # fmt: skip
BROKEN: list[tuple[str, Any, Any, str, str]] = [
    ("more required", obj(a=TEXT), obj(("a",), a=TEXT), "required", "REQUIRED"),
    ("a narrower type", obj(a=NUMBER), obj(a=INTEGER), "properties.a.type", "TYPE"),
    ("another type", obj(a=TEXT), obj(a=NUMBER), "properties.a.type", "TYPE"),
    ("a type at all", obj(a=ANY), obj(a=TEXT), "properties.a.type", "TYPE"),
    ("nullable no more", obj(a=NULLABLE), obj(a=TEXT), "properties.a.type", "TYPE"),
    ("a shorter enum", {"enum": ["x", "y"]}, {"enum": ["x"]}, "enum", "TYPE"),
    ("an enum at all", TEXT, {"enum": ["x"]}, "enum", "TYPE"),
    ("a constant", TEXT, {"const": "x"}, "const", "TYPE"),
    ("a higher minimum", {"type": "number", "minimum": 1}, {"type": "number", "minimum": 2}, "minimum", "BOUND"),
    ("a lower maximum", {"type": "number", "maximum": 9}, {"type": "number", "maximum": 2}, "maximum", "BOUND"),
    ("a bound at all", TEXT, {**TEXT, "maxLength": 3}, "maxLength", "BOUND"),
    ("a pattern", TEXT, {**TEXT, "pattern": "^a"}, "pattern", "PATTERN"),
    ("unique items", {"type": "array"}, {"type": "array", "uniqueItems": True}, "uniqueItems", "BOUND"),
    ("multiples", NUMBER, {**NUMBER, "multipleOf": 2}, "multipleOf", "BOUND"),
    ("closed", obj(a=TEXT), {**obj(a=TEXT), "additionalProperties": False}, "additionalProperties", "CLOSED"),
    ("removed from a closed one", {**obj(a=TEXT, b=TEXT), "additionalProperties": False},
     {**obj(a=TEXT), "additionalProperties": False}, "additionalProperties", "CLOSED"),
    ("narrower items", {"type": "array", "items": NUMBER}, {"type": "array", "items": INTEGER}, "items.type", "TYPE"),
    ("deeper", obj(a=obj(b=obj(c=TEXT))), obj(a=obj(b=obj(c=NUMBER))), "properties.a.properties.b.properties.c.type",
     "TYPE"),
    ("a stricter tree", TREE, STRICT_TREE, "required", "REQUIRED"),
    ("not", TEXT, {**TEXT, "not": {"const": "x"}}, "not", "COMBINED"),
    ("one of others", {"oneOf": [TEXT]}, {"oneOf": [TEXT, {"const": "x"}]}, "oneOf", "COMBINED"),
    ("a smaller union", {"anyOf": [TEXT, NUMBER]}, {"anyOf": [TEXT, {"type": "null"}]}, "anyOf", "COMBINED"),
    ("false", obj(a=TEXT), obj(a=False), "properties.a", "CLOSED"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new"), [case[1:] for case in FINE], ids=[case[0] for case in FINE])
def test_what_takes_all_that_was_valid_is_compatible(old: Any, new: Any) -> None:
    assert breaks(json.dumps(old), json.dumps(new)) == []


@pytest.mark.parametrize(
    ("old", "new", "path", "kind"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN]
)
def test_what_refuses_something_that_was_valid_is_a_break_with_its_place(
    old: Any, new: Any, path: str, kind: str
) -> None:
    found = breaks(json.dumps(old), json.dumps(new))
    assert (path, kind) in [(each.path, each.kind) for each in found]
    assert all(each.message for each in found)


def test_no_schema_takes_anything() -> None:
    assert breaks("", "") == []
    assert breaks(json.dumps(TEXT), "") == []
    assert breaks("", json.dumps(TEXT)) != []


def test_what_cannot_be_followed_is_said() -> None:
    """Bounded: schemas that refer to themselves or elsewhere end."""
    loop = {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}
    for new in (loop, {"$ref": "https://example.com/x"}, {"$ref": "#/nowhere"}):
        with pytest.raises(TooInvolved):
            breaks(json.dumps(TEXT), json.dumps(new))
