"""Agents that the servers call by plain HTTP: what they are sent, what their answers mean, where they may be."""

import asyncio
import socket
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from tests.engine.servers import Start
from tests.engine.test_called_agents import TYPES, attempts_of, called, cascade, ended, tasks_of
from tests.engine.test_traces import CALL
from tests.engine.world import ROOT, made, order, payload_of, principal, register
from tests.remote_agents import NETWORKS, http_agent

from millstream.application.tracing import CALL_TRACE
from millstream.domain.retry import RetryPolicy
from millstream.domain.runs import AttemptStatus, TaskStatus
from millstream.domain.tracing import below

TWICE = RetryPolicy(initial_us=0, jitter=0.0, max_attempts=2)


class Answers:
    """An agent that answers what the test says, and keeps what it was sent."""

    def __init__(self, *answers: Response) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self._answers = [*answers]

    async def __call__(self, request: Request) -> Response:
        self.bodies.append(await request.json())
        self.headers.append(dict(request.headers))
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


def paid(**fields: Any) -> Response:
    """A Payment."""
    return JSONResponse({"artifacts": [{"type": "Payment", "payload": {"paid": True}, **fields}]})


async def test_a_task_is_one_post_of_json(start: Start) -> None:
    """WM-1: with the artifacts; the token is the same for all attempts, in the body and in the header."""
    here, there = await start(agent_networks=NETWORKS)
    agent = Answers(JSONResponse({}, 503), paid(tags=["vip"], partition_key="p"))
    async with http_agent(agent, "/pay") as url:
        await register(here, TYPES, called(url, protocol="HTTP", retry=TWICE))
        result = await cascade(there)
    order_, payment = result.artifacts
    (task,) = (await tasks_of(here, result.correlation_id)).values()
    body = {
        "agent": "payments",
        "task_id": task.id,
        "attempt": 2,
        "idempotency_token": task.id,
        "correlation_id": result.correlation_id,
        "artifacts": [
            {
                "id": order_.id,
                "type": "Order",
                "produced_by": "external",
                "tags": [],
                "partition_key": "",
                "payload": {"order_id": "7"},
            }
        ],
        "input": None,
    }
    assert agent.bodies == [body | {"attempt": 1}, body]
    assert [each["idempotency-key"] for each in agent.headers] == [task.id, task.id]
    assert (payload_of(payment), payment.tags, payment.partition_key) == ({"paid": True}, ("vip",), "p")
    assert (payment.type, payment.produced_by) == ("Payment", "payments")


async def test_an_agent_is_told_the_trace(start: Start) -> None:
    """The header of W3C: each attempt has a place of its own in it; without a trace there is none."""
    here, there = await start(agent_networks=NETWORKS)
    agent = Answers(JSONResponse({}, 503), paid())
    async with http_agent(agent, "/pay") as url:
        await register(here, TYPES, called(url, protocol="HTTP", retry=TWICE))
        token = CALL_TRACE.set(CALL)
        result = await cascade(there)
        CALL_TRACE.reset(token)
        await cascade(there)
    (task,) = (await tasks_of(here, result.correlation_id)).values()
    assert task.trace == below(CALL, result.correlation_id)
    told = [each.get("traceparent") for each in agent.headers]
    assert told == [below(task.trace, task.id, 1), below(task.trace, task.id, 2), None]


async def test_credentials_go_to_their_tenants_agents_at_their_origin(start: Start) -> None:
    """WM-9: and to nobody else's, nor elsewhere."""
    agent, elsewhere = Answers(paid()), Answers(paid())
    async with http_agent(agent, "/pay") as url, http_agent(elsewhere) as other_url:
        origin = url.removesuffix("/pay")
        credentials = [
            {"tenant": "acme", "origin": origin, "value": "Bearer secret"},
            {"tenant": "acme", "origin": origin, "header": "x-api-key", "value": "more"},
        ]
        here, _ = await start(agent_networks=NETWORKS, agent_credentials=credentials)
        assert "secret" not in repr(here.calling._calls._caller.__dict__)
        both = called(url, protocol="HTTP"), called(other_url, name="other", protocol="HTTP")
        await register(here, TYPES, *both)
        await register(here, TYPES, called(url, protocol="HTTP"), tenant="umbrella")
        await cascade(here)
        await here.artifacts.publish_sync(principal(tenant="umbrella"), order(), None, 10.0)
    ours, theirs = agent.headers
    assert (ours["authorization"], ours["x-api-key"]) == ("Bearer secret", "more")
    assert "authorization" not in theirs
    assert "authorization" not in elsewhere.headers[0]


@pytest.mark.parametrize(
    ("answer", "code", "message", "attempts"),
    [
        (JSONResponse({"code": "DECLINED", "message": "no money", "retryable": False}, 422), "DECLINED", "no money", 1),
        (JSONResponse({"code": "BUSY", "retryable": True}, 400), "BUSY", "answered 400", 2),
        (PlainTextResponse("who are you?", 401), "AGENT_REFUSED", "answered 401: who are you?", 1),
        (PlainTextResponse("out of order", 500), "AGENT_ERROR", "answered 500: out of order", 2),
        (Response(status_code=307, headers={"location": "/"}), "AGENT_REFUSED", "redirects are not followed", 1),
        (PlainTextResponse("hello"), "AGENT_ANSWER_INVALID", "is no JSON", 1),
        (JSONResponse([1]), "AGENT_ANSWER_INVALID", "must be an object", 1),
        (JSONResponse({"artefacts": []}), "AGENT_ANSWER_INVALID", "there may be artifacts, output", 1),
        (JSONResponse({"artifacts": [{"payload": {}}]}), "AGENT_ANSWER_INVALID", "artifacts[0].type", 1),
        (paid(tags="vip"), "AGENT_ANSWER_INVALID", "artifacts[0].tags must be a list", 1),
        (paid(payload=[1]), "AGENT_ANSWER_INVALID", "artifacts[0].payload must be an object", 1),
        (paid(payload={"n": 2**53}), "INVALID_OUTPUT", "2^53", 1),
        (paid(type="Receipt"), "INVALID_OUTPUT", "publishes Payment, not Receipt", 1),
        (Response(b"{}", headers={"content-encoding": "gzip"}), "AGENT_ANSWER_INVALID", "compressed", 1),
    ],
)
async def test_what_is_no_good_answer_fails_with_its_cause(
    start: Start, answer: Response, code: str, message: str, attempts: int
) -> None:
    """WM-1: tried again where that may help, and not where it cannot."""
    here, _ = await start(agent_networks=NETWORKS)
    agent = Answers(answer)
    async with http_agent(agent) as url:
        await register(here, TYPES, called(url, protocol="HTTP", retry=TWICE))
        (failure,) = (await cascade(here)).failures
    assert (failure.code, failure.attempts) == (code, attempts)
    assert message in failure.message
    assert len(agent.bodies) == attempts


@pytest.mark.parametrize("announced", [True, False])
async def test_an_answer_that_is_too_large_is_not_read(start: Start, announced: bool) -> None:
    """WM-1: bounded by agent_answer_bytes, whether its length is told or not."""
    here, _ = await start(agent_networks=NETWORKS, agent_answer_bytes=2048)

    async def pieces() -> Any:
        for _ in range(100):
            yield b" " * 1024

    async def answer(request: Request) -> Response:
        return Response(b" " * 4096) if announced else StreamingResponse(pieces())

    async with http_agent(answer) as url:
        await register(here, TYPES, called(url, protocol="HTTP"))
        (failure,) = (await cascade(here)).failures
    assert (failure.code, failure.attempts) == ("AGENT_ANSWER_INVALID", 1)
    assert "more than 2,048 bytes" in failure.message


async def test_a_payload_over_the_limit_is_refused(start: Start) -> None:
    """FL-10: as a worker's would be."""
    here, _ = await start(agent_networks=NETWORKS, max_payload_bytes=1024, large_payload_bytes=1024)
    async with http_agent(Answers(paid(payload={"text": "a" * 2000}))) as url:
        await register(here, TYPES, called(url, protocol="HTTP"))
        (failure,) = (await cascade(here)).failures
    assert (failure.code, failure.attempts) == ("PAYLOAD_TOO_LARGE", 1)


async def test_a_payload_that_is_kept_outside_is_sent_along(start: Start) -> None:
    """FL-17: to the agent it makes no difference."""
    here, _ = await start(agent_networks=NETWORKS, large_payload_bytes=1024)
    agent = Answers(paid())
    async with http_agent(agent) as url:
        await register(here, TYPES, called(url, protocol="HTTP"))
        await here.artifacts.publish_sync(ROOT, made("Order", text="a" * 2000), None, 10.0)
    (given,) = agent.bodies[0]["artifacts"]
    assert given["payload"] == {"text": "a" * 2000}
    assert given["payload_ref"].startswith("sha256:")


async def test_nobody_at_the_address_is_tried_again(start: Start) -> None:
    """WM-1: by the agent's policy."""
    here, _ = await start(agent_networks=NETWORKS)
    async with http_agent(Answers(paid())) as url:
        gone = url
    await register(here, TYPES, called(gone, protocol="HTTP", retry=TWICE))
    (failure,) = (await cascade(here)).failures
    assert (failure.code, failure.attempts) == ("AGENT_UNREACHABLE", 2)


async def test_a_name_that_leads_inside_is_not_called(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """WM-1: the address that the name was resolved to is judged, and is the one that is called."""
    here, _ = await start(agent_networks=["192.0.2.0/24"])
    agent = Answers(paid())
    async with http_agent(agent) as url:
        port = int(url.rpartition(":")[2].strip("/"))
        leads = {"inside.example.com": "127.0.0.1"}
        before = socket.getaddrinfo

        def resolve(host: Any, *rest: Any, **fields: Any) -> Any:
            return before(leads.get(host, host), *rest, **fields)

        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        await register(here, TYPES, called(f"http://inside.example.com:{port}/", protocol="HTTP", retry=TWICE))
        (failure,) = (await cascade(here)).failures
    assert (failure.code, failure.attempts) == ("AGENT_ADDRESS_REFUSED", 1)
    assert "inside.example.com leads to an address that is not public" in failure.message
    assert "127.0.0.1" not in failure.message
    assert agent.bodies == []


async def test_a_cancelled_call_ends_its_connection(start: Start) -> None:
    """WM-4: which is all that HTTP can tell."""
    here, _ = await start(agent_networks=NETWORKS)
    came, gone = asyncio.Event(), asyncio.Event()

    async def answer(request: Request) -> Response:
        await request.body()
        came.set()
        assert (await request.receive())["type"] == "http.disconnect"
        gone.set()
        return Response()

    async with http_agent(answer) as url:
        await register(here, TYPES, called(url, protocol="HTTP"))
        run_id = (await here.artifacts.publish(ROOT, order(), None)).correlation_id
        await came.wait()
        await here.runs.cancel(ROOT, run_id, "enough", None)
        await gone.wait()
        await ended(here, run_id)
    (task,) = (await tasks_of(here, run_id)).values()
    assert task.status is TaskStatus.CANCELLED
    assert await attempts_of(here, task.id) == [(AttemptStatus.FAILED, "CANCELLED")]
