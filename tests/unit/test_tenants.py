"""Tenants through the client and the command line, against a scripted service."""

import json
from collections.abc import Iterator

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from tests.unit.scripted import Abort, ScriptedService, start
from typer.testing import CliRunner

from millstream.cli.app import app
from millstream.sdk import AccessError, Client
from millstream.v1 import tenant_pb2
from millstream.v1 import tenant_service_pb2 as wire


@pytest.fixture
def service() -> Iterator[ScriptedService]:
    service = ScriptedService()
    stop = start(service)
    yield service
    stop()


def tenant(slug: str = "acme") -> tenant_pb2.Tenant:
    created = Timestamp(seconds=1_700_000_000)
    return tenant_pb2.Tenant(
        id="t-1", slug=slug, name="Acme Inc.", labels={"team": "x"}, created_at=created, created_by="root"
    )


async def test_the_client_makes_gets_and_lists_tenants(service: ScriptedService) -> None:
    """FV-2, FV-14"""
    service.answer("TenantService/CreateTenant", tenant())
    service.answer("TenantService/GetTenant", tenant())
    first = wire.ListTenantsResponse(items=[tenant()], pagination={"next_page_token": "t"})  # type: ignore[arg-type]
    service.answer("TenantService/ListTenants", first, wire.ListTenantsResponse(items=[tenant("other")]))
    async with Client(service.target) as client:
        made = await client.tenants.create("acme", name="Acme Inc.", labels={"team": "x"}, idempotency_key="k")
        assert await client.tenants.get("acme") == made
        assert [each.slug for each in await client.tenants.list().all()] == ["acme", "other"]
    assert (made.id, made.slug, made.name, made.created_by, made.labels) == (
        "t-1", "acme", "Acme Inc.", "root", {"team": "x"},
    )  # fmt: skip
    assert made.created_at is not None
    asked = service.calls[0]
    assert (asked.request.slug, asked.request.name, dict(asked.request.labels)) == ("acme", "Acme Inc.", {"team": "x"})
    assert asked.metadata["x-idempotency-key"] == "k"
    assert service.calls[-1].request.page_token == "t"


async def test_who_may_not_make_tenants_is_told_so(service: ScriptedService) -> None:
    """FV-2"""
    service.answer("TenantService/CreateTenant", Abort(grpc.StatusCode.PERMISSION_DENIED, "no", "FORBIDDEN"))
    async with Client(service.target) as client:
        with pytest.raises(AccessError):
            await client.tenants.create("acme")


def test_the_commands_make_show_and_list_tenants(service: ScriptedService) -> None:
    """FV-2, FV-14"""
    service.answer("TenantService/CreateTenant", tenant())
    service.answer("TenantService/GetTenant", tenant())
    service.answer("TenantService/ListTenants", wire.ListTenantsResponse(items=[tenant()]))

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["tenants", *arguments], env={"MILLSTREAM_TARGET": service.target})
        assert result.exit_code == 0, result.output
        return result.stdout

    assert "Acme Inc." in run("create", "acme", "--name", "Acme Inc.", "--label", "team=x")
    assert service.calls[0].request.labels == {"team": "x"}
    assert "root" in run("get", "acme")
    assert json.loads(run("get", "acme", "--json"))["slug"] == "acme"
    assert "acme" in run("list")
