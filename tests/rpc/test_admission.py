"""How many calls a server takes: bounded, and what is over is refused with a reason and a time to come again."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import pytest
from tests.rpc.answers import status_of
from tests.rpc.conftest import Service, serving
from tests.rpc.fakes import Fakes

from millstream.domain.errors import RateLimited
from millstream.transport.admission import Admission
from millstream.v1.artifact_service_pb2 import PublishRequest

PUBLISH = "ArtifactService/Publish"
ORDER = PublishRequest(type="Order").SerializeToString()


def test_a_place_is_held_for_the_length_of_a_call() -> None:
    admission = Admission(2, 2)
    with admission.room("a"), admission.room("b"):
        assert len(admission) == 2
        with pytest.raises(RateLimited, match="max_calls") as refused, admission.room("c"):
            pass
        assert refused.value.retry_after_s == 1.0
    assert len(admission) == 0
    with admission.room("c"):
        pass


def test_a_tenant_leaves_room_for_the_others() -> None:
    admission = Admission(3, 2)
    with admission.room("a"), admission.room("a"):
        with pytest.raises(RateLimited, match="max_calls_per_tenant"), admission.room("a"):
            pass
        with admission.room("b"):
            pass
    assert len(admission) == 0


@pytest.fixture
async def narrow() -> AsyncIterator[Service]:
    async with serving(Fakes(), Admission(2, 2)) as service:
        yield service


async def test_what_is_over_is_refused_and_health_is_told(narrow: Service) -> None:
    """FL-10: RATE_LIMITED with a time to come again, over both doors; who waits is served."""
    began, go = asyncio.Semaphore(0), asyncio.Event()

    async def hold() -> None:
        began.release()
        await go.wait()

    narrow.fakes.artifacts.gate = hold
    calls = [asyncio.create_task(narrow.call(PUBLISH, ORDER)) for _ in range(2)]
    await began.acquire()
    await began.acquire()
    refused = await narrow.call(PUBLISH, ORDER)
    assert (status_of(refused)[0], status_of(refused)[3]) == ("RATE_LIMITED", 1.0)
    rest = await narrow.call(PUBLISH, ORDER, x_envoy_original_path="/api/v1/artifacts")
    assert (rest.metadata["x-http-status"], rest.metadata["retry-after"]) == ("429", "1")
    assert (await narrow.call("SystemService/GetHealth", key=None)).error is None
    go.set()
    assert [answer.error for answer in await asyncio.gather(*calls)] == [None, None]
    assert (await narrow.call(PUBLISH, ORDER)).error is None


async def test_a_burst_is_answered_call_by_call(narrow: Service) -> None:
    """Thousands at once: each is served or refused with a reason, none is reset."""
    answers = await asyncio.gather(*(narrow.call(PUBLISH, ORDER) for _ in range(4000)))
    codes = Counter("OK" if answer.error is None else status_of(answer)[0] for answer in answers)
    assert set(codes) <= {"OK", "RATE_LIMITED"}
    assert codes["OK"] >= 1
