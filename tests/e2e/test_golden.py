"""Every documented request and answer of FL, FV and WM, replayed through Envoy, two servers and a worker."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
from tests.e2e.golden import differences, replay, scenarios
from tests.e2e.stack import Process, Stack

WORKER = Path(__file__).with_name("golden_worker.py")
REQUIRED = {
    *(f"FL-{n}" for n in (1, 2, 3, 4, 5, 7, 8, 10, 11, 12, 13, 14, 17, 18)),
    *(f"FV-{n}" for n in (2, 3, 4, 5, 6, 9, 10, 11, 17)),
    *(f"WM-{n}" for n in (1, 2, 3, 4, 5, 10, 11)),
}


@pytest.fixture(scope="module")
async def golden(stack: Stack) -> Process:
    """The worker whose kinds the files name."""
    return await stack.worker(WORKER, "golden")


@pytest.mark.usefixtures("golden")
@pytest.mark.parametrize("path", scenarios(), ids=lambda path: path.stem)
async def test_the_service_answers_as_documented(path: Path, rest: httpx.AsyncClient) -> None:
    """Each file names its requirements."""
    await replay(path, rest)


def test_every_documented_row_has_a_file() -> None:
    told = " ".join(json.loads(path.read_text())["about"] for path in scenarios())
    assert {each for each in REQUIRED if each not in told.replace(",", " ").replace(":", " ").split()} == set()


@pytest.mark.parametrize(
    ("expected", "found"),
    [
        ({"a": 1}, {"a": 1, "b": 2}),
        ({"a": 1}, {}),
        ({"a": "<integer>"}, {"a": "1"}),
        ({"a": "<integer>"}, {"a": True}),
        ({"a": True}, {"a": 1}),
        ({"a": None}, {"a": ""}),
        (["<each>", "<uuid>"], []),
        (["<each>", "<uuid>"], ["x"]),
        (["<some>", 1], [2, 3]),
        ([1], [1, 2]),
        ("<time>", "yesterday"),
        ("<text>", ""),
        ({"a": {"b": 1}}, {"a": []}),
    ],
)
def test_what_is_not_as_documented_is_told(expected: object, found: object) -> None:
    """The comparison itself."""
    assert differences(expected, found)
