"""Agents that the servers call themselves: each test with two servers, and an agent in the test's own process.

Those by A2A are built with the official SDK's server.
"""

import asyncio
from typing import Any

import pytest
from a2a.helpers.proto_helpers import new_data_part, new_text_part
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from tests.engine.database import Database
from tests.engine.servers import Start, eventually, killed
from tests.engine.test_traces import CALL
from tests.engine.world import ROOT, check_all, kinds_of, order, payload_of, register
from tests.engine.world import agent as agent_of
from tests.remote_agents import NETWORKS, Behaviour, Turn, a2a_agent, http_agent

from millstream.application.paging import PageRequest
from millstream.application.tracing import CALL_TRACE
from millstream.application.views.artifacts import SyncResult
from millstream.application.views.tasks import TaskQuery
from millstream.domain.agents import AgentSpec
from millstream.domain.retry import SECOND_US, RetryPolicy, Timeouts
from millstream.domain.runs import AttemptStatus, TaskStatus
from millstream.domain.tracing import below
from millstream.wiring import Service

TYPES = ("Order", "Payment", "Receipt")
ONCE = RetryPolicy(max_attempts=1)


def called(url: str, **fields: Any) -> AgentSpec:
    """An agent that servers call, which makes Payments of Orders."""
    given = {"name": "payments", "consumes": "Order", "publishes": "Payment", "protocol": "A2A"} | fields
    return agent_of(**given, url=url)


async def cascade(service: Service, number: int | str = 7) -> SyncResult:
    """Publish an Order and wait for what follows."""
    return await service.artifacts.publish_sync(ROOT, order(number), None, 20.0)


async def pay(turn: Turn) -> None:
    """Make a Payment of the Order, as a task."""
    await turn.start()
    await turn.make({"paid": True, **turn.data[0]})
    await turn.updater.complete()


async def hang(turn: Turn) -> None:
    """Begin a task and never end it."""
    await turn.start()
    await turn.updater.start_work()
    await asyncio.Event().wait()


@pytest.mark.parametrize("streaming", [True, False], ids=["streams", "is looked at"])
@pytest.mark.parametrize(("binding", "version"), [("JSONRPC", "1.0"), ("HTTP+JSON", "1.0"), ("JSONRPC", "0.3")])
async def test_what_an_agent_makes_is_published(start: Start, streaming: bool, binding: str, version: str) -> None:
    """WM-1: an artifact, an answer, an artifact; whichever server is asked, by each binding and version."""
    here, there = await start(agent_networks=NETWORKS)
    async with a2a_agent(pay, streaming=streaming, binding=binding, version=version) as remote:
        await register(here, TYPES, called(remote.url))
        result = await cascade(there)
    assert result.completed
    assert result.failures == []
    assert [each.type for each in result.artifacts] == ["Order", "Payment"]
    assert payload_of(result.artifacts[1]) == {"paid": True, "order_id": "7"}
    assert result.artifacts[1].produced_by == "payments"
    assert [turn.data for turn in remote.turns] == [[{"order_id": "7"}]]


async def test_an_agent_is_told_what_the_task_is(start: Start) -> None:
    """WM-1: the token is the task's own, so it is the same for all attempts; the message's id is another for each."""
    here, _ = await start(agent_networks=NETWORKS)

    async def second_time(turn: Turn) -> None:
        if turn.about["attempt"] == 1:
            await turn.start()
            await turn.updater.failed(turn.updater.new_agent_message([new_text_part("no paper")]))
        else:
            await pay(turn)

    async with a2a_agent(second_time) as remote:
        await register(here, TYPES, called(remote.url))
        result = await cascade(here)
    first, second = remote.turns
    (task,) = (await tasks_of(here, result.correlation_id)).values()
    assert first.about == {
        "agent": "payments",
        "task_id": task.id,
        "attempt": 1,
        "idempotency_token": task.id,
        "correlation_id": result.correlation_id,
    }
    assert second.about == first.about | {"attempt": 2}
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"] == task.id
    assert first.message.message_id != second.message.message_id
    assert [each.type for each in result.artifacts] == ["Order", "Payment"]


async def test_an_agent_is_told_the_trace(start: Start) -> None:
    """The header of W3C: each attempt has a place of its own in it; without a trace there is none."""
    here, there = await start(agent_networks=NETWORKS)
    async with a2a_agent(pay, streaming=False) as remote:
        await register(here, TYPES, called(remote.url))
        token = CALL_TRACE.set(CALL)
        result = await cascade(there)
        CALL_TRACE.reset(token)
        await cascade(there)
    (task,) = (await tasks_of(here, result.correlation_id)).values()
    traced, plain = (turn.headers for turn in remote.turns)
    assert traced["traceparent"] == below(task.trace, task.id, 1)
    assert task.trace == below(CALL, result.correlation_id)
    assert "traceparent" not in plain


async def tasks_of(service: Service, run_id: str) -> dict[str, Any]:
    """The tasks of a run by agent."""
    page = await service.tasks.list(ROOT, TaskQuery(run_id=run_id), PageRequest())
    return {task.agent: task for task in page.items}


async def attempts_of(service: Service, task_id: str) -> list[tuple[AttemptStatus, str]]:
    """How the attempts at a task ended."""
    found, _ = await service.tasks.attempts(ROOT, task_id, 0, 100)
    return [(each.status, each.error_code) for each in found]


async def ended(service: Service, run_id: str) -> None:
    """Return when a run has ended."""

    async def has_ended() -> bool:
        return (await service.runs.get(ROOT, run_id)).finished_us > 0

    await eventually(has_ended, "the end of the run")


async def test_an_agent_that_knows_its_callers_is_called_with_credentials(start: Start) -> None:
    """WM-9: by the server's settings, with the card as with each message."""
    async with a2a_agent(pay, streaming=False) as remote:
        credentials = [{"tenant": ROOT.tenant, "origin": remote.url, "value": "Bearer secret"}]
        here, _ = await start(agent_networks=NETWORKS, agent_credentials=credentials)
        await register(here, TYPES, called(remote.url))
        assert (await cascade(here)).failures == []
    assert remote.turns[0].headers["authorization"] == "Bearer secret"
    assert remote.authorized == {"GET /.well-known/agent-card.json": "Bearer secret", "POST /rpc": "Bearer secret"}


async def say(turn: Turn) -> None:
    """Answer at once, with a message."""
    await turn.say(new_data_part({"said": 1}))


async def say_text(turn: Turn) -> None:
    """Answer at once, with two texts."""
    await turn.say(new_text_part("one"), new_text_part("two"))


async def end_with_words(turn: Turn) -> None:
    """End the task with a message in place of an artifact."""
    await turn.start()
    await turn.updater.complete(turn.updater.new_agent_message([new_text_part("done")]))


async def write_in_pieces(turn: Turn) -> None:
    """Write a text piece by piece."""
    await turn.start()
    for number, piece in enumerate(("one ", "and ", "two")):
        await turn.updater.add_artifact([new_text_part(piece)], artifact_id="text", append=number > 0)
    await turn.updater.complete()


@pytest.mark.parametrize(
    ("behave", "payload"),
    [
        (say, {"said": 1}),
        (say_text, {"text": "one\ntwo"}),
        (end_with_words, {"text": "done"}),
        (write_in_pieces, {"text": "one and two"}),
    ],
)
async def test_an_answer_may_have_many_forms(start: Start, behave: Behaviour, payload: dict[str, Any]) -> None:
    """WM-1: a message, a task's last words, a text in pieces."""
    here, _ = await start(agent_networks=NETWORKS)
    async with a2a_agent(behave) as remote:
        await register(here, TYPES, called(remote.url))
        result = await cascade(here)
    assert [payload_of(each) for each in result.artifacts[1:]] == [payload]


async def test_a_stream_that_becomes_too_long_is_looked_at_instead(start: Start) -> None:
    """WM-1: what an agent says on its way is no answer; that is bounded by agent_answer_bytes alone."""
    here, _ = await start(agent_networks=NETWORKS, agent_answer_bytes=8192)

    async def chatter(turn: Turn) -> None:
        await turn.start()
        for _ in range(20):
            await turn.updater.start_work(turn.updater.new_agent_message([new_text_part("word " * 200)]))
        await turn.make({"paid": True})
        await turn.updater.complete()

    async with a2a_agent(chatter) as remote:
        await register(here, TYPES, called(remote.url))
        result = await cascade(here)
    assert [payload_of(each) for each in result.artifacts[1:]] == [{"paid": True}]
    assert len(remote.turns) == 1


async def test_an_agent_that_takes_no_json_is_given_text(start: Start) -> None:
    """WM-1: by its card's input modes."""
    here, _ = await start(agent_networks=NETWORKS)
    async with a2a_agent(say, modes=("text/plain",)) as remote:
        await register(here, TYPES, called(remote.url))
        await cascade(here)
    (part,) = remote.turns[0].message.parts
    assert part.text == '{"order_id": "7"}'


async def test_the_types_of_artifacts_are_told_by_metadata_or_name(start: Start) -> None:
    """WM-1: an agent with several outputs says which; where it does not, the task fails finally."""
    here, _ = await start(agent_networks=NETWORKS)

    async def several(turn: Turn) -> None:
        await turn.start()
        await turn.make({"n": 1}, name="Receipt")
        await turn.make({"n": 2}, type="Payment")
        if turn.data[0]["order_id"] == "bad":
            await turn.make({"n": 3}, name="Riddle")
        await turn.updater.complete()

    async with a2a_agent(several) as remote:
        await register(here, TYPES, called(remote.url, outputs=("Payment", "Receipt")))
        result = await cascade(here)
        assert [(each.type, payload_of(each)) for each in result.artifacts[1:]] == [
            ("Receipt", {"n": 1}),
            ("Payment", {"n": 2}),
        ]
        refused = await cascade(here, "bad")
    (failure,) = refused.failures
    assert (failure.code, failure.attempts) == ("INVALID_OUTPUT", 1)
    assert "'Riddle' does not say which of Payment, Receipt" in failure.message


@pytest.mark.parametrize("leads", ["elsewhere", "inside"])
async def test_a_card_leads_nowhere_that_may_not_be_called(start: Start, leads: str) -> None:
    """WM-1: neither by a redirect, nor to an address that is not allowed."""
    here, _ = await start(agent_networks=["127.0.0.1/32"])

    async def card(request: Request) -> Response:
        if leads == "elsewhere":
            return Response(status_code=307, headers={"location": "/card"})
        url = {"url": "http://127.0.0.2:9/rpc", "protocolBinding": "JSONRPC", "protocolVersion": "1.0"}
        return JSONResponse({"name": "a", "version": "1", "supportedInterfaces": [url], "capabilities": {}})

    async with http_agent(card, "/.well-known/agent-card.json") as url:
        base = url.removesuffix("/.well-known/agent-card.json")
        await register(here, TYPES, called(base, retry=RetryPolicy(initial_us=0, jitter=0.0, max_attempts=2)))
        (failure,) = (await cascade(here)).failures
    codes = {"elsewhere": "AGENT_REFUSED", "inside": "AGENT_ADDRESS_REFUSED"}
    assert (failure.code, failure.attempts) == (codes[leads], 1)
    said = {"elsewhere": "redirects are not followed", "inside": "leads to 127.0.0.2, which is not public"}
    assert said[leads] in failure.message


async def fail(turn: Turn) -> None:
    """Fail as a task."""
    await turn.start()
    await turn.updater.failed(turn.updater.new_agent_message([new_text_part("out of paper")]))


async def fail_finally(turn: Turn) -> None:
    """Fail with a code of its own, which is final."""
    await turn.start()
    about = {"code": "DECLINED", "retryable": False}
    await turn.updater.failed(turn.updater.new_agent_message([new_text_part("no money")], about))


async def reject(turn: Turn) -> None:
    """Take no such task."""
    await turn.start()
    await turn.updater.reject(turn.updater.new_agent_message([new_text_part("not mine")]))


async def ask(turn: Turn) -> None:
    """Ask for more."""
    await turn.start()
    await turn.updater.requires_input(turn.updater.new_agent_message([new_text_part("which colour?")]))


async def ask_who(turn: Turn) -> None:
    """Ask for credentials."""
    await turn.start()
    await turn.updater.requires_auth()


async def break_down(turn: Turn) -> None:
    """Fail by a fault."""
    raise RuntimeError("a fault of the agent")


@pytest.mark.parametrize("streaming", [True, False], ids=["streams", "is looked at"])
@pytest.mark.parametrize(
    ("behave", "code", "message", "attempts"),
    [
        (fail, "AGENT_FAILED", "the agent failed: out of paper", 2),
        (fail_finally, "DECLINED", "the agent failed: no money", 1),
        (reject, "AGENT_REJECTED", "the agent rejected the task: not mine", 1),
        (ask, "AGENT_INPUT_REQUIRED", "the agent asks for input, which none gives: which colour?", 1),
        (ask_who, "AGENT_AUTH_REQUIRED", "the agent asks for credentials", 1),
        (break_down, "AGENT_ERROR", "", 2),
    ],
)
async def test_a_failure_is_recorded_with_its_cause(
    start: Start, streaming: bool, behave: Behaviour, code: str, message: str, attempts: int
) -> None:
    """WM-1: what cannot help to try again is final, all else goes by the agent's policy."""
    here, _ = await start(agent_networks=NETWORKS)
    async with a2a_agent(behave, streaming=streaming) as remote:
        await register(here, TYPES, called(remote.url, retry=RetryPolicy(initial_us=0, jitter=0.0, max_attempts=2)))
        (failure,) = (await cascade(here)).failures
    assert (failure.code, failure.attempts) == (code, attempts)
    assert message in failure.message
    assert len(remote.turns) == attempts


async def test_who_asks_for_input_is_told_that_nobody_waits(start: Start) -> None:
    """WM-1: its task is cancelled there."""
    here, _ = await start(agent_networks=NETWORKS)
    async with a2a_agent(ask) as remote:
        await register(here, TYPES, called(remote.url))
        await cascade(here)
        assert await remote.cancelled.get() == remote.turns[0].updater.task_id


async def test_an_agent_that_hangs_times_out(start: Start, database: Database) -> None:
    """WM-1, FV-19: by its own start_to_close; it is told, and the next attempt begins."""
    here, _ = await start(agent_networks=NETWORKS)

    async def hang_once(turn: Turn) -> None:
        await (hang(turn) if turn.about["attempt"] == 1 else pay(turn))

    async with a2a_agent(hang_once) as remote:
        timeouts = Timeouts(start_to_close_us=SECOND_US // 2)
        await register(here, TYPES, called(remote.url, timeouts=timeouts))
        result = await cascade(here)
        assert await remote.cancelled.get() == remote.turns[0].updater.task_id
    assert [each.type for each in result.artifacts] == ["Order", "Payment"]
    (task,) = (await tasks_of(here, result.correlation_id)).values()
    assert await attempts_of(here, task.id) == [
        (AttemptStatus.TIMED_OUT, "START_TO_CLOSE_TIMEOUT"),
        (AttemptStatus.COMPLETED, ""),
    ]
    await check_all(database)


@pytest.mark.parametrize("streaming", [True, False], ids=["streams", "is looked at"])
async def test_a_cancelled_run_cancels_the_agents_task(start: Start, streaming: bool) -> None:
    """WM-4: the executor is told, whichever server has the call."""
    here, there = await start(agent_networks=NETWORKS)
    async with a2a_agent(hang, streaming=streaming) as remote:
        await register(here, TYPES, called(remote.url))
        run_id = (await here.artifacts.publish(ROOT, order(), None)).correlation_id
        turn = await remote.came.get()
        waiting = asyncio.create_task(there.runs.cancel(ROOT, run_id, "enough", None))
        assert await remote.cancelled.get() == turn.updater.task_id
        await waiting
        await ended(here, run_id)
    (task,) = (await tasks_of(here, run_id)).values()
    assert task.status is TaskStatus.CANCELLED
    assert "RUN_CANCELLED" in await kinds_of(here, run_id)


async def test_a_killed_servers_call_goes_on_at_another(start: Start) -> None:
    """FV-19: at least once, with the same token, by which the agent can tell that it had it before."""
    here, there = await start(agent_networks=NETWORKS, lease_s=1.0)

    async def hang_once(turn: Turn) -> None:
        await (hang(turn) if turn.about["attempt"] == 1 else pay(turn))

    async with a2a_agent(hang_once) as remote:
        await register(here, TYPES, called(remote.url))
        run_id = (await here.artifacts.publish(ROOT, order(), None)).correlation_id
        first = await remote.came.get()
        (task,) = (await tasks_of(here, run_id)).values()
        holder, other = (here, there) if holds(here, task.id) else (there, here)
        assert holds(holder, task.id)
        await killed(holder)
        second = await remote.came.get()
        assert second.about == first.about | {"attempt": 2}
        await ended(other, run_id)
    assert (await attempts_of(other, task.id))[-1] == (AttemptStatus.COMPLETED, "")


def holds(service: Service, task_id: str) -> bool:
    """Whether a server has the call."""
    return task_id in service.engine.dispatcher.renewable()
