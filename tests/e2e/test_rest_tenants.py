"""Tenants over REST: made and read in camelCase, and what one learns of another."""

from __future__ import annotations

import uuid

import httpx
import pytest
from tests.e2e.answers import check_error, check_ok
from tests.e2e.stack import Stack

Client = httpx.AsyncClient
TENANT = {"id", "slug", "name", "labels", "createdAt", "createdBy"}


async def test_a_tenant_is_made_and_read(rest: Client, tenant: str) -> None:
    """FV-2: POST /api/tenants, GET /api/tenants/{slug}, with camelCase names; 201, once."""
    request = {"slug": tenant, "name": "Acme Inc.", "labels": {"team": "red"}}
    made = check_ok(await rest.post("/api/tenants", json=request), 201)
    assert set(made) == TENANT
    assert {name: made[name] for name in ("slug", "name", "labels", "createdBy")} == {
        "slug": tenant, "name": "Acme Inc.", "labels": {"team": "red"}, "createdBy": "developer",
    }  # fmt: skip
    assert check_ok(await rest.get(f"/api/tenants/{tenant}")) == made
    check_error(await rest.post("/api/tenants", json=request), 409, "CONFLICT")
    default = check_ok(await rest.get("/api/tenants/default"))
    assert (default["slug"], default["name"], default["createdBy"]) == ("default", "default", "")
    check_error(await rest.get(f"/api/tenants/{uuid.uuid4().hex}"), 404, "NOT_FOUND")


async def test_an_idempotency_key_makes_one_tenant(rest: Client, tenant: str) -> None:
    """FL-8"""
    key = {"x-idempotency-key": uuid.uuid4().hex}
    first = await rest.post("/api/tenants", json={"slug": tenant}, headers=key)
    again = await rest.post("/api/tenants", json={"slug": tenant}, headers=key)
    assert check_ok(again, 201) == check_ok(first, 201)
    assert again.headers["idempotency-replayed"] == "true"


async def test_tenants_are_listed_in_pages(rest: Client, tenant: str) -> None:
    """FV-2: names of pages are in camelCase too; requests may have either style."""
    check_ok(await rest.post("/api/tenants", json={"slug": tenant}), 201)
    page = check_ok(await rest.get("/api/tenants", params={"pageSize": 1, "pageToken": ""}))
    assert set(page["pagination"]) == {"pageSize", "nextPageToken"}
    slugs = [page["items"][0]["slug"]]
    while token := page["pagination"].get("nextPageToken"):
        page = check_ok(await rest.get("/api/tenants", params={"page_size": 100, "page_token": token}))
        slugs += [each["slug"] for each in page["items"]]
    assert slugs == sorted(set(slugs))
    assert {tenant, "default"} <= set(slugs)


@pytest.mark.parametrize("slug", [None, "", "Acme", "a b", "-a", "a" * 64])
async def test_an_odd_slug_is_refused(rest: Client, slug: str | None) -> None:
    """FL-10: by its field."""
    request = {"slug": slug} if slug is not None else {}
    check_error(await rest.post("/api/tenants", json=request), 422, "VALIDATION_ERROR", "slug")


async def test_paths_of_tenants_refuse_as_all_others(rest: Client) -> None:
    """FL-10: unknown fields, malformed JSON, other methods, other paths."""
    check_error(await rest.post("/api/tenants", json={"slug": "a", "nonsense": 1}), 422, "VALIDATION_ERROR", "nonsense")
    check_error(await rest.post("/api/tenants", content="{"), 400, "BAD_REQUEST")
    check_error(await rest.delete("/api/tenants/default"), 405, "METHOD_NOT_ALLOWED")
    check_error(await rest.get("/api/tenants/default/nonsense"), 404, "NOT_FOUND")


async def test_administrators_of_a_tenant_see_their_own_alone(locked: Stack) -> None:
    """Invariant, WM-9: the tenants of configured keys are known; nobody but the default tenant's administrators makes
    or sees others."""
    acme = await locked.rest(authorization="Bearer admin-key")
    other = await locked.rest(authorization="Bearer other-key")
    assert check_ok(await acme.get("/api/tenants/acme"))["slug"] == "acme"
    check_error(await other.get("/api/tenants/acme"), 404, "NOT_FOUND")
    check_error(await acme.get("/api/tenants/default"), 404, "NOT_FOUND")
    listed = check_ok(await other.get("/api/tenants"))
    assert [each["slug"] for each in listed["items"]] == ["umbrella"]
    check_error(await acme.post("/api/tenants", json={"slug": "third"}), 403, "FORBIDDEN")
    check_error(await acme.get("/api/tenants/acme", headers={"x-tenant": "umbrella"}), 403, "FORBIDDEN")
