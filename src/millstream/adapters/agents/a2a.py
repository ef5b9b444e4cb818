"""Agents by the A2A protocol, with the official SDK's client: JSON-RPC and HTTP+JSON, versions 1.0 and 0.3.

Loaded with the first call: to import the SDK takes most of a second.
"""

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator
from typing import Final

import httpx
from a2a.client import A2ACardResolver, Client, ClientCallContext, ClientConfig, ClientFactory
from a2a.client.errors import A2AClientError, A2AClientTimeoutError
from a2a.types.a2a_pb2 import (
    AgentCard,
    CancelTaskRequest,
    GetTaskRequest,
    SendMessageConfiguration,
    SendMessageRequest,
    StreamResponse,
)
from a2a.utils.constants import TransportProtocol
from a2a.utils.errors import A2AError, InternalError, TaskNotFoundError

from millstream.adapters.agents import faults, parts
from millstream.adapters.agents.followed import Followed
from millstream.adapters.agents.guard import Clients, Unacceptable
from millstream.application.call_ports import Answer, Call, CallFailed, CallWatch

CARD_S: Final = 300.0
"""How long an agent's card is held to."""
CARDS_MOST: Final = 1000
ANSWER_S: Final = 30.0
"""For the card, and for a look at a task: those are answered at once."""
CANCEL_S: Final = 5.0
LOOK_FIRST_S: Final = 0.1
LOOK_MOST_S: Final = 5.0
LOOK_GROWTH: Final = 1.5
LOOKS_FAILED_MOST: Final = 5
"""Looks at a task that fail one after the other until it is given up."""

for _name in ("a2a", "httpx", "httpcore"):
    # They tell of every request, with cards and addresses.
    logging.getLogger(_name).setLevel(logging.WARNING)

_log: Final = logging.getLogger(__name__)


class A2aAgents:
    """Calls agents by A2A."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        self._cards: OrderedDict[tuple[str, str], tuple[AgentCard, float]] = OrderedDict()

    async def call(self, call: Call, watch: CallWatch) -> Answer:
        """Send the task as a message and follow what becomes of it. Raises CallFailed."""
        task = Followed(watch)
        http = self._clients.of(call.tenant)
        try:
            card = await self._card(http, call)
            client = self._client(http, card)
            async with self._sending(client, call, card, task):
                await self._look(client, call, task)
            return task.answer(call.outputs)
        except CallFailed:
            raise
        except Exception as error:
            # The next attempt asks for the card again: it may be what changed.
            self._cards.pop((call.tenant, call.url), None)
            raise _failure(error) from error

    async def _card(self, http: httpx.AsyncClient, call: Call) -> AgentCard:
        url, now = call.url, asyncio.get_running_loop().time()
        # By tenant: with its credentials another may be shown another card.
        known = self._cards.get((call.tenant, url))
        if known is not None and known[1] > now:
            return known[0]
        base, path = (url.rpartition("/")[0], url.rpartition("/")[2]) if url.endswith(".json") else (url, None)
        resolver = A2ACardResolver(http, base)
        card = await resolver.get_agent_card(relative_card_path=path, http_kwargs={"timeout": ANSWER_S})
        self._cards[call.tenant, url] = (card, now + CARD_S)
        self._cards.move_to_end((call.tenant, url))
        while len(self._cards) > CARDS_MOST:
            self._cards.popitem(last=False)
        return card

    def _client(self, http: httpx.AsyncClient, card: AgentCard) -> Client:
        bindings = [TransportProtocol.JSONRPC.value, TransportProtocol.HTTP_JSON.value]
        config = ClientConfig(
            httpx_client=http,
            supported_protocol_bindings=bindings,
            use_client_preference=True,
            # Where it does not stream, it answers at once and is looked at.
            polling=not card.capabilities.streaming,
            accepted_output_modes=[parts.JSON_TYPE, "text/plain"],
        )
        try:
            return ClientFactory(config).create(card)
        except ValueError:
            spoken = ", ".join(sorted({each.protocol_binding for each in card.supported_interfaces})) or "nothing"
            text = f"the agent's card offers {spoken}; {' or '.join(bindings)} is needed"
            raise CallFailed(faults.INVALID, text, retryable=False) from None

    @contextlib.asynccontextmanager
    async def _sending(self, client: Client, call: Call, card: AgentCard, task: Followed) -> AsyncIterator[None]:
        """Begins when the message was sent and answered. Whatever ends it before the task has ended, cancels that at
        the agent, unless it is another server's by now."""
        sending = asyncio.create_task(self._send(client, call, card, task), name="message to an agent")
        try:
            # In a task of its own: whoever gives up before the agent has named its task could not cancel that.
            await asyncio.shield(sending)
            yield
        finally:
            if not task.over and not task.lost:
                await asyncio.wait({sending, task.known}, timeout=CANCEL_S, return_when=asyncio.FIRST_COMPLETED)
                await self._cancel(client, task)
            task.known.cancel()
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    async def _send(self, client: Client, call: Call, card: AgentCard, task: Followed) -> None:
        request = SendMessageRequest(
            message=parts.message_of(call, card), configuration=SendMessageConfiguration(history_length=0)
        )
        headers = {"Idempotency-Key": call.token} | ({"traceparent": call.trace} if call.trace else {})
        context = ClientCallContext(service_parameters=headers)
        events: AsyncIterator[StreamResponse] = client.send_message(request, context=context)
        try:
            async for event in events:
                task.take(event)
                if task.ended:
                    break
        except (A2AClientError, httpx.HTTPError) as error:
            # A stream that broke off, or became too long, is no answer: the task goes on, and can be looked at.
            if not task.id or not (_broke_off(error) or isinstance(_transport_error(error), Unacceptable)):
                raise
            _log.debug("the stream of an agent broke off: %s", error)
        finally:
            close = getattr(events, "aclose", None)
            if close is not None:
                await close()

    async def _look(self, client: Client, call: Call, task: Followed) -> None:
        """Look at the task until it has ended."""
        wait_s, failed = LOOK_FIRST_S, 0
        most_s = min(LOOK_MOST_S, call.signs_every_s or LOOK_MOST_S)
        while not task.ended:
            if not task.id:
                raise CallFailed(faults.INVALID, "the agent answered with neither a task nor a message", False)
            await asyncio.sleep(min(wait_s, most_s))
            wait_s *= LOOK_GROWTH
            try:
                found = await client.get_task(
                    GetTaskRequest(id=task.id, history_length=0), context=ClientCallContext(timeout=ANSWER_S)
                )
            except (A2AClientError, httpx.HTTPError) as error:
                failed += 1
                if failed >= LOOKS_FAILED_MOST or not _broke_off(error):
                    raise
            else:
                failed = 0
                task.replace(found)

    async def _cancel(self, client: Client, task: Followed) -> None:
        """Tell the agent that nobody waits for the task any more."""
        if not task.id:
            return
        try:
            async with asyncio.timeout(CANCEL_S):
                await client.cancel_task(CancelTaskRequest(id=task.id))
        except Exception as error:
            _log.info("a task of an agent could not be cancelled there: %s", error)


def _broke_off(error: Exception) -> bool:
    """Whether it was the connection that failed, or what stands between."""
    return _failure(error).code in (faults.UNREACHABLE, faults.ERROR)


def _failure(error: Exception) -> CallFailed:
    """What the SDK's error means."""
    below = _transport_error(error)
    if below is not None:
        return faults.of_transport(below)
    if isinstance(error, A2AClientTimeoutError):
        return CallFailed(faults.UNREACHABLE, "the agent did not answer in time")
    if isinstance(error, TaskNotFoundError):
        return CallFailed(faults.ERROR, "the agent knows its task no more")
    if isinstance(error, InternalError):
        return CallFailed(faults.ERROR, f"the agent answered with an error: {error}")
    if isinstance(error, A2AError) and not isinstance(error, A2AClientError):
        return CallFailed(faults.REFUSED, f"the agent refused: {error}", retryable=False)
    text = str(error)[: faults.BODY_MOST]
    return CallFailed(faults.INVALID, f"the agent's answer cannot be read: {text}", retryable=False)


def _transport_error(error: BaseException | None) -> httpx.HTTPError | None:
    """What failed below the SDK."""
    while error is not None and not isinstance(error, httpx.HTTPError):
        error = error.__cause__
    return error
