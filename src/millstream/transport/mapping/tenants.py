"""Tenants."""

from millstream.domain.tenants import Tenant
from millstream.transport.mapping.json import labels_of
from millstream.transport.mapping.times import put
from millstream.wire.v1 import tenant_pb2


def put_tenant(out: tenant_pb2.Tenant, tenant: Tenant) -> tenant_pb2.Tenant:
    """Write a tenant."""
    out.id = tenant.id
    out.slug = tenant.slug
    out.name = tenant.name
    if tenant.labels:
        out.labels.update(labels_of(tenant.labels))
    put(out.created_at, tenant.created_us)
    out.created_by = tenant.created_by
    return out
