"""A service of the documentation's own: whoever tries everything must not disturb others."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from tests.documentation.calls import told
from tests.e2e.stack import ORDERS, Stack, rest_client, running_stack

WORKER = Path(__file__).with_name("worker.py")


@pytest.fixture(scope="session")
async def service() -> AsyncIterator[Stack]:
    """PostgreSQL, one server in developer mode, Envoy, and the workers that the examples speak of."""
    async with running_stack({"auth_mode": "developer", "lease_s": "2", "cancel_grace_s": "0.5"}) as running:
        await running.worker(ORDERS, "orders")
        await running.worker(WORKER, "examples")
        yield running
    assert not running.faults()


@pytest.fixture
async def client(service: Stack) -> AsyncIterator[httpx.AsyncClient]:
    """A REST client of the default tenant."""
    async with rest_client(service.url) as opened:
        yield opened


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how much was tried."""
    for line in told:
        terminalreporter.write_line(line)
