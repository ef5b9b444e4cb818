"""Workflow definitions through the proxy and two servers: created, checked, changed, listed, deleted."""

from __future__ import annotations

import asyncio
import itertools
import json
import uuid
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.e2e.answers import check_error, check_ok
from tests.e2e.stack import Stack

from millstream.sdk import Client, ConflictError, InvalidRequestError, NotFoundError

Http = httpx.AsyncClient
PATH = "/api/v1/workflows"
LISTED = {
    "id", "name", "description", "version", "status", "created_at", "created_by", "updated_at",
}  # fmt: skip


def task(name: str, *needs: str, **fields: Any) -> dict[str, Any]:
    """A step that is a task of its own name."""
    return {"id": name, "kind": "task", "task": name, "needs": [*needs], **fields}


def order(*steps: dict[str, Any], name: str = "order", **fields: Any) -> dict[str, Any]:
    """A definition."""
    return {"name": name, "steps": [*(steps or (task("pay"),))], **fields}


async def created(client: Http, definition: dict[str, Any]) -> dict[str, Any]:
    """A workflow that was just created."""
    made: dict[str, Any] = check_ok(await client.post(PATH, json={"definition": definition}), 201)
    return made


async def test_a_workflow_is_created_and_read(own: Http) -> None:
    """WM-2: its fields at the top, the definition as it was given, keys in their order; by id and by name."""
    steps = (task("pay", input={"z": 1, "a": "${input.amount}"}), task("ship", "pay", when="steps.pay.output.ok"))
    given = order(*steps, description="takes orders", input_schema={"type": "object", "required": ["amount"]})
    response = await own.post(PATH, json={"definition": given})
    made = check_ok(response, 201)
    assert set(made) == LISTED | {"definition", "warnings"}
    assert uuid.UUID(made["id"]).version == 7
    assert {name: made[name] for name in ("name", "description", "version", "status", "created_by")} == {
        "name": "order", "description": "takes orders", "version": 1, "status": "ACTIVE", "created_by": "developer",
    }  # fmt: skip
    assert json.dumps(made["definition"]) == json.dumps(given)
    assert [each["field"] for each in made.pop("warnings")] == ["definition.steps[0].task", "definition.steps[1].task"]
    for workflow_id in ("order", made["id"], made["id"].upper()):
        assert check_ok(await own.get(f"{PATH}/{workflow_id}")) == made
    check_error(await own.post(PATH, json={"definition": given}), 409, "CONFLICT")
    check_error(await own.get(f"{PATH}/none"), 404, "NOT_FOUND")


async def test_a_put_makes_the_next_version(own: Http) -> None:
    """WM-2: versions never change, and an equal definition makes none."""
    first = await created(own, order())
    changed = order(task("pay"), task("ship", "pay"), description="ships too")
    body = {"definition": changed, "expected_version": 1}
    second = check_ok(await own.put(f"{PATH}/order", json=body))
    assert (second["id"], second["version"], second["description"]) == (first["id"], 2, "ships too")
    assert second["updated_at"] > first["updated_at"] == first["created_at"]
    again = check_ok(await own.put(f"{PATH}/{first['id']}", json={"definition": changed}))
    assert (again["version"], again["updated_at"]) == (2, second["updated_at"])
    check_error(await own.put(f"{PATH}/order", json=body), 409, "CONFLICT")
    versions = check_ok(await own.get(f"{PATH}/order/versions"))
    assert [(each["version"], each["workflow_id"]) for each in versions["items"]] == [
        (2, first["id"]),
        (1, first["id"]),
    ]
    assert versions["pagination"]["total"] == 2
    found = check_ok(await own.get(f"{PATH}/order/versions/1"))
    assert found["definition"] == order()
    assert (found["name"], found["version"], found["created_by"]) == ("order", 1, "developer")
    check_error(await own.get(f"{PATH}/order/versions/3"), 404, "NOT_FOUND")
    check_error(await own.get(f"{PATH}/order/versions/0"), 422, "VALIDATION_ERROR", "version")
    check_error(await own.get(f"{PATH}/none/versions"), 404, "NOT_FOUND")
    renamed = {"definition": order(name="other")}
    check_error(await own.put(f"{PATH}/order", json=renamed), 422, "VALIDATION_ERROR", "definition.name")


async def test_a_deleted_workflow_is_still_to_be_read(own: Http) -> None:
    """WM-2: soft delete."""
    first = await created(own, order())
    response = await own.delete(f"{PATH}/order")
    assert (response.status_code, response.content) == (204, b"")
    check_error(await own.delete(f"{PATH}/order"), 404, "NOT_FOUND")
    check_error(await own.put(f"{PATH}/order", json={"definition": order()}), 404, "NOT_FOUND")
    found = check_ok(await own.get(f"{PATH}/{first['id']}"))
    assert (found["status"], found["definition"]) == ("DELETED", order())
    assert found["deleted_at"] == found["updated_at"]
    assert check_ok(await own.get(PATH))["items"] == []
    (listed,) = check_ok(await own.get(PATH, params={"status": "deleted"}))["items"]
    assert set(listed) == LISTED | {"deleted_at"}
    again = await created(own, order(task("other")))
    assert again["id"] != first["id"]
    assert again["version"] == 2
    check_error(await own.get(f"{PATH}/{first['id']}"), 404, "NOT_FOUND")


async def test_workflows_are_filtered_and_sorted(own: Http) -> None:
    """WM-11: name, created_at, updated_at, both ways; page by page, by number and by token."""
    for name in ("b", "d", "a", "c"):
        await created(own, order(name=name))
    check_ok(await own.put(f"{PATH}/b", json={"definition": order(task("x"), name="b")}))
    orders = {"": "abcd", "name": "abcd", "created_at": "bdac", "updated_at": "dacb"}
    for sort, names in orders.items():
        for prefix, expected in (("", names), ("-", names[::-1])):
            params: dict[str, str | int] = {"sort": f"{prefix if sort else ''}{sort}", "page_size": 3}
            expected = expected if sort else names
            pages = []
            for page in (1, 2):
                body = check_ok(await own.get(PATH, params={**params, "page": page}))
                pages.append([each["name"] for each in body["items"]])
                total = {name: body["pagination"][name] for name in ("total", "page", "page_size", "total_pages")}
                assert total == {"total": 4, "page": page, "page_size": 3, "total_pages": 2}
            assert [len(page) for page in pages] == [3, 1]
            assert "".join(itertools.chain(*pages)) == expected
            first = check_ok(await own.get(PATH, params=params))
            token = first["pagination"]["next_page_token"]
            rest = check_ok(await own.get(PATH, params={**params, "page_token": token}))["items"]
            assert "".join(each["name"] for each in [*first["items"], *rest]) == expected
    (found,) = check_ok(await own.get(PATH, params={"name": "c", "status": "ACTIVE"}))["items"]
    assert (found["name"], set(found)) == ("c", LISTED)
    check_error(await own.get(PATH, params={"sort": "version"}), 422, "VALIDATION_ERROR", "sort")
    check_error(await own.get(PATH, params={"status": "AWAY"}), 422, "VALIDATION_ERROR", "status")


FAULTY = order(
    task("a", "c"), task("a"), task("c", "a", "x"), {"id": "d", "kind": "agent", "agent": "nobody"},
    {"id": "e", "kind": "publish", "type": "Note"}, {"id": "f", "kind": "publish", "type": "Nothing"},
    {"id": "g", "kind": "workflow", "workflow": "nowhere"}, {"id": "h", "kind": "sleep", "seconds": "1 +"},
    {"id": "i", "kind": "task", "task": "t", "input": "${steps.e.output}"}, {"id": "j", "kind": "nap"},
    input_schema={"type": "objekt"}, outputs=1,
)  # fmt: skip
FAULTS = [
    "outputs", "steps[9].kind", "steps[1].id", "steps[2].needs[1]", "steps[0].needs", "steps[7].seconds",
    "steps[8].input", "input_schema", "steps[3].agent", "steps[5].type", "steps[6].workflow",
]  # fmt: skip


async def test_every_fault_is_named_by_its_field(own: Http) -> None:
    """WM-2, WM-10: all at once, in the one error shape; nothing is saved."""
    body = check_ok(await own.post(f"{PATH}:validate", json={"definition": FAULTY}))
    assert sorted(each["field"] for each in body["faults"]) == sorted(f"definition.{field}" for field in FAULTS)
    assert "valid" not in body or body["valid"] is False
    refused = (await own.post(PATH, json={"definition": FAULTY})).json()
    check_error(
        await own.post(PATH, json={"definition": FAULTY}), 422, "VALIDATION_ERROR",
        *(each["field"] for each in refused["details"]),
    )  # fmt: skip
    assert sorted(each["field"] for each in refused["details"]) == sorted(each["field"] for each in body["faults"])
    assert "11 faults in all" in refused["message"]
    cycle = next(each for each in body["faults"] if each["code"] == "CYCLE")
    assert cycle["message"] in ("is a cycle: a -> c -> a", "is a cycle: c -> a -> c")
    assert check_ok(await own.get(PATH))["items"] == []


async def test_a_fine_definition_is_valid_and_not_saved(own: Http) -> None:
    body = check_ok(await own.post(f"{PATH}:validate", json={"definition": order(task("pay", input="a ${input}"))}))
    assert body["valid"] is True
    assert body["faults"] == []
    assert [each["code"] for each in body["warnings"]] == ["NOT_EVALUATED", "NOT_SERVED"]
    check_error(await own.get(f"{PATH}/order"), 404, "NOT_FOUND")
    check_error(await own.post(f"{PATH}:validate", json={}), 422, "VALIDATION_ERROR", "definition")
    check_error(await own.post(f"{PATH}:validate", json={"definition": []}), 422, "VALIDATION_ERROR", "definition")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "definition"),
        ({"definition": 3}, "definition"),
        ({"definition": order(), "name": "x"}, "name"),
        ({"definition": {}}, "definition.name"),
        ({"definition": order(task("a", input="x" * 600_000))}, "definition"),
        ({"definition": order(task("a", priority=1.5))}, "definition.steps[0].priority"),
    ],
    ids=["nothing", "number", "unknown field", "empty", "too large", "no whole number"],
)
async def test_what_is_no_definition_is_refused(own: Http, body: dict[str, Any], field: str) -> None:
    """FL-10: by its field, never as a fault of the server."""
    refused = await own.post(PATH, json=body)
    fields = [each["field"] for each in refused.json()["details"]]
    check_error(refused, 422, "VALIDATION_ERROR", *fields)
    assert fields[0] == field


@pytest.mark.parametrize(
    ("definition", "field"),
    [
        ('{"name":"a","name":"b"}', "definition.name"),
        ('{"name":"a","timeout":9007199254740993}', "definition.timeout"),
        ('{"input_schema":' + '{"not":' * 31 + "{}" + "}" * 32, "definition.input_schema" + ".not" * 29),
    ],
    ids=["twice", "not exact", "too deep"],
)
async def test_json_that_is_ambiguous_is_refused(own: Http, definition: str, field: str) -> None:
    """FL-10: within the definition, too."""
    headers = {"content-type": "application/json"}
    for path in (PATH, f"{PATH}:validate"):
        refused = await own.post(path, content=f'{{"definition":{definition}}}', headers=headers)
        check_error(refused, 422, "VALIDATION_ERROR", field)


async def test_the_schema_of_definitions_is_a_document(own: Http) -> None:
    """For editors: what the server takes fits it."""
    response = await own.get("/api/v1/workflow-schema")
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/schema+json"
    schema = response.json()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert "steps" in schema["properties"]


async def test_a_key_creates_once_whatever_follows(own: Http) -> None:
    """FL-8: over two servers, even after it was deleted."""
    key = {"x-idempotency-key": "k"}
    answers = await asyncio.gather(*(own.post(PATH, json={"definition": order()}, headers=key) for _ in range(8)))
    ids = {check_ok(answer, 201)["id"] for answer in answers}
    assert len(ids) == 1
    assert (await own.delete(f"{PATH}/order", headers={"x-idempotency-key": "d"})).status_code == 204
    assert (await own.delete(f"{PATH}/order", headers={"x-idempotency-key": "d"})).status_code == 204
    replay = await own.post(PATH, json={"definition": order()}, headers=key)
    assert check_ok(replay, 201)["status"] == "DELETED"
    assert replay.headers["idempotency-replayed"] == "true"
    other = await own.post(PATH, json={"definition": order(task("x"))}, headers=key)
    check_error(other, 409, "IDEMPOTENCY_CONFLICT")


async def test_wrong_methods_say_which_there_are(own: Http) -> None:
    """FL-10"""
    response = await own.patch(f"{PATH}/order", json={})
    check_error(response, 405, "METHOD_NOT_ALLOWED")
    assert response.headers["allow"] == "DELETE, GET, HEAD, OPTIONS, PUT"
    response = await own.get(f"{PATH}:validate")
    check_error(response, 405, "METHOD_NOT_ALLOWED")


async def test_the_client_defines_workflows(stack: Stack) -> None:
    """FV-14: each method of it, through the proxy."""
    name = f"sdk-{uuid.uuid4().hex[:8]}"
    async with Client(stack.target) as client:
        with pytest.raises(InvalidRequestError) as refused:
            await client.workflows.apply(order(name=name, nothing=1))
        assert [each.field for each in refused.value.details] == ["definition.nothing"]
        made = await client.workflows.apply(order(name=name))
        assert (made.outcome, made.workflow.version, made.workflow.definition) == ("created", 1, order(name=name))
        assert (await client.workflows.apply(order(name=name))).outcome == "unchanged"
        changed = await client.workflows.apply(order(task("x"), name=name))
        assert (changed.outcome, changed.workflow.version) == ("updated", 2)
        with pytest.raises(ConflictError):
            await client.workflows.update(name, order(name=name), expected_version=1)
        with pytest.raises(ConflictError):
            await client.workflows.create(order(name=name))
        assert [each.version async for each in client.workflows.versions(name, page_size=1)] == [2, 1]
        assert (await client.workflows.version(name, 1)).definition == order(name=name)
        (listed,) = await client.workflows.list(name=name, sort="-created_at").all()
        assert (listed.id, listed.definition) == (made.workflow.id, None)
        assert (await client.workflows.validate(order(name=name))).valid
        assert (await client.workflows.schema())["title"] == "Document"
        await client.workflows.delete(made.workflow.id)
        assert (await client.workflows.get(name)).status == "DELETED"
        with pytest.raises(NotFoundError):
            await client.workflows.delete(name)
        again = await client.workflows.apply(order(name=name))
        assert (again.outcome, again.workflow.version) == ("created", 3)


async def test_the_commands_define_workflows(stack: Stack, tmp_path: Path) -> None:
    """FV-14: apply, validate, versions, diff, delete, by their output and exit codes."""
    name = f"cli-{uuid.uuid4().hex[:8]}"
    file = tmp_path / "order.yaml"

    async def run(*arguments: str) -> tuple[int, list[str]]:
        command = await stack.command("workflows", *arguments)
        code = await command.ended()
        return code, [line for line in command.lines if not line.startswith("warning: ")]

    file.write_text(f"name: {name}\nsteps:\n- {{id: pay, kind: task, task: pay, input: {{on: no}}}}\n")
    assert await run("validate", "-f", str(file)) == (0, [f"{name} is fine"])
    assert await run("apply", "-f", str(file)) == (0, [f"{name} is created as version 1"])
    assert await run("apply", "-f", str(file)) == (0, [f"{name} is unchanged at version 1"])
    file.write_text(file.read_text() + "- {id: rest, kind: sleep, seconds: 1, needs: [pay]}\n")
    assert await run("apply", "-f", str(file)) == (0, [f"{name} is changed to version 2"])
    code, lines = await run("diff", name, "1", "2")
    assert (code, lines[0]) == (0, "+ step rest")
    code, lines = await run("get", name, "--version", "1", "--yaml")
    assert (code, lines[0]) == (0, f"name: {name}")
    assert "    'on': 'no'" in lines
    file.write_text(f"name: {name}\nsteps:\n- {{id: a, kind: sleep, seconds: 1, needs: [a]}}\n")
    assert await run("validate", "-f", str(file)) == (
        1, [f"{name} has faults:", "  steps[0].needs: is a cycle: a -> a"],
    )  # fmt: skip
    code, lines = await run("apply", "-f", str(file))
    assert code == 1
    assert "  steps[0].needs: is a cycle: a -> a [CYCLE]" in lines
    assert await run("delete", name) == (0, [f"{name} is deleted"])
