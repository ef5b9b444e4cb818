"""Streams of runs in a browser: its own EventSource, and the reader of docs/events.md for those who send a key."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.documentation.browser import Page, browsing, program
from tests.e2e.answers import check_ok
from tests.e2e.stack import Stack, rest_client, running_stack

from millstream.sdk import Client
from millstream.transport.mapping.run_streams import NAMES

EVENTS = Path(__file__).parents[2] / "docs" / "events.md"
KEY = "operator-key"
# What a page does with a stream; `got` are names and ids in the order that they came, `broken` counts what broke off.
WATCHING = """(() => {
    window.got = []; window.broken = 0; window.beats = 0;
    const source = window.source = new EventSource(%s);
    for (const name of [...%s, "end"]) source.addEventListener(name, (event) => got.push([name, event.lastEventId]));
    source.addEventListener("heartbeat", () => beats++);
    source.addEventListener("error", () => broken++);
    source.addEventListener("end", () => source.close());
    return 1;
})()"""
GIVEN_UP = 2  # the readyState of an EventSource that tries no more


@pytest.fixture
async def page() -> AsyncIterator[Page]:
    """A page of a headless browser."""
    found = program()
    if found is None:
        pytest.skip("no Chromium is installed (Debian: apt install chromium)")
    async with browsing(found) as opened:
        yield opened


async def opened(page: Page, stack: Stack) -> None:
    """Have the page be of the service: it asks for streams of its own origin."""
    await page.open(f"{stack.url}/docs")
    await page.until("document.readyState === 'complete' && location.pathname === '/docs'")


async def begun(client: httpx.AsyncClient) -> str:
    """The run of a task that nobody does."""
    return str(check_ok(await client.post("/api/v1/tasks", json={"kind": "never"}), 201)["run_id"])


async def cancelled(stack: Stack, run_id: str, key: str | None = None) -> None:
    """Cancel a run, at the server itself: the proxy may still believe that it is away."""
    async with Client(stack.native(), api_key=key) as client:
        await client.runs.cancel(run_id)


async def stored(client: httpx.AsyncClient, run_id: str) -> list[list[str]]:
    """What a page is to have got of a run that has ended."""
    items = check_ok(await client.get(f"/api/v1/runs/{run_id}/events"))["items"]
    listed = [[each["type"].lower(), str(each["sequence"])] for each in items]
    return [*listed, ["end", listed[-1][1]]]


def watching(run_id: str) -> str:
    return WATCHING % (json.dumps(f"/api/v1/runs/{run_id}/stream"), json.dumps([*NAMES.values()]))


async def test_an_event_source_outlasts_a_restart_and_a_kill(page: Page) -> None:
    """FV-7: as it is, without a line of the page's own: each event once and in order, over a server that is restarted,
    and one that is killed and away for a while."""
    async with running_stack({"auth_mode": "developer"}) as stack, rest_client(stack.url) as client:
        run_id = await begun(client)
        await opened(page, stack)
        await page.value(watching(run_id))
        await page.until("got.length >= 2 && beats >= 1")
        await stack.restart(0)
        await page.until("broken >= 1 && beats >= 2")
        before = await page.value("broken")
        await stack.servers[0].kill()
        # It comes again, and again, while nobody is there.
        await page.until(f"broken >= {before} + 2")
        assert await page.value("source.readyState") != GIVEN_UP
        await stack.restart(0)
        await cancelled(stack, run_id)
        await page.until("got.some(([name]) => name === 'end')")
        assert await page.value("got") == await stored(client, run_id)


async def test_an_event_source_waits_for_room(page: Page) -> None:
    """FV-7: of more streams than a tenant may have the last is put off, and comes when another has ended."""
    settings = {"auth_mode": "developer", "max_streams_per_tenant": "1"}
    async with running_stack(settings) as stack, rest_client(stack.url) as client:
        run_id = await begun(client)
        await opened(page, stack)
        await page.value(watching(run_id))
        await page.until("got.length >= 2")
        await page.value("(() => { window.first = source; return 1; })()")
        await page.value(watching(run_id))
        await page.until("broken >= 1")
        assert await page.value("[source.readyState, got.length]") == [0, 0]
        await page.value("first.close()")
        await page.until("got.length >= 2")


def reader() -> str:
    """The reader of the documentation, without the line that calls it."""
    blocks: list[str] = re.findall(r"```js\n(.*?)```", EVENTS.read_text(), re.DOTALL)
    (found,) = [block for block in blocks if "async function follow(" in block]
    return found.partition("\n}\n")[0] + "\n}\n"


async def test_a_page_with_a_key_reads_a_stream_by_fetch(page: Page) -> None:
    """WM-9: an EventSource sends no key, and is refused; the reader of docs/events.md sends one, and goes on as an
    EventSource does."""
    keys: list[dict[str, Any]] = [
        {"id": KEY, "roles": ["operator"], "tenant": "acme", "sha256": sha256(KEY.encode()).hexdigest()}
    ]
    settings = {"api_keys": json.dumps(keys)}
    async with running_stack(settings) as stack, rest_client(stack.url, authorization=f"Bearer {KEY}") as client:
        run_id = await begun(client)
        await opened(page, stack)
        await page.value(watching(run_id))
        await page.until(f"source.readyState === {GIVEN_UP}")
        call = f"follow('/api/v1/runs/{run_id}/stream', {{ authorization: 'Bearer {KEY}' }}, take)"
        await page.value(f"""(() => {{
            {reader()}
            window.seen = [];
            const take = (name, data) => seen.push([name, String(data.sequence ?? "")]);
            {call}.then(() => seen.push(["end", ""]), (error) => seen.push(["refused", String(error)]));
            return 1;
        }})()""")
        await page.until("seen.some(([name]) => name === 'task_created')")
        await stack.servers[0].kill()
        await stack.restart(0)
        await cancelled(stack, run_id, KEY)
        await page.until("seen.some(([name]) => name === 'end')")
        found = [each for each in await page.value("seen") if each[0] not in ("heartbeat", "error")]
        assert found[:-1] == (await stored(client, run_id))[:-1]
        assert found[-1] == ["end", ""]
        nobody = f"follow('/api/v1/runs/{run_id}/stream', {{}}, () => 0).catch((error) => error.message)"
        assert "UNAUTHENTICATED" in await page.value(f"(() => {{ {reader()} return {nobody}; }})()")
