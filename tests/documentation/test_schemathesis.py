"""Requests that schemathesis makes from the document, good and bad ones: the service keeps to it, and never fails."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.core.result import Ok
from schemathesis.generation import GenerationMode
from tests.documentation.calls import EXAMPLES, call, document, faults, operations, told
from tests.documentation.conftest import WORKER
from tests.e2e.stack import ORDERS, rest_client, running_stack

A_FEW, MANY = 4, 30
"""Cases of an operation, of good requests and of bad ones each."""
EVENTS = "text/event-stream"
_TIMEOUT_S = 20
# Another method than the operation's, and an address or headers that are too long for HTTP.
_OF_HTTP = {405, 431}
_CREDENTIALS = {"authorization", "x-api-key", "x-tenant"}


@dataclass
class Tried:
    """What came of the cases."""

    url: str
    known: dict[str, list[str]]
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    session: requests.Session = field(default_factory=requests.Session)

    def operation(self, found: Any, cases: int) -> None:
        """Try so many good and so many bad requests of one operation."""
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            # Where there is nothing to give there is nothing to give wrongly.
            with contextlib.suppress(Unsatisfiable):
                self._mode(found, mode, cases)

    def _mode(self, found: Any, mode: GenerationMode, cases: int) -> None:
        name = found.definition.raw["operationId"]
        every_other = itertools.cycle((True, False))

        @settings(
            max_examples=cases,
            database=None,
            deadline=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=found.as_strategy(generation_mode=mode))
        def send(case: Any) -> None:
            if next(every_other):
                self._really_there(case)
            self._send(name, case)

        send()

    def _really_there(self, case: Any) -> None:
        """Name what exists, as the examples left it: most ids that one thinks up do not, and nothing is behind them."""
        for place, known in self.known.items():
            if place in (case.path_parameters or {}) and known:
                case.path_parameters[place] = known[self.statuses.total() % len(known)]

    def _send(self, name: str, case: Any) -> None:
        asked = case.as_transport_kwargs(base_url=self.url)
        headers = {key: value for key, value in asked.pop("headers").items() if key.lower() not in _CREDENTIALS}
        with self.session.request(**asked, headers=headers, timeout=_TIMEOUT_S, stream=True) as answer:
            media = answer.headers.get("content-type", "").partition(";")[0]
            self.statuses[answer.status_code] += 1
            if answer.status_code < 300 and EVENTS in str(operations()[name].told["responses"]):
                return  # it does not end by itself
            body: Any = answer.text
            if media.endswith("json") and not media.endswith("ndjson"):
                body = answer.json()
        found = [f"a server error: {body}"] if answer.status_code >= 500 else []
        if answer.status_code not in _OF_HTTP:
            found += faults(name, answer.status_code, media, body)
        self.wrong += [
            f"{name}: {fault}\n    {asked['method']} {asked['url']} {asked} {headers}"[:1500] for fault in found
        ]


@pytest.fixture
async def tried() -> AsyncIterator[Tried]:
    """A service with the examples' workers, in which the examples were played."""
    wanted = {"auth_mode": "developer", "cancel_grace_s": "0.5", "max_streams_per_tenant": "900"}
    async with running_stack(wanted) as stack, rest_client(stack.url) as client:
        await stack.worker(ORDERS, "orders")
        await stack.worker(WORKER, "examples")
        out = Tried(stack.url, {})
        out.session.trust_env = False
        await _play(client, out.known)
        yield out
        assert not stack.faults()


async def _play(client: Any, known: dict[str, list[str]]) -> None:
    for path in sorted(EXAMPLES.glob("*.json")):
        kept: dict[str, Any] = {"tenant": "default"}
        for step in json.loads(path.read_text())["steps"]:
            answer = await call(client, step, kept)
            for place, value in (step.get("path") or {}).items() if answer.status < 300 else ():
                shown = str(kept.get(str(value).strip("{}"), value))
                if shown not in known.setdefault(place, []):
                    known[place].append(shown)


async def _try(tried: Tried, cases: int) -> None:
    schema = schemathesis.openapi.from_dict(document())
    found = [each.ok() for each in schema.get_all_operations() if isinstance(each, Ok)]
    assert {each.definition.raw["operationId"] for each in found} == set(operations())
    for each in found:
        await asyncio.to_thread(tried.operation, each, cases)
    said = ", ".join(f"{count} of {status}" for status, count in sorted(tried.statuses.items()))
    told.append(f"schemathesis: {tried.statuses.total()} cases of {len(found)} operations, answered with {said}")
    assert not tried.wrong, f"{len(tried.wrong)} faults:\n" + "\n".join(tried.wrong[:40])


async def test_the_service_keeps_to_its_document(tried: Tried) -> None:
    """WM-8, FL-10: no answer is a server error, and each has a status and a body that are documented."""
    await _try(tried, A_FEW)


@pytest.mark.soak
async def test_the_service_keeps_to_its_document_for_long(tried: Tried) -> None:
    """WM-8, FL-10"""
    await _try(tried, MANY)
