"""Tenants: made and read."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from millstream.sdk.calls import Area, Listing
from millstream.sdk.results import when
from millstream.v1 import tenant_service_pb2 as wire


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who shares an installation."""

    id: str
    slug: str
    name: str
    created_at: datetime | None
    created_by: str
    """Empty for one that the configuration names."""
    labels: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_wire(cls, wire: Any) -> "Tenant":
        """The value of a Tenant, or of a response with a tenant's fields."""
        created_at = when(wire, "created_at")
        return cls(wire.id, wire.slug, wire.name, created_at, wire.created_by, dict(wire.labels))


class Tenants(Area):
    """Makes tenants, for administrators of the tenant "default", and reads them."""

    async def create(
        self, slug: str, *, name: str = "", labels: Mapping[str, str] | None = None, idempotency_key: str = ""
    ) -> Tenant:
        """Creates a tenant.

        Args:
            slug: lower-case letters, digits and hyphens, at most 63.
            name: its name for people. Default: the slug.
            labels: at most 32.
            idempotency_key: the same key again makes nothing and gives the first answer. Default: one per call.

        Raises:
            AccessError: the caller does not look after all tenants.
            ConflictError: there is one of this slug.
            ServiceError: the service refused it.
        """
        request = wire.CreateTenantRequest(slug=slug, name=name, labels=labels or {})
        answer = await self._calls.write(
            "TenantService/CreateTenant", request, wire.CreateTenantResponse, key=idempotency_key
        )
        return Tenant.from_wire(answer.message)

    async def get(self, slug: str) -> Tenant:
        """Gets a tenant."""
        request = wire.GetTenantRequest(slug=slug)
        return Tenant.from_wire(await self._calls.read("TenantService/GetTenant", request, wire.GetTenantResponse))

    def list(self, *, page_size: int = 100) -> Listing[Tenant]:
        """Lists tenants by their slugs: those that the caller may see."""

        async def fetch(cursor: str | None) -> tuple[list[Tenant], str | None]:
            request = wire.ListTenantsRequest(page_size=page_size, page_token=cursor or "")
            page = await self._calls.read("TenantService/ListTenants", request, wire.ListTenantsResponse)
            return [Tenant.from_wire(item) for item in page.items], page.pagination.next_page_token

        return Listing(fetch)
