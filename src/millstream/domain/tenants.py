"""Tenants: who shares an installation, and learns nothing of each other."""

from dataclasses import dataclass
from typing import Final

from millstream.domain.principals import Principal

DEFAULT_TENANT: Final = "default"
"""The tenant of whoever names none; its administrators look after all of them."""


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant.

    Attributes:
        slug: Its name in paths and keys.
        labels: JSON object as text, or "".
        created_by: Who made it, "" for one that the configuration names.
    """

    slug: str
    id: str
    name: str
    labels: str
    created_us: int
    created_by: str = ""


def sees_all(principal: Principal) -> bool:
    """Whether the caller looks after all tenants."""
    return principal.tenant == DEFAULT_TENANT and "tenants.write" in principal.permissions
