"""Agents that the servers call themselves, over REST: two servers, one Envoy, and an agent built with the SDK."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.e2e.stack import Process, Stack, running_stack
from tests.remote_agents import Turn, a2a_agent

EXAMPLE = Path(__file__).parents[2] / "examples" / "summaries_a2a.py"
AGENT: dict[str, Any] = {
    "name": "greeter",
    "protocol": "a2a",
    "subscriptions": [{"types": ["Note"]}],
    "outputs": ["Greeting"],
}


async def greet(turn: Turn) -> None:
    """Make a Greeting of the Note."""
    await turn.start()
    await turn.make({"text": f"Hello, {turn.data[0]['name']}!"})
    await turn.updater.complete()


async def test_an_artifact_goes_to_an_a2a_agent_and_its_answer_is_an_artifact(own: httpx.AsyncClient) -> None:
    """WM-1: registered through one door, called by whichever server has the task, seen in every answer."""
    await own.post("/api/v1/artifact-types", json={"name": "Greeting"})
    async with a2a_agent(greet) as remote:
        made = await own.post("/api/v1/agents", json=AGENT | {"url": remote.url})
        assert made.status_code == 201, made.text
        shown = made.json()
        assert (shown["protocol"], shown["url"], shown["status"]) == ("A2A", remote.url, "ONLINE")
        (listed,) = (await own.get("/api/v1/agents")).json()["items"]
        assert (listed["protocol"], listed["url"]) == ("A2A", remote.url)
        for number in range(6):
            body = {"type": "Note", "payload": {"name": f"Ada {number}"}}
            answer = (await own.post("/api/v1/artifacts/sync", json=body)).json()
            assert (answer["completed"], answer["failures"]) == (True, [])
            note, greeting = answer["artifacts"]
            assert greeting["payload"] == {"text": f"Hello, Ada {number}!"}
            assert (greeting["produced_by"], greeting["type"]) == ("greeter", "Greeting")
            about = remote.turns[-1].about
            assert about["correlation_id"] == answer["correlation_id"]
            assert remote.turns[-1].message.parts[0].metadata["artifact_id"] == note["id"]
        inputs = [{"type": "Note", "payload": {"name": "Eve"}}]
        run = await own.post("/api/v1/agents/greeter/run", json={"inputs": inputs})
        assert [each["payload"] for each in run.json()["artifacts"]] == [{"text": "Hello, Eve!"}]


async def test_the_call_of_a_killed_server_is_made_again_by_another() -> None:
    """FV-19: kill -9 in the middle of a call; the agent is called again with the same token."""
    go = asyncio.Event()

    async def second_time(turn: Turn) -> None:
        if turn.about["attempt"] == 1:
            await turn.start()
            await go.wait()
        else:
            await greet(turn)

    settings = {"auth_mode": "developer", "lease_s": "2"}
    async with a2a_agent(second_time) as remote, running_stack(settings, servers=2) as stack:
        rest = await stack.rest()
        for name in ("Note", "Greeting"):
            await rest.post("/api/v1/artifact-types", json={"name": name})
        await rest.post("/api/v1/agents", json=AGENT | {"url": remote.url})
        body = {"type": "Note", "payload": {"name": "Ada"}}
        publishing = asyncio.create_task(rest.post("/api/v1/artifacts", json=body))
        first = (await remote.came.get()).about
        correlation_id = (await publishing).json()["correlation_id"]
        (task,) = (await rest.get(f"/api/v1/runs/{correlation_id}/tasks")).json()["items"]
        pid = int(task["worker"].rpartition("/")[2])
        (killed,) = [server for server in stack.servers if server.pid == pid]
        await killed.kill()
        second = (await remote.came.get()).about
        go.set()
        assert second == first | {"attempt": second["attempt"]}
        answer = await rest.get(f"/api/v1/correlations/{correlation_id}/status")
        while answer.json()["state"] == "active":
            answer = await rest.get(f"/api/v1/correlations/{correlation_id}/status")
        assert (answer.json()["state"], answer.json()["artifact_count"]) == ("completed", 2)


@pytest.mark.parametrize(
    ("fields", "field", "code"),
    [
        ({}, "url", "REQUIRED"),
        ({"url": "http://10.0.0.1/"}, "url", "INVALID"),
        ({"url": "gopher://example.com/"}, "url", "INVALID"),
        ({"url": "https://user:secret@example.com/"}, "url", "INVALID"),
        ({"protocol": "WORKER", "url": "https://example.com/"}, "url", "INVALID"),
        ({"protocol": "SOAP", "url": "https://example.com/"}, "protocol", "INVALID"),
    ],
)
async def test_how_an_agent_is_called_is_checked(
    own: httpx.AsyncClient, fields: dict[str, Any], field: str, code: str
) -> None:
    """WM-10: 422, with the field at fault."""
    refused = await own.post("/api/v1/agents", json=AGENT | {"outputs": []} | fields)
    assert refused.status_code == 422
    (detail,) = refused.json()["details"]
    assert (detail["field"], detail["code"]) == (field, code)
    assert "secret" not in refused.text


async def test_the_example_is_called(stack: Stack) -> None:
    """WM-1: as its first lines say; it registers itself, and rejects what it cannot do."""
    async with contextlib.AsyncExitStack() as stops:
        process = Process("summaries")
        stops.push_async_callback(process.kill)
        await process.start(sys.executable, str(EXAMPLE), MILLSTREAM_TARGET=stack.target)
        await process.line("is called for each Text")
        rest = await stack.rest()
        body = {"type": "Text", "payload": {"text": "Tea is late. It always is."}}
        answer = (await rest.post("/api/v1/artifacts/sync", json=body)).json()
        assert answer["artifacts"][1]["payload"] == {"summary": "Tea is late.", "words": 6}
        refused = (await rest.post("/api/v1/artifacts/sync", json=body | {"payload": {"text": " "}})).json()
        (failure,) = refused["failures"]
        assert (failure["code"], failure["attempts"]) == ("AGENT_REJECTED", 1)
        assert "there is nothing to summarize" in failure["message"]
        await rest.delete("/api/v1/agents/summaries")
