"""The client whose types are made from the OpenAPI document: compiled, and the README's examples run by it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.e2e.node_project import built, check_locks
from tests.e2e.stack import Process, Stack

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "examples" / "typescript-client"
SAID = [
    "told: notifier Order o-1 is on its way: TRACK-o-1",
    "once: true",
    "replayed: true",
    "refused: 422 VALIDATION_ERROR",
    "came: Order",
    "came: Payment",
    "came: Shipment",
    "came: Notification",
    "runs: 2 and more",
    "asked: approval { amount: 950 }",
    "settled: RESOLVED { approved: true }",
]


@pytest.mark.usefixtures("orders")
async def test_the_generated_client_runs_the_examples_of_the_readme(stack: Stack, tmp_path: Path) -> None:
    """DC-6, WM-8: its types are those of the contract as it is now."""
    node = built(SOURCES, tmp_path, OPENAPI=str(ROOT / "docs" / "openapi.json"))
    client = Process("typescript-client")
    await client.start(node, str(tmp_path / "dist" / "readme.js"), MILLSTREAM_URL=stack.url)
    assert await client.ended() == 0, client.lines
    await client.stop()
    said = iter(client.lines)
    assert [each for each in SAID if not any(line.startswith(each) for line in said)] == [], client.lines


def test_the_locks_name_versions_and_no_place() -> None:
    check_locks(SOURCES)
