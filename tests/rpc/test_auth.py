"""Who calls: API keys by their hashes, and the developer."""

from hashlib import sha256
from typing import Any

import pytest

from millstream.adapters.auth import ApiKey, ApiKeyAuthenticator, DeveloperAuthenticator
from millstream.domain.errors import Forbidden, Unauthenticated


def _key(secret: str = "s3cret", **more: Any) -> ApiKey:
    return ApiKey(**({"id": "k", "sha256": sha256(secret.encode()).hexdigest(), "roles": ("worker",)} | more))


def test_a_key_stands_for_its_principal() -> None:
    keys = ApiKeyAuthenticator([_key(tenant="t", agent="payments", labels=("eu",), name="Payments")])
    for metadata in ({"authorization": "Bearer s3cret"}, {"authorization": "bearer s3cret"}, {"x-api-key": "s3cret"}):
        who = keys.authenticate(metadata)
        assert (who.name, who.tenant, who.agent, who.labels) == ("Payments", "t", "payments", frozenset({"eu"}))
        who.require("worker.serve")
        with pytest.raises(Forbidden):
            who.require("admin")


@pytest.mark.parametrize(
    "metadata",
    [{}, {"authorization": ""}, {"authorization": "Basic s3cret"}, {"x-api-key": "other"}, {"x-api-key": "é"}],
)
def test_others_are_nobody(metadata: dict[str, str]) -> None:
    """WM-9"""
    with pytest.raises(Unauthenticated):
        ApiKeyAuthenticator([_key()]).authenticate(metadata)


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ([], "no API key"),
        ([_key(roles=("king",))], "no role 'king'"),
        ([_key(sha256="abc")], "64 hexadecimal digits"),
        ([_key(), _key(id="again")], "same hash"),
    ],
)
def test_keys_that_cannot_work_are_told(keys: list[ApiKey], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        ApiKeyAuthenticator(keys)


def test_the_developer_is_an_administrator_of_any_tenant() -> None:
    developer = DeveloperAuthenticator()
    assert developer.authenticate({}).tenant == "default"
    who = developer.authenticate({"x-tenant": "acme"})
    assert (who.name, who.tenant) == ("developer", "acme")
    who.require("admin")
    with pytest.raises(Unauthenticated):
        developer.authenticate({"x-tenant": "x" * 129})
