"""One call of the service: its deadline, its idempotency key, and when it is tried again."""

import asyncio
import random
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeAlias, TypeVar

import grpc
from google.protobuf.message import Message

from millstream.sdk import tracing
from millstream.sdk.errors import RateLimitedError, ServiceError, UnavailableError, from_rpc, from_stream

RequestT = TypeVar("RequestT", bound=Message)
ResponseT = TypeVar("ResponseT", bound=Message, covariant=True)
ItemT = TypeVar("ItemT")

KEY_HEADER: Final = "x-idempotency-key"
REPLAYED_HEADER: Final = "idempotency-replayed"
PACKAGE: Final = "millstream.v1"
FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 5.0

MAX_BATCH_ITEMS: Final = 1_000
"""The contract's limit on the items of one batch."""
MAX_BATCH_BYTES: Final = 2 * 1024 * 1024
"""Keeps a batch well under the limit of a message, and its handling short."""


class Choices(Protocol):
    """An enum of the contract."""

    def keys(self) -> Iterable[str]:
        """Its names."""

    def Value(self, name: str) -> Any:  # noqa: N802  (protobuf's name)
        """The value of a name."""


def choice(choices: Choices, name: str) -> Any:
    """The value of the enum that `name` stands for in any case; "" stands for none.

    Raises:
        ValueError: there is no such value; the message names those there are.
    """
    names = [known for known in choices.keys() if known != "UNSPECIFIED"]  # noqa: SIM118  (no mapping)
    if name and name.upper() not in names:
        raise ValueError(f"{name!r} is none of {', '.join(names)}")
    return choices.Value(name.upper() or "UNSPECIFIED")


class Response(Protocol[ResponseT]):
    """A class of messages."""

    def FromString(self, data: bytes, /) -> ResponseT:  # noqa: N802  (protobuf's name)
        """The message that the bytes encode."""


class Answer(NamedTuple, Generic[ItemT]):
    """A response, and whether it is that of an earlier call with the same key."""

    message: ItemT
    replayed: bool


class Calls:
    """Makes calls on one channel. Every one may be repeated: it reads, or it carries an idempotency key."""

    def __init__(
        self, channel: grpc.aio.Channel, metadata: tuple[tuple[str, str], ...], timeout_s: float, retries: int
    ) -> None:
        """`retries`: how often a call is repeated after the first try."""
        self._channel = channel
        self._metadata = metadata
        self._timeout_s = timeout_s
        self.retries = retries
        self._methods: dict[str, Any] = {}

    async def read(
        self, rpc: str, request: Message, response: Response[ResponseT], *, timeout_s: float | None = None
    ) -> ResponseT:
        """Calls an RPC that changes nothing. `rpc` is "Service/Method".

        Raises:
            ServiceError: the service refused or failed it, or could not be reached.
        """
        answer = await self._call(rpc, request, response, self._metadata, timeout_s or self._timeout_s)
        return answer.message

    async def stream(self, rpc: str, request: Message, response: Response[ResponseT]) -> AsyncIterator[ResponseT]:
        """The messages of one stream, which has no deadline. Breaking off ends it.

        Raises:
            ServiceError: the service refused it, or it broke off.
        """
        method = self._channel.unary_stream(
            f"/{PACKAGE}.{rpc}", request_serializer=_serialize, response_deserializer=response.FromString
        )
        call: Any = method(request, metadata=(*self._metadata, *tracing.headers()))
        try:
            async for message in call:
                yield message
        except grpc.aio.AioRpcError as failed:
            raise from_stream(failed) from failed
        finally:
            call.cancel()

    async def write(
        self,
        rpc: str,
        request: Message,
        response: Response[ResponseT],
        *,
        key: str | None = None,
        timeout_s: float | None = None,
    ) -> Answer[ResponseT]:
        """Calls an RPC that takes an idempotency key: `key`, or one made for this call and all its tries.

        Raises:
            ServiceError: the service refused or failed it, or could not be reached.
        """
        metadata = (*self._metadata, (KEY_HEADER, key or str(uuid.uuid4())))
        return await self._call(rpc, request, response, metadata, timeout_s or self._timeout_s)

    async def _call(
        self,
        rpc: str,
        request: Message,
        response: Response[ResponseT],
        metadata: tuple[tuple[str, str], ...],
        timeout_s: float,
    ) -> Answer[ResponseT]:
        method = self._method(rpc, response)
        metadata = (*metadata, *tracing.headers())
        clock = asyncio.get_running_loop().time
        deadline = clock() + timeout_s
        tries = 0
        while True:
            try:
                call = method(request, timeout=max(deadline - clock(), 0.001), metadata=metadata)
                message = await call
                return Answer(message, await _replayed(call))
            except grpc.aio.AioRpcError as failed:
                error = from_rpc(failed)
                pause = pause_after(error, tries)
                if pause is None or tries >= self.retries or clock() + pause >= deadline:
                    raise error from failed
            tries += 1
            await asyncio.sleep(pause)

    async def send(
        self,
        rpc: str,
        requests: Callable[[], AsyncIterator[Message]],
        response: Response[ResponseT],
        *,
        repeat: bool,
    ) -> ResponseT:
        """Calls an RPC with a stream of requests; it takes as long as it takes. `repeat`: `requests` may be asked for a
        stream again, should the service go away.

        Raises:
            ServiceError: the service refused or failed it, or could not be reached.
        """
        tries = 0
        while True:
            try:
                return await self._send(rpc, requests(), response)
            except ServiceError as error:
                if not repeat:
                    raise
                await self.pause(error, tries)
            tries += 1

    async def _send(self, rpc: str, requests: AsyncIterator[Message], response: Response[ResponseT]) -> ResponseT:
        call = self._channel.stream_unary(
            f"/{PACKAGE}.{rpc}", request_serializer=_serialize, response_deserializer=response.FromString
        )(metadata=self._metadata)
        try:
            # Where the service ends the call first, a write fails, and the call itself tells why.
            with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                async for request in requests:
                    await call.write(request)
                await call.done_writing()
            message: ResponseT = await call
        except grpc.aio.AioRpcError as failed:
            raise from_stream(failed) from failed
        finally:
            call.cancel()
        return message

    async def pause(self, error: ServiceError, tries: int) -> None:
        """Waits before a call is made again that failed so often before. Raises the error where that is of no use."""
        seconds = pause_after(error, tries)
        if seconds is None or tries >= self.retries:
            raise error
        await asyncio.sleep(seconds)

    def _method(self, rpc: str, response: Response[ResponseT]) -> Any:
        method = self._methods.get(rpc)
        if method is None:
            method = self._methods[rpc] = self._channel.unary_unary(
                f"/{PACKAGE}.{rpc}", request_serializer=_serialize, response_deserializer=response.FromString
            )
        return method


def _serialize(request: Message) -> bytes:
    """Map entries in one order: a repeated call must look the same to the server, from another process too."""
    return request.SerializeToString(deterministic=True)


async def _replayed(call: Any) -> bool:
    for part in (await call.initial_metadata(), await call.trailing_metadata()):
        for name, value in part or ():
            if name == REPLAYED_HEADER:
                return bool(value == "true")
    return False


def pause_after(error: ServiceError, tries: int) -> float | None:
    """Seconds to wait before the next try; None where another one is of no use."""
    if isinstance(error, RateLimitedError):
        return error.retry_after
    if isinstance(error, UnavailableError):
        pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0**tries)
        return max(error.retry_after or 0.0, pause * (0.5 + random.random() / 2))  # noqa: S311  (no secret)
    return None


Fetch: TypeAlias = Callable[[Any], Awaitable[tuple[list[ItemT], Any]]]
"""Gets the page at a cursor (None: the first) and returns it with the next one's (None: it was the last)."""


class Listing(Generic[ItemT]):
    """A list that is fetched page by page as it is read.

    async for run in client.runs.list(status="FAILED"): ...
    """

    def __init__(self, fetch: Fetch[ItemT]) -> None:
        self._fetch = fetch

    async def pages(self) -> AsyncIterator[list[ItemT]]:
        """The pages, each as a list."""
        cursor = None
        while True:
            page, cursor = await self._fetch(cursor)
            yield page
            if not cursor:
                return

    async def __aiter__(self) -> AsyncIterator[ItemT]:
        async for page in self.pages():
            for item in page:
                yield item

    async def first(self, count: int) -> list[ItemT]:
        """The first items, at most `count`."""
        items: list[ItemT] = []
        async for page in self.pages():
            items += page[: count - len(items)]
            if len(items) >= count:
                break
        return items

    async def all(self) -> list[ItemT]:
        """Every item; mind the memory."""
        return [item async for item in self]


class Area:
    """Calls about one kind of resource."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls


def chunks(items: Iterable[RequestT]) -> Iterator[list[RequestT]]:
    """The items in batches that the service takes: at most 1,000 and about 2 MiB each."""
    chunk: list[RequestT] = []
    size = 0
    for item in items:
        item_bytes = item.ByteSize()
        if chunk and (len(chunk) >= MAX_BATCH_ITEMS or size + item_bytes > MAX_BATCH_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(item)
        size += item_bytes
    if chunk:
        yield chunk
