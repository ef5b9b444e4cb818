"""An agent that knows nothing of Millstream: it speaks A2A, built with the official SDK, and the service calls it.

It makes a Summary of each Text. It needs `pip install "a2a-sdk[http-server]" uvicorn`, and a service that may call it:
`make run EXAMPLE=summaries_a2a`, or beside a `millstream dev`, `python examples/summaries_a2a.py`. Then:

    millstream publish Text '{"text": "Tea is late. It always is."}' --sync
"""

import asyncio
import os
import socket

import uvicorn
from a2a.helpers.proto_helpers import get_data_parts, new_data_part, new_task_from_user_message, new_text_part
from a2a.server.agent_execution import AgentExecutor, RequestContext
from a2a.server.events import EventQueue
from a2a.server.request_handlers import DefaultRequestHandlerV2
from a2a.server.routes import create_agent_card_routes, create_jsonrpc_routes
from a2a.server.tasks import InMemoryTaskStore, TaskUpdater
from a2a.types.a2a_pb2 import AgentCapabilities, AgentCard, AgentInterface, AgentSkill
from pydantic import BaseModel
from starlette.applications import Starlette

from millstream.sdk import Client, ConflictError, NewAgent, RetryPolicy, Subscription


class Text(BaseModel):
    """What somebody wrote."""

    text: str


class Summary(BaseModel):
    """What it is about."""

    summary: str
    words: int


class Summarizer(AgentExecutor):
    """Answers each message with an artifact."""

    async def execute(self, context: RequestContext, event_queue: EventQueue) -> None:
        """Each artifact that the agent is given is a data part, with its payload."""
        message, task_id, context_id = context.message, context.task_id, context.context_id
        if message is None or task_id is None or context_id is None:
            raise ValueError("a message is needed")
        message.task_id, message.context_id = task_id, context_id
        await event_queue.enqueue_event(new_task_from_user_message(message))
        updater = TaskUpdater(event_queue, task_id, context_id)
        (given,) = get_data_parts(message.parts)
        text = str(given.get("text", "")).strip()
        if not text:
            # Another attempt would find no more to say, so that it is final.
            nothing = updater.new_agent_message([new_text_part("there is nothing to summarize")])
            await updater.reject(nothing)
            return
        summary = Summary(summary=text.partition(".")[0] + ".", words=len(text.split()))
        await updater.add_artifact([new_data_part(summary.model_dump())], name="Summary")
        await updater.complete()

    async def cancel(self, context: RequestContext, event_queue: EventQueue) -> None:
        """It is too quick for that; a slow agent would stop its work here."""
        if context.task_id is not None and context.context_id is not None:
            await TaskUpdater(event_queue, context.task_id, context.context_id).cancel()


def app_of(url: str) -> Starlette:
    """The agent as a web application."""
    card = AgentCard(
        name="summaries",
        description="Summarizes texts.",
        version="1.0.0",
        supported_interfaces=[AgentInterface(url=f"{url}/rpc", protocol_binding="JSONRPC", protocol_version="1.0")],
        capabilities=AgentCapabilities(streaming=True),
        default_input_modes=["application/json"],
        default_output_modes=["application/json"],
        skills=[AgentSkill(id="summarize", name="Summarize", description="Says what a text is about.", tags=["text"])],
    )
    handler = DefaultRequestHandlerV2(Summarizer(), InMemoryTaskStore(), card)
    return Starlette(routes=[*create_agent_card_routes(card), *create_jsonrpc_routes(handler, "/rpc")])


async def register(url: str) -> None:
    """Tells Millstream of the agent, which could as well be done by hand, once."""
    target = os.environ.get("MILLSTREAM_TARGET", "127.0.0.1:8080")
    agent = NewAgent(
        name="summaries",
        description="Summarizes texts.",
        subscriptions=[Subscription(Text)],
        outputs=[Summary],
        retry=RetryPolicy(max_attempts=5),
        protocol="A2A",
        url=url,
    )
    async with Client(target, api_key=os.environ.get("MILLSTREAM_API_KEY")) as client:
        await client.types.create(Text)
        await client.types.create(Summary)
        try:
            await client.agents.create(agent)
        except ConflictError:
            await client.agents.update(agent.name, agent)


async def main() -> None:
    """Serves the agent on a free port, and registers it."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", int(os.environ.get("AGENT_PORT", "0"))))
        listener.listen()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        server = uvicorn.Server(uvicorn.Config(app_of(url), lifespan="off", log_level="warning"))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        await register(url)
        print(f"the agent at {url} is called for each Text", flush=True)
        await serving


if __name__ == "__main__":
    asyncio.run(main())
