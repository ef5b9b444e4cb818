"""Tenants: made by those who look after all, seen by themselves alone."""

import asyncio

import pytest
from tests.engine.database import Database
from tests.engine.servers import Start, server
from tests.engine.world import key, principal

from millstream.application import tenants
from millstream.application.paging import PageRequest
from millstream.application.views.promises import PromiseQuery
from millstream.config import ApiKeySettings
from millstream.domain.errors import Conflict, Forbidden, IdempotencyConflict, NotFound
from millstream.domain.tenants import Tenant

ADMIN = principal("root", "default")


async def test_a_tenant_is_made_once_and_read_at_any_server(start: Start) -> None:
    """FV-2: by its slug, with its name and labels; of two that are made at once one is."""
    first, second = await start()
    calls = [each.tenants.create(ADMIN, "acme", "Acme Inc.", '{"a":"b"}', None) for each in (first, second) * 2]
    told = await asyncio.gather(*calls, return_exceptions=True)
    made = [each[0] for each in told if isinstance(each, tuple)]
    assert len(made) == 1
    assert sum(isinstance(each, Conflict) for each in told) == 3
    assert (made[0].slug, made[0].name, made[0].labels, made[0].created_by) == (
        "acme",
        "Acme Inc.",
        '{"a":"b"}',
        "root",
    )
    assert await second.tenants.get(ADMIN, "acme") == made[0]
    assert (await first.tenants.create(ADMIN, "umbrella", "", "", None))[0].name == "umbrella"


async def test_a_key_makes_one_tenant(start: Start) -> None:
    """FL-8"""
    first, second = await start()
    made, replayed = await first.tenants.create(ADMIN, "acme", "", "", key("k", "CreateTenant"))
    again = await second.tenants.create(ADMIN, "acme", "", "", key("k", "CreateTenant"))
    assert (replayed, again) == (False, (made, True))
    with pytest.raises(IdempotencyConflict):
        await second.tenants.create(ADMIN, "other", "", "", key("k", "CreateTenant", "other"))


async def test_a_tenant_learns_nothing_of_the_others(start: Start) -> None:
    """Invariant, FV-2: its administrators neither make tenants nor see more than their own."""
    first, second = await start()
    for slug in ("acme", "umbrella"):
        await first.tenants.create(ADMIN, slug, "", "", None)
    theirs = principal("root", "acme")
    with pytest.raises(Forbidden):
        await second.tenants.create(theirs, "third", "", "", None)
    with pytest.raises(Forbidden):
        await second.tenants.create(principal("root", "default", "operator"), "third", "", "", None)
    assert (await second.tenants.get(theirs, "acme")).slug == "acme"
    for slug in ("umbrella", "default", "nowhere"):
        with pytest.raises(NotFound, match=f"there is no tenant '{slug}'"):
            await second.tenants.get(theirs, slug)
    page = await second.tenants.list(theirs, PageRequest())
    assert ([each.slug for each in page.items], page.info.total) == (["acme"], 1)
    unknown = await second.tenants.list(principal("root", "nowhere"), PageRequest())
    assert (unknown.items, unknown.info.total) == ([], 0)


async def test_tenants_are_listed_by_their_slugs(start: Start) -> None:
    """FV-2: in pages."""
    first, second = await start()
    for slug in ("c", "a", "b"):
        await first.tenants.create(ADMIN, slug, "", "", None)

    async def page(**fields: object) -> tuple[list[str], str | None]:
        found = await second.tenants.list(ADMIN, PageRequest(**fields))  # type: ignore[arg-type]
        return [each.slug for each in found.items], found.info.next_page_token

    assert await page() == (["a", "b", "c", "default"], None)
    slugs, token = await page(page_size=3, page_token="")
    assert slugs == ["a", "b", "c"]
    assert await page(page_size=3, page_token=token) == (["default"], None)
    assert (await page(page_size=3, page=2))[0] == ["default"]


async def test_tenants_of_the_configuration_are_known(database: Database) -> None:
    """FV-2: a credential's tenant exists by being configured, the default one always; a restart changes nothing."""
    keys = [ApiKeySettings(id=slug, sha256="0" * 64, tenant=slug, roles=["admin"]) for slug in ("acme", "Odd Name")]
    known: list[list[Tenant]] = []
    for _ in range(2):
        async with server(database, api_keys=keys) as service:
            known.append((await service.tenants.list(ADMIN, PageRequest())).items)
            with pytest.raises(Conflict, match="there is a tenant 'acme'"):
                await service.tenants.create(ADMIN, "acme", "", "", None)
    assert [each.slug for each in known[0]] == ["Odd Name", "acme", "default"]
    assert known[1] == known[0]


async def test_there_is_a_bound_on_tenants(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant: nothing without a bound."""
    monkeypatch.setattr(tenants, "TENANTS_MOST", 2)
    first, _ = await start()
    await first.tenants.create(ADMIN, "acme", "", "", None)
    with pytest.raises(Conflict, match="at most 2 tenants"):
        await first.tenants.create(ADMIN, "umbrella", "", "", None)


async def test_a_server_starts_on_a_database_that_is_not_migrated_yet(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """Architecture: readiness says what is in the way; a server that cannot start says nothing to anyone who asks."""
    await database.execute("DROP TABLE tenant")
    async with server(database) as service:
        assert (await service.promises.list(ADMIN, PromiseQuery(), PageRequest())).items == []
    assert "the tenants of the configuration were not stored" in caplog.text
