"""The documentation is executed: each example is sent to the running service, its answer held against the schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.documentation.calls import EXAMPLES, call, faults, named, operations
from tests.e2e.stack import Stack

FILES = sorted(EXAMPLES.glob("*.json"))
passed: set[str] = set()
"""Operations of which an example succeeded."""


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
async def test_the_service_answers_the_examples_as_documented(path: Path, client: httpx.AsyncClient) -> None:
    """WM-8, FV-8: status, media type and every field."""
    known: dict[str, Any] = {"tenant": "default"}
    wrong = []
    for number, step in enumerate(json.loads(path.read_text())["steps"], start=1):
        answer = await call(client, step, known)
        found = faults(named(step), answer.status, answer.media, answer.body)
        if answer.status != step["answer"]["status"]:
            found.append(f"the status is {answer.status}, not {step['answer']['status']}: {answer.body}")
        wrong += [f"{path.name}, step {number}, {named(step)}: {fault}" for fault in found]
        if not found and answer.status < 300:
            passed.add(named(step))
    assert not wrong, "\n".join(wrong)


@pytest.mark.usefixtures("service")
async def test_every_path_had_a_call_that_passed(request: pytest.FixtureRequest) -> None:
    """WM-8: what is documented and never called may be wrong."""
    ran = {item.name for item in request.session.items if item.path == request.path}
    if len(ran) < len(FILES) + 1:
        pytest.skip("only some of the examples were to be called")
    assert set(operations()) - passed == set()


async def test_the_document_is_the_same_at_both_paths(client: httpx.AsyncClient, service: Stack) -> None:
    """FV-8, WM-8: and it is the one that was checked."""
    one, other = await client.get("/openapi.json"), await client.get("/api/docs/openapi.json")
    assert one.status_code == other.status_code == 200
    assert one.json() == other.json() == json.loads((EXAMPLES.parents[1] / "docs" / "openapi.json").read_text())
    assert one.headers["content-type"] == "application/json"
