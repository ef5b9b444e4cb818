"""Watching runs: what happens in them, and what their tasks stream, as it comes."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from millstream.sdk.calls import Calls
from millstream.sdk.payload import JsonValue, from_value
from millstream.sdk.run_results import RunEvent
from millstream.sdk.streams import resumed
from millstream.v1 import run_service_pb2 as wire


@dataclass(frozen=True, slots=True)
class StreamedValue:
    """Something that a task streamed while it worked."""

    task_id: str
    attempt: int
    index: int
    """Its number in the attempt, from 1; where one is missing it was lost on the way."""
    value: JsonValue


@dataclass(frozen=True, slots=True)
class RunHappening:
    """Something of a watch: an event, a streamed value, or neither: a sign of life, or the end."""

    run_id: str
    cursor: str
    event: RunEvent | None = None
    streamed: StreamedValue | None = None
    ended: bool = False


class RunWatch:
    """What happens in a run: `async for happening in client.runs.watch(run_id): ...`. Ends with the run.

    A connection that is lost, or a server that goes, is resumed without a loss and without a double of events, as often
    as it takes; what is streamed meanwhile is missed.

    Attributes:
        cursor: goes on behind the last event that was given out, in a later watch too.
    """

    def __init__(self, calls: Calls, method: str, request: Callable[[str], Any], cursor: str) -> None:
        """Made by `Runs.watch`."""
        self.cursor = cursor
        self._calls = calls
        self._method = method
        self._request = request

    async def __aiter__(self) -> AsyncIterator[RunHappening]:
        async for each in self.messages():
            if each.event is not None or each.streamed is not None:
                yield each

    async def messages(self) -> AsyncGenerator[RunHappening, None]:
        """Every message, signs of life and the end too; the first comes at once.

        Raises:
            NotFoundError: there is no such run.
            InvalidRequestError: its detail `cursor` has the code EXPIRED where the run is not kept any more.
        """
        async for message in resumed(self._begin, forever=True, retries=self._calls.retries):
            self.cursor = message.cursor
            yield _happening(message)
            if message.ended:
                return

    def _begin(self) -> AsyncIterator[Any]:
        answer: Any = getattr(wire, f"{self._method}Response")
        return self._calls.stream(f"RunService/{self._method}", self._request(self.cursor), answer)


def _happening(message: Any) -> RunHappening:
    streamed = message.streamed if message.HasField("streamed") else None
    return RunHappening(
        message.run_id,
        message.cursor,
        RunEvent.from_wire(message.event) if message.HasField("event") else None,
        streamed and StreamedValue(streamed.task_id, streamed.attempt, streamed.index, from_value(streamed.value)),
        message.ended,
    )
