"""Tenants over the wire."""

import grpc
import pytest
from tests.rpc.conftest import Service
from tests.rpc.fakes import ID
from tests.rpc.test_services import _ask, _refused

_ACME = {
    "id": ID,
    "slug": "acme",
    "name": "Acme",
    "labels": {"a": "b"},
    "created_at": "2023-11-14T22:13:20.123456Z",
}


async def test_tenants(service: Service) -> None:
    """FV-2: made, read, listed."""
    request = {"slug": "acme", "name": "Acme", "labels": {"a": "b"}}
    assert await _ask(service, "TenantService/CreateTenant", request) == _ACME | {"created_by": "root"}
    assert service.fakes.tenants.calls[-1][2:] == ("acme", "Acme", '{"a":"b"}', None)
    assert await _ask(service, "TenantService/GetTenant", {"slug": "acme"}) == _ACME
    out = await _ask(service, "TenantService/ListTenants", {"page": 1})
    assert out["items"] == [{name: value for name, value in _ACME.items() if name != "labels"}]


@pytest.mark.parametrize("slug", ["", "Acme", "-acme", "acme-", "a_b", "a/b", "a.b", "ä", "a" * 64])
async def test_an_odd_slug_is_refused(service: Service, slug: str) -> None:
    """FV-2: lower-case letters, digits and hyphens between them."""
    assert await _refused(service, "TenantService/CreateTenant", {"slug": slug}) == "slug"


@pytest.mark.parametrize("slug", ["a", "0", "a-b", "a--b", "7" * 63])
async def test_a_plain_slug_is_taken(service: Service, slug: str) -> None:
    """FV-2"""
    assert (await _ask(service, "TenantService/CreateTenant", {"slug": slug}))["slug"] == slug


@pytest.mark.parametrize("key", ["reader", "maker"])
async def test_only_administrators_make_tenants(service: Service, key: str) -> None:
    """FV-2"""
    refused = (await service.call("TenantService/CreateTenant", b"", key=key)).error
    assert refused is not None
    assert refused.code() is grpc.StatusCode.PERMISSION_DENIED
    assert (await service.call("TenantService/ListTenants", b"", key=key)).error is None
