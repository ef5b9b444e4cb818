"""Artifact types over REST: versions, compatibility, deprecation, and the schema as a document of its own."""

from __future__ import annotations

import json

import httpx
from tests.e2e.answers import check_error, check_ok

TYPES = "/api/v1/artifact-types"
Client = httpx.AsyncClient
FIRST = {"type": "object", "properties": {"a": {"type": "string"}}}
WIDER = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "integer"}}}
STRICTER = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


async def test_a_version_that_breaks_is_refused_with_each_place(own: Client) -> None:
    """FL-10: 422 names the path of each break in the schema; the rules of the type may let it pass."""
    check_ok(await own.post(TYPES, json={"name": "Memo", "schema": FIRST, "examples": [{"a": "x"}]}), 201)
    body = check_ok(await own.post(TYPES, json={"name": "Memo", "schema": WIDER}), 201)
    assert (body["version"], body["compatibility"], body["examples"]) == (2, "backward", [])
    refused = await own.post(TYPES, json={"name": "Memo", "schema": STRICTER})
    check_error(refused, 422, "VALIDATION_ERROR", "schema.required", "schema.properties.a.type")
    rules = {"compatibility": "rules", "allowed_changes": ["REQUIRED", "TYPE"]}
    assert check_ok(await own.post(TYPES, json={"name": "Memo", "schema": STRICTER, **rules}), 201)["version"] == 3
    refused = await own.post(TYPES, json={"name": "M", "allowed_changes": ["TYPE"]})
    check_error(refused, 422, "VALIDATION_ERROR", "allowed_changes")
    refused = await own.post(TYPES, json={"name": "M", "schema": FIRST, "examples": [{"a": 1}]})
    check_error(refused, 422, "VALIDATION_ERROR", "examples[0].a")


async def test_a_version_and_its_schema_have_paths_of_their_own(own: Client) -> None:
    """The schema is plain JSON Schema, of the latest version or the one asked for."""
    for schema in (FIRST, WIDER):
        check_ok(await own.post(TYPES, json={"name": "Memo", "schema": schema}), 201)
    assert check_ok(await own.get(f"{TYPES}/Memo/versions/1"))["schema"] == FIRST
    assert [item["version"] for item in check_ok(await own.get(f"{TYPES}/Memo/versions"))["items"]] == [2, 1]
    for path, schema in (("schema", WIDER), ("versions/1/schema", FIRST), ("versions/2/schema", WIDER)):
        response = await own.get(f"{TYPES}/Memo/{path}")
        assert (response.status_code, response.headers["content-type"]) == (200, "application/schema+json")
        assert response.json() == schema
    for path in ("Memo/versions/9", "Memo/versions/9/schema", "Nothing/schema"):
        check_error(await own.get(f"{TYPES}/{path}"), 404, "NOT_FOUND")


async def test_who_publishes_a_deprecated_type_is_told(own: Client) -> None:
    """It works; the answer and the header x-deprecated say what to use."""
    change = {"deprecated": True, "deprecation_message": "use Memo", "retention_days": 7}
    body = check_ok(await own.patch(f"{TYPES}/Note", json=change))
    assert {name: body[name] for name in change} == change
    for path in ("artifacts", "artifacts/sync"):
        response = await own.post(f"/api/v1/{path}", json={"type": "Note"})
        assert check_ok(response)["deprecation"] == response.headers["x-deprecated"] == "use Memo"
    assert check_ok(await own.patch(f"{TYPES}/Note", json={"description": "a note"}))["deprecated"] is True
    check_ok(await own.patch(f"{TYPES}/Note", json={"deprecated": False}))
    check_error(await own.patch(f"{TYPES}/Nothing", json={}), 404, "NOT_FOUND")
    refused = await own.patch(f"{TYPES}/Note", json={"compatibility": "sideways"})
    check_error(refused, 422, "VALIDATION_ERROR", "compatibility")


async def test_what_is_said_beside_the_same_schema_holds(own: Client) -> None:
    """POST changes what it names of the latest version, and makes none; PATCH changes examples too."""
    first = {"name": "Memo", "schema": FIRST, "description": "a memo", "examples": [{"a": "x"}]}
    check_ok(await own.post(TYPES, json=first), 201)
    body = check_ok(await own.post(TYPES, json={"name": "Memo", "schema": FIRST, "retention_days": 3}), 201)
    assert (body["version"], body["description"], body["retention_days"]) == (1, "a memo", 3)
    rules = {"compatibility": "rules", "allowed_changes": ["TYPE"], "examples": [{"a": "y"}]}
    body = check_ok(await own.post(TYPES, json={"name": "Memo", "schema": FIRST, **rules}), 201)
    assert {name: body[name] for name in rules} == rules
    assert check_ok(await own.get(f"{TYPES}/Memo")) == body
    changed = check_ok(await own.patch(f"{TYPES}/Memo", json={"examples": [{"a": "z"}, {}]}))
    assert (changed["version"], changed["examples"]) == (1, [{"a": "z"}, {}])
    refused = await own.patch(f"{TYPES}/Memo", json={"examples": [{"a": 1}]})
    check_error(refused, 422, "VALIDATION_ERROR", "examples[0].a")


async def test_a_type_s_options_that_would_have_no_effect_are_refused(own: Client) -> None:
    """FL-10: rules without changes; the type's own settings at a version that is not the latest."""
    for schema in (FIRST, WIDER):
        check_ok(await own.post(TYPES, json={"name": "Memo", "schema": schema}), 201)
    refused = await own.post(TYPES, json={"name": "Memo", "schema": WIDER, "compatibility": "rules"})
    check_error(refused, 422, "VALIDATION_ERROR", "allowed_changes")
    refused = await own.patch(f"{TYPES}/Memo", json={"compatibility": "rules"})
    check_error(refused, 422, "VALIDATION_ERROR", "allowed_changes")
    refused = await own.patch(f"{TYPES}/Memo", json={"version": 1, "retention_days": 3, "compatibility": "none"})
    check_error(refused, 422, "VALIDATION_ERROR", "retention_days", "compatibility")
    body = check_ok(await own.patch(f"{TYPES}/Memo", json={"version": 2, "retention_days": 3}))
    assert (body["version"], body["retention_days"]) == (2, 3)


async def test_a_schema_comes_back_as_it_was_given(own: Client) -> None:
    """The order of its keys, too."""
    properties = {"zeta": {"type": "string", "description": "z"}, "alpha": {"type": "number", "minimum": 0}}
    schema = {"type": "object", "required": ["zeta"], "properties": properties, "additionalProperties": True}
    text = json.dumps(schema, separators=(",", ":"))
    check_ok(await own.post(TYPES, json={"name": "Memo", "schema": schema}), 201)
    assert (await own.get(f"{TYPES}/Memo/schema")).text == text
    assert json.dumps(check_ok(await own.get(f"{TYPES}/Memo"))["schema"], separators=(",", ":")) == text
    again = dict(reversed(schema.items()))
    assert check_ok(await own.post(TYPES, json={"name": "Memo", "schema": again}), 201)["version"] == 1
