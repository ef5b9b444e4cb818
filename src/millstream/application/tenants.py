"""Tenants: making and reading them."""

import json
import logging
from collections.abc import Iterable
from typing import Protocol

from millstream.application.catalog import Registry
from millstream.application.ids import new_id
from millstream.application.paging import Page, PageRequest, decode_token, encode_token, page_info, token_of
from millstream.application.registry_keys import claim, claimed
from millstream.application.views.idempotency import Key
from millstream.domain.errors import Conflict, Forbidden, NotFound
from millstream.domain.principals import Principal
from millstream.domain.tenants import DEFAULT_TENANT, Tenant, sees_all

log = logging.getLogger(__name__)

TENANTS_MOST = 10_000


class TenantStore(Protocol):
    """Reads tenants, and keeps those that the configuration names; see store.tenants."""

    async def tenant(self, slug: str) -> Tenant | None: ...
    async def tenants(self, after: str, skip: int, limit: int) -> list[Tenant]: ...
    async def count(self) -> int: ...
    async def keep(self, ids: dict[str, str]) -> None: ...


class Tenants:
    """The use cases of tenants.

    Args:
        key_ttl_us: How long an idempotency key holds, microseconds.
        configured: Slugs that the configuration names.
    """

    def __init__(self, registry: Registry, store: TenantStore, key_ttl_us: int, configured: Iterable[str]) -> None:
        self._registry = registry
        self._key_ttl_us = key_ttl_us
        self._store = store
        self._configured = {DEFAULT_TENANT, *configured}

    async def start(self) -> None:
        """Keep the tenants that the configuration names: who has a key of one has not been told to make it. A database
        that is not migrated yet is told of by readiness, and keeps them at the next start."""
        try:
            await self._store.keep({slug: new_id() for slug in sorted(self._configured)})
        except Exception as error:
            log.warning("the tenants of the configuration were not stored: %s", error)

    async def create(
        self, principal: Principal, slug: str, name: str, labels: str, key: Key | None
    ) -> tuple[Tenant, bool]:
        """Make a tenant; whether it is a replay. Raises Forbidden, Conflict, IdempotencyConflict."""
        if not sees_all(principal):
            raise Forbidden(f"tenants are made by administrators of the tenant {DEFAULT_TENANT!r}")
        async with self._registry.transaction(principal.tenant) as change:
            earlier = await claimed(change, principal, key)
            if earlier is not None:
                known = await change.tenants.find(json.loads(earlier.response)[0])
                if known is None:
                    raise NotFound("the tenant of this idempotency key is gone")
                return known, True
            if await change.tenants.count() >= TENANTS_MOST:
                raise Conflict(f"there are at most {TENANTS_MOST} tenants")
            made = Tenant(slug, new_id(), name or slug, labels, change.now_us, principal.name)
            if not await change.tenants.add(made):
                raise Conflict(f"there is a tenant {slug!r}")
            await claim(change, principal, key, [slug], self._key_ttl_us)
        return made, False

    async def get(self, principal: Principal, slug: str) -> Tenant:
        """A tenant. Raises NotFound, of others than its own to whoever does not look after them too."""
        found = await self._store.tenant(slug) if slug == principal.tenant or sees_all(principal) else None
        if found is None:
            raise NotFound(f"there is no tenant {slug!r}")
        return found

    async def list(self, principal: Principal, request: PageRequest) -> Page[Tenant]:
        """The tenants that the caller may see, by their slugs. Raises ValidationFailed."""
        request.check()
        after = decode_token(request.page_token, token_of("tenants"), str)[1] if request.page_token else ""
        if sees_all(principal):
            found, total = await self._store.tenants(after, request.skip, request.size), await self._store.count()
        else:
            own = await self._store.tenant(principal.tenant)
            total = 1 if own is not None else 0
            found = [own] if own is not None and not request.skip and own.slug > after else []
        page = found[: request.size]
        token = encode_token("tenants", page[-1].slug) if len(found) > len(page) else ""
        return Page(page, page_info(request, None if request.page_token is not None else (total, False), token))
