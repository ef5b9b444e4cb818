"""Agents for tests, served in the test's own process: by A2A with the official SDK's server, or by plain HTTP."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from a2a.helpers.proto_helpers import new_data_part, new_task_from_user_message
from a2a.server.agent_execution import AgentExecutor, RequestContext
from a2a.server.events import EventQueue
from a2a.server.request_handlers import DefaultRequestHandlerV2
from a2a.server.routes import create_agent_card_routes, create_jsonrpc_routes, create_rest_routes
from a2a.server.tasks import InMemoryTaskStore, TaskUpdater
from a2a.types.a2a_pb2 import AgentCapabilities, AgentCard, AgentInterface, Message, Part
from google.protobuf.json_format import MessageToDict
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

LOOPBACK = "127.0.0.1"
NETWORKS = ["127.0.0.0/8"]
"""The setting that lets a server call them."""


@dataclass
class Turn:
    """A message that an agent is to answer."""

    message: Message
    headers: dict[str, str]
    updater: TaskUpdater
    queue: EventQueue

    @property
    def about(self) -> dict[str, Any]:
        """What Millstream says of the task."""
        return dict(MessageToDict(self.message.metadata)["millstream"])

    @property
    def data(self) -> list[Any]:
        """The data parts, as JSON."""
        return [MessageToDict(part.data) for part in self.message.parts if part.HasField("data")]

    async def start(self) -> None:
        """Make it a task."""
        await self.queue.enqueue_event(new_task_from_user_message(self.message_of_task()))

    def message_of_task(self) -> Message:
        """The message with the ids that the server chose."""
        found = Message()
        found.CopyFrom(self.message)
        found.task_id, found.context_id = self.updater.task_id, self.updater.context_id
        return found

    async def say(self, *parts: Part, **metadata: Any) -> None:
        """Answer directly, with a message."""
        await self.queue.enqueue_event(self.updater.new_agent_message([*parts], metadata or None))

    async def make(self, data: Any, name: str = "", **metadata: Any) -> None:
        """Make an artifact of data."""
        await self.updater.add_artifact([new_data_part(data)], name=name or None, metadata=metadata or None)


Behaviour = Callable[[Turn], Awaitable[None]]


@dataclass
class RemoteAgent:
    """An agent by A2A.

    Attributes:
        turns: The messages that came.
        came: The same, to be waited for.
        cancelled: The agent's own ids of tasks that it was told to give up.
    """

    behave: Behaviour
    url: str = ""
    turns: list[Turn] = field(default_factory=list)
    came: asyncio.Queue[Turn] = field(default_factory=asyncio.Queue)
    cancelled: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    authorized: dict[str, str] = field(default_factory=dict)
    """What each kind of request came with as `authorization`."""


class _Executor(AgentExecutor):
    def __init__(self, agent: RemoteAgent) -> None:
        self._agent = agent

    async def execute(self, context: RequestContext, event_queue: EventQueue) -> None:
        assert context.message is not None
        assert context.task_id is not None
        assert context.context_id is not None
        headers = context.call_context.state.get("headers", {})
        turn = Turn(
            context.message, headers, TaskUpdater(event_queue, context.task_id, context.context_id), event_queue
        )
        self._agent.turns.append(turn)
        self._agent.came.put_nowait(turn)
        await self._agent.behave(turn)

    async def cancel(self, context: RequestContext, event_queue: EventQueue) -> None:
        assert context.task_id is not None
        assert context.context_id is not None
        self._agent.cancelled.put_nowait(context.task_id)
        await TaskUpdater(event_queue, context.task_id, context.context_id).cancel()


@contextlib.asynccontextmanager
async def a2a_agent(
    behave: Behaviour,
    *,
    streaming: bool = True,
    binding: str = "JSONRPC",
    version: str = "1.0",
    modes: tuple[str, ...] = (),
) -> AsyncIterator[RemoteAgent]:
    """An agent by A2A for the length of the block."""
    agent = RemoteAgent(behave)
    with _listening() as (listener, base):
        agent.url = base
        card = AgentCard(
            name="tested",
            description="An agent of a test.",
            version="1",
            capabilities=AgentCapabilities(streaming=streaming),
            supported_interfaces=[
                AgentInterface(url=f"{base}/rpc", protocol_binding=binding, protocol_version=version)
            ],
            default_input_modes=[*(modes or ("application/json",))],
            default_output_modes=["application/json"],
        )
        handler = DefaultRequestHandlerV2(_Executor(agent), InMemoryTaskStore(), card)
        routes: list[BaseRoute] = [*create_agent_card_routes(card)]
        if binding == "JSONRPC":
            routes += create_jsonrpc_routes(handler, "/rpc", enable_v0_3_compat=True)
        else:
            routes += create_rest_routes(handler, path_prefix="/rpc")
        async with _serving(_noting(agent, Starlette(routes=routes)), listener):
            yield agent


def _noting(agent: RemoteAgent, app: Starlette) -> ASGIApp:
    async def noted(scope: Scope, receive: Receive, send: Send) -> None:
        said = dict(scope["headers"]).get(b"authorization", b"").decode()
        agent.authorized[f"{scope['method']} {scope['path']}"] = said
        await app(scope, receive, send)

    return noted


Answering = Callable[[Request], Awaitable[Response]]


@contextlib.asynccontextmanager
async def http_agent(answer: Answering, path: str = "/") -> AsyncIterator[str]:
    """An agent by HTTP for the length of the block; its URL."""

    async def endpoint(request: Request) -> Response:
        return await answer(request)

    with _listening() as (listener, base):
        routes = [Route(path, endpoint, methods=["GET", "POST"])]
        async with _serving(Starlette(routes=routes), listener):
            yield f"{base}{path}"


@contextlib.contextmanager
def _listening() -> Iterator[tuple[socket.socket, str]]:
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        listener.listen()
        yield listener, f"http://{LOOPBACK}:{listener.getsockname()[1]}"


class _Server(uvicorn.Server):
    """Leaves the signals to the tests."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def _serving(app: ASGIApp, listener: socket.socket) -> AsyncIterator[None]:
    config = uvicorn.Config(app, log_config=None, lifespan="off", timeout_graceful_shutdown=0, ws="none")
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield
    finally:
        await _end_work(serving)
        server.should_exit = server.force_exit = True
        await serving


async def _end_work(serving: asyncio.Task[None]) -> None:
    """End what the SDK's server still does, which it would go on with after its end."""
    work = [task for task in asyncio.all_tasks() if task is not serving and _is_of_server(task)]
    for task in work:
        task.cancel()
    await asyncio.gather(*work, return_exceptions=True)


def _is_of_server(task: asyncio.Task[Any]) -> bool:
    code = getattr(task.get_coro(), "cr_code", None)
    path = code.co_filename if code is not None else ""
    return path == __file__ or any(f"/site-packages/{name}/" in path for name in ("a2a", "sse_starlette"))
