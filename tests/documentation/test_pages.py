"""The pages that show the documentation: served whole, with nothing from elsewhere, and at work in a browser."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from tests.documentation.browser import Page, browsing, program
from tests.e2e.answers import check_error
from tests.e2e.stack import Stack

FILES = Path(__file__).parents[2] / "src" / "millstream" / "adapters" / "pages" / "files"
OF_PAGES = ("swagger-ui-bundle.js", "swagger-ui.css", "swagger.js", "redoc.standalone.js", "redoc.js")


@pytest.mark.parametrize("path", ["/docs", "/api/docs", "/redoc"])
async def test_a_page_loads_what_this_service_has_and_nothing_else(path: str, client: httpx.AsyncClient) -> None:
    """WM-8, FV-8"""
    page = await client.get(path)
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["connect-src"] == "'self'"
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert loaded
    for address in loaded:
        assert address.startswith("/docs/files/")
        assert (await client.get(address)).status_code == 200


@pytest.mark.parametrize("name", OF_PAGES)
async def test_a_file_of_a_page_comes_whole(name: str, client: httpx.AsyncClient) -> None:
    """Also those of more than a megabyte, and compressed for those who take that."""
    plain = await client.get(f"/docs/files/{name}", headers={"accept-encoding": "identity"})
    assert plain.content == (FILES / name).read_bytes()
    assert plain.headers["x-content-type-options"] == "nosniff"
    packed = await client.get(f"/docs/files/{name}", headers={"accept-encoding": "gzip"})
    assert packed.content == plain.content
    assert packed.headers.get("content-encoding") == ("gzip" if len(plain.content) > 1024 else None)


async def test_no_other_file_is_given_away(client: httpx.AsyncClient) -> None:
    for name in ("none.js", "r.md", "swagger.html.py"):
        check_error(await client.get(f"/docs/files/{name}"), 404, "NOT_FOUND")
    for name in ("README.md", "__init__.py"):
        check_error(await client.get(f"/docs/files/{name}"), 422, "VALIDATION_ERROR", "name")
    assert (await client.get("/docs/files/..%2f__init__.py")).status_code in (404, 422)


@pytest.fixture
async def page() -> AsyncIterator[Page]:
    """A page of a headless browser."""
    found = program()
    if found is None:
        pytest.skip("no Chromium is installed (Debian: apt install chromium)")
    async with browsing(found) as opened:
        yield opened


def only_from(page: Page, service: Stack) -> None:
    """Check that the page asked nobody else for anything, and met no fault."""
    elsewhere = [each for each in page.requests if not each.startswith((service.url, "data:", "blob:", "about:"))]
    assert elsewhere == []
    assert page.complaints == []


async def test_an_operation_is_executed_from_swagger_ui(page: Page, service: Stack, tmp_path: Path) -> None:
    """FV-8, WM-8: publish an order and wait, with the example that the page offers."""
    await page.open(f"{service.url}/docs")
    await page.until("document.querySelectorAll('.opblock-tag').length > 10")
    await page.picture(tmp_path / "docs.png")
    await page.value("document.querySelector('#operations-tag-ArtifactService').click()")
    block = "document.querySelector('#operations-ArtifactService-PublishSync')"
    await page.until(f"{block}.querySelector('.opblock-summary-control')")
    await page.value(f"{block}.querySelector('.opblock-summary-control').click()")
    await page.until(f"{block}.querySelector('.try-out__btn')")
    await page.value(f"{block}.querySelector('.try-out__btn').click()")
    await page.until(f"{block}.querySelector('.execute')")
    assert '"Order"' in await page.until(f"{block}.querySelector('textarea').value")
    await page.value(f"{block}.querySelector('.execute').click()")
    status = await page.until(f"{block}.querySelector('.live-responses-table tbody .response-col_status').innerText")
    shown = await page.until(f"{block}.querySelector('.live-responses-table .highlight-code').innerText")
    await page.value(f"{block}.querySelector('.live-responses-table').scrollIntoView()")
    await page.picture(tmp_path / "executed.png")
    assert status.split()[0] == "200"
    assert '"completed": true' in shown
    assert '"Notification"' in shown
    only_from(page, service)


async def test_redoc_shows_every_operation(page: Page, service: Stack, tmp_path: Path) -> None:
    """WM-8"""
    await page.open(f"{service.url}/redoc")
    await page.until("document.body.innerText.includes('Publishes an artifact and returns at once')")
    shown = await page.value("document.querySelectorAll('[data-section-id]').length")
    await page.picture(tmp_path / "redoc.png")
    assert shown > 100
    only_from(page, service)
