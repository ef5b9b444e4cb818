"""A server from its settings: it starts, says what is wrong in a line, and ends on a signal."""

import asyncio
import os
import signal
import socket
from typing import Any

import grpc
import pytest
from tests.proxy import free_port
from tests.rpc.fakes import Fakes

from millstream import bootstrap
from millstream.adapters.metrics import Metrics
from millstream.config import ConfigError, Settings


class _Built:
    """What stands behind the transport: fakes."""

    def __init__(self) -> None:
        self.fakes = Fakes()
        self.closed = False
        self.built = asyncio.Event()
        self.broken = asyncio.Event()

    async def build(self, settings: Settings, metrics: Metrics) -> bootstrap.App:
        self.built.set()
        return bootstrap.App(self.fakes.use_cases(metrics.exposition), self._ready, self._close, self.broken)

    async def _ready(self) -> bool:
        return True

    async def _close(self) -> None:
        self.closed = True


def _settings(port: int) -> Settings:
    return Settings(port=port, auth_mode="developer", log_format="console", drain_timeout_s=0.2, drain_delay_s=0)


async def test_it_serves_until_a_signal_and_closes_what_it_built() -> None:
    built, port = _Built(), free_port()
    serving = asyncio.create_task(bootstrap.serve(_settings(port), built.build))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        method: Any = channel.unary_unary("/millstream.v1.AgentService/ListAgents")
        answer: bytes = await method(b"", wait_for_ready=True)
    assert answer
    os.kill(os.getpid(), signal.SIGTERM)
    async with asyncio.timeout(5):
        assert await serving == 0
    assert built.closed


async def test_it_ends_with_an_error_when_a_part_of_it_has_ended() -> None:
    """WM-12: what looks after the process starts it again; until then it would only be unready."""
    built, port = _Built(), free_port()
    serving = asyncio.create_task(bootstrap.serve(_settings(port), built.build))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        await channel.channel_ready()
    built.broken.set()
    async with asyncio.timeout(5):
        assert await serving == 1
    assert built.closed


async def test_a_taken_port_ends_it_with_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    built = _Built()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert await bootstrap.serve(_settings(taken.getsockname()[1]), built.build) == 1
    assert built.closed
    assert "is another process using the port" in capsys.readouterr().err


async def test_nothing_is_built_where_nobody_could_call() -> None:
    built = _Built()
    with pytest.raises(ConfigError, match="nobody could call"):
        await bootstrap.serve(Settings(), built.build)
    assert not built.built.is_set()
