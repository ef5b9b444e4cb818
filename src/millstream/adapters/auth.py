"""Who calls: static API keys from the configuration, or the developer mode."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from millstream.domain.errors import Forbidden, Unauthenticated
from millstream.domain.principals import Principal, permissions_of
from millstream.domain.tenants import DEFAULT_TENANT

_MAX_TENANT: Final = 128


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key that callers may show; only its hash is known.

    Attributes:
        id: Its name in the configuration.
        sha256: SHA-256 of the key, in hexadecimal.
        tenant: The tenant it acts in.
        roles: Names of roles.
        agent: The agent it speaks for, or "".
        labels: Labels of that agent.
        name: What runs and audit call its holder; "" for its id.
    """

    id: str
    sha256: str
    tenant: str = DEFAULT_TENANT
    roles: tuple[str, ...] = ()
    agent: str = ""
    labels: tuple[str, ...] = ()
    name: str = ""


class ApiKeyAuthenticator:
    """Knows callers by their API keys, from `authorization: Bearer KEY` or `x-api-key: KEY`."""

    def __init__(self, keys: Iterable[ApiKey]) -> None:
        """Raises ValueError on an unknown role, a malformed hash or a key given twice."""
        self._principals: dict[bytes, Principal] = {}
        for key in keys:
            digest = _digest(key)
            if digest in self._principals:
                raise ValueError(f"API key {key.id!r}: another one has the same hash")
            try:
                permissions = permissions_of(list(key.roles))
            except KeyError as unknown:
                raise ValueError(f"API key {key.id!r}: there is no role {unknown.args[0]!r}") from None
            self._principals[digest] = Principal(
                name=key.name or key.id,
                tenant=key.tenant,
                permissions=permissions,
                agent=key.agent,
                labels=frozenset(key.labels),
            )
        if not self._principals:
            raise ValueError("no API key is configured")

    def authenticate(self, metadata: Mapping[str, str]) -> Principal:
        """The holder of the key. Raises Unauthenticated; Forbidden where x-tenant names another tenant than the key's.

        The key is found by its hash: the time that takes tells nothing of the keys that are known.
        """
        shown = _shown(metadata)
        if not shown:
            raise Unauthenticated("credentials are missing: send authorization: Bearer <key>, or x-api-key")
        principal = self._principals.get(sha256(shown.encode()).digest())
        if principal is None:
            raise Unauthenticated("the API key is not known")
        if metadata.get("x-tenant", principal.tenant) != principal.tenant:
            raise Forbidden(f"the API key is of the tenant {principal.tenant!r}, and x-tenant names another")
        return principal


class DeveloperAuthenticator:
    """Lets anyone in as an administrator; the configuration binds it to loopback."""

    def __init__(self) -> None:
        self._permissions = permissions_of(["admin"])
        self._default = self._principal(DEFAULT_TENANT)

    def authenticate(self, metadata: Mapping[str, str]) -> Principal:
        """The developer, in the tenant that `x-tenant` names. Raises Unauthenticated on an odd tenant."""
        tenant = metadata.get("x-tenant")
        if not tenant:
            return self._default
        if len(tenant) > _MAX_TENANT or not (tenant.isascii() and tenant.isprintable()):
            raise Unauthenticated("x-tenant must be at most 128 printable ASCII characters")
        return self._principal(tenant)

    def _principal(self, tenant: str) -> Principal:
        return Principal(name="developer", tenant=tenant, permissions=self._permissions)


def _digest(key: ApiKey) -> bytes:
    try:
        digest = bytes.fromhex(key.sha256)
    except ValueError:
        digest = b""
    if len(digest) != 32:
        raise ValueError(f"API key {key.id!r}: sha256 must be 64 hexadecimal digits")
    return digest


def _shown(metadata: Mapping[str, str]) -> str:
    scheme, _, token = metadata.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token:
        return token.strip()
    return metadata.get("x-api-key", "")
