"""TenantService: making and reading tenants."""

from google.protobuf.message import Message

from millstream.transport.context import Context
from millstream.transport.mapping.json import labels_text
from millstream.transport.mapping.pages import page_of, pagination
from millstream.transport.mapping.tenants import put_tenant
from millstream.transport.use_cases import Tenants
from millstream.wire.v1 import tenant_pb2
from millstream.wire.v1 import tenant_service_pb2 as wire


class TenantService:
    """Tenants over the wire."""

    def __init__(self, tenants: Tenants) -> None:
        self._tenants = tenants

    async def create_tenant(self, request: wire.CreateTenantRequest, context: Context) -> Message:
        """Create a tenant."""
        labels = labels_text(dict(request.labels)) if request.labels else ""
        made, replayed = await self._tenants.create(context.principal, request.slug, request.name, labels, context.key)
        context.replayed(replayed)
        return put_tenant(tenant_pb2.Tenant(), made)

    async def list_tenants(self, request: wire.ListTenantsRequest, context: Context) -> Message:
        """List tenants."""
        page = await self._tenants.list(context.principal, page_of(request))
        out = wire.ListTenantsResponse(pagination=pagination(page.info))
        for tenant in page.items:
            put_tenant(out.items.add(), tenant)
        return out

    async def get_tenant(self, request: wire.GetTenantRequest, context: Context) -> Message:
        """Get a tenant."""
        return put_tenant(tenant_pb2.Tenant(), await self._tenants.get(context.principal, request.slug))
