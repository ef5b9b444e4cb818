"""Streams of the service, resumed where they break off."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from google.protobuf.message import Message

from millstream.sdk.calls import Calls, pause_after
from millstream.sdk.errors import InvalidRequestError, ServiceError
from millstream.sdk.results import Artifact
from millstream.v1 import artifact_service_pb2 as wire

MessageT = TypeVar("MessageT", bound=Message, covariant=True)
ItemT = TypeVar("ItemT")


@dataclass(frozen=True, slots=True)
class Streamed(Generic[ItemT]):
    """One thing of a stream, and the cursor that goes on behind it."""

    item: ItemT
    cursor: str


class ArtifactWatch:
    """Artifacts as they are stored: `async for artifact in client.artifacts.watch(): ...`. Never ends by itself.

    A connection that is lost, or a server that goes, is resumed without a loss and without a double, as often as it
    takes. Breaking out of the loop ends the watch.

    Attributes:
        cursor: goes on behind the last artifact that was given out, in a later watch too, for an hour.
    """

    def __init__(self, calls: Calls, request: Callable[[str], wire.WatchArtifactsRequest], cursor: str) -> None:
        self.cursor = cursor
        self._calls = calls
        self._request = request

    async def __aiter__(self) -> AsyncIterator[Artifact]:
        async for _, artifact in self.messages():
            if artifact is not None:
                yield artifact

    async def messages(self) -> AsyncGenerator[tuple[str, Artifact | None], None]:
        """Every message: its cursor, and its artifact; None in signs of life, of which the first comes at once.

        Raises:
            ServiceError: the service refused the watch. An InvalidRequestError whose detail `cursor` has the code
                EXPIRED: it broke off too long ago; watch anew and list what came in between.
        """

        def begin() -> AsyncIterator[wire.WatchArtifactsResponse]:
            return self._calls.stream(
                "ArtifactService/WatchArtifacts", self._request(self.cursor), wire.WatchArtifactsResponse
            )

        async for message in resumed(begin, forever=True, retries=self._calls.retries):
            self.cursor = message.cursor
            yield message.cursor, Artifact.from_wire(message.artifact) if message.HasField("artifact") else None


async def resumed(
    begin: Callable[[], AsyncIterator[MessageT]], *, forever: bool = False, retries: int = 7
) -> AsyncIterator[MessageT]:
    """The messages of a stream, begun again where it broke off.

    Args:
        begin: begins it behind the last message that was given out.
        forever: begin again however long the service is away, and where it ends the stream, too.
        retries: else, how often in a row without a message.

    Raises:
        ServiceError: what the service refused, or the last failure.
    """
    tries = 0
    began = False
    while True:
        try:
            async for message in begin():
                tries, began = 0, True
                yield message
            if not forever:
                return
        except ServiceError as error:
            pause = pause_after(error, tries)
            # One that never began may be misspelt rather than away.
            if pause is None or (tries >= retries and not (forever and began)):
                raise
            tries += 1
            await asyncio.sleep(pause)


def expired(error: ServiceError) -> bool:
    """Whether a watch broke off too long ago to be resumed."""
    return isinstance(error, InvalidRequestError) and any(detail.code == "EXPIRED" for detail in error.details)
