"""Health, reflection, start and end of the server."""

import asyncio

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc  # type: ignore[import-untyped]
from tests.rpc.conftest import Service
from tests.rpc.test_work_stream import HELLO, connected

from millstream.transport import server

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.mark.parametrize("name", ["", "millstream.v1.ArtifactService"])
async def test_it_serves_while_it_is_ready(service: Service, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """WM-12"""
    stub = health_pb2_grpc.HealthStub(service.channel)
    watch = stub.Watch(health_pb2.HealthCheckRequest(service=name))
    assert (await watch.read()).status == _SERVING
    service.fakes.system.faults["database"] = "no connection"
    async with asyncio.timeout(server.HEALTH_PERIOD_S + 3):
        assert (await watch.read()).status == _NOT_SERVING
    watch.cancel()


async def test_it_says_that_it_is_going_before_it_goes(service: Service) -> None:
    watch = health_pb2_grpc.HealthStub(service.channel).Watch(health_pb2.HealthCheckRequest(service=""))
    assert (await watch.read()).status == _SERVING
    stopping = asyncio.create_task(service.server.stop())
    async with asyncio.timeout(5):
        assert (await watch.read()).status == _NOT_SERVING
    watch.cancel()
    await stopping


async def test_it_goes_on_until_proxies_have_noticed_that_it_is_going(service: Service) -> None:
    """WM-12: calls are taken meanwhile, and no worker is told yet, which might come back here."""
    async with connected(service, HELLO) as worker:
        await worker.hear_until(lambda answer: answer.ack == 1)
        service.server._drain_delay_s = 3600
        watch = health_pb2_grpc.HealthStub(service.channel).Watch(health_pb2.HealthCheckRequest(service=""))
        assert (await watch.read()).status == _SERVING
        stopping = asyncio.create_task(service.server.stop())
        async with asyncio.timeout(5):
            assert (await watch.read()).status == _NOT_SERVING
        watch.cancel()
        assert (await service.call("AgentService/ListAgents")).error is None
        ready = await service.call("SystemService/GetReadiness", key=None, x_envoy_original_path="/health/ready")
        assert ready.metadata["x-http-status"] == "503"
        assert not service.fakes.drained
        stopping.cancel()
        await asyncio.gather(stopping, return_exceptions=True)
        service.server._drain_delay_s = 0
        stopping = asyncio.create_task(service.server.stop())
        await worker.hear_until(lambda answer: answer.drain)
    await stopping


async def test_calls_in_flight_are_answered_when_the_server_goes(service: Service) -> None:
    started, go = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        started.set()
        await go.wait()

    service.fakes.agents.gate = hold
    call = asyncio.create_task(service.call("AgentService/ListAgents"))
    await started.wait()
    stopping = asyncio.create_task(service.server.stop())
    await asyncio.sleep(0.05)
    go.set()
    assert (await call).error is None
    await stopping


async def test_reflection_lists_the_contract(service: Service) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(service.channel)
    call = stub.ServerReflectionInfo()
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    names = {each.name for each in (await call.read()).list_services_response.service}
    assert {"millstream.v1.ArtifactService", "millstream.v1.WorkerService", "grpc.health.v1.Health"} <= names
    await call.write(reflection_pb2.ServerReflectionRequest(file_containing_symbol="millstream.v1.PublishRequest"))
    assert (await call.read()).file_descriptor_response.file_descriptor_proto
    call.cancel()


async def test_a_taken_port_is_told(service: Service) -> None:
    other = grpc.aio.server()
    del other
    with pytest.raises(OSError, match="cannot listen on"):
        await service.server.start(f"127.0.0.1:{service.port}")
