"""Streams of the client: begun again where they broke off, and given up where that is of no use."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest

from millstream.sdk import ConnectError, InvalidRequestError, ServiceError
from millstream.sdk import calls as calls_module
from millstream.sdk.errors import FieldDetail, from_stream
from millstream.sdk.streams import expired, resumed
from millstream.v1.artifact_service_pb2 import WatchArtifactsResponse

AWAY = ConnectError("UNAVAILABLE", "away", retryable=True)
REFUSED = InvalidRequestError("VALIDATION_ERROR", "no", details=(FieldDetail("cursor", "is old", "EXPIRED"),))


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls_module, "FIRST_PAUSE_S", 0.0001)
    monkeypatch.setattr(calls_module, "LONGEST_PAUSE_S", 0.0001)


def scripted(*streams: list[Any]) -> tuple[Callable[[], AsyncIterator[WatchArtifactsResponse]], list[int]]:
    """Streams that send cursors and raise errors, one after the other; the last one stays. And a list that counts."""
    begun: list[int] = []

    async def stream() -> AsyncIterator[WatchArtifactsResponse]:
        script = streams[min(len(begun), len(streams) - 1)]
        begun.append(1)
        for each in script:
            if isinstance(each, Exception):
                raise each
            yield WatchArtifactsResponse(cursor=each)

    return stream, begun


async def cursors(messages: AsyncIterator[WatchArtifactsResponse]) -> AsyncIterator[str]:
    async for message in messages:
        yield message.cursor


async def test_a_stream_that_breaks_off_is_begun_again() -> None:
    begin, begun = scripted(["a", AWAY], [AWAY], ["b"])
    assert [each async for each in cursors(resumed(begin))] == ["a", "b"]
    assert len(begun) == 3


async def test_what_is_refused_is_not_tried_again() -> None:
    begin, begun = scripted(["a", AWAY], [REFUSED])
    found = cursors(resumed(begin, forever=True))
    assert await anext(found) == "a"
    with pytest.raises(InvalidRequestError) as caught:
        await anext(found)
    assert expired(caught.value)
    assert len(begun) == 2


async def test_a_service_that_stays_away_is_given_up() -> None:
    begin, begun = scripted([AWAY])
    for forever in (False, True):
        with pytest.raises(ConnectError):
            await anext(resumed(begin, forever=forever, retries=3))
    assert len(begun) == 2 * 4


async def test_a_watch_that_began_is_never_given_up() -> None:
    """And is begun again where the service ends it without an error."""
    begin, begun = scripted(["a"], *[[AWAY]] * 20, ["b"])
    found = cursors(resumed(begin, forever=True, retries=2))
    assert [await anext(found), await anext(found)] == ["a", "b"]
    assert len(begun) == 22


@pytest.mark.parametrize(
    ("code", "kind"), [(grpc.StatusCode.INTERNAL, ConnectError), (grpc.StatusCode.UNAUTHENTICATED, ServiceError)]
)
def test_a_reset_without_a_reason_is_a_server_that_died(code: grpc.StatusCode, kind: type[ServiceError]) -> None:
    empty = grpc.aio.Metadata()
    error = from_stream(grpc.aio.AioRpcError(code, empty, empty, "Stream removed"))
    assert isinstance(error, kind)
    assert isinstance(error, ConnectError) == (kind is ConnectError)
