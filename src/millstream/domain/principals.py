"""Who calls, and what their roles let them do."""

from dataclasses import dataclass, field

from millstream.domain.errors import Forbidden

_VIEW = frozenset(
    {
        "artifacts.read",
        "artifacts.read_all",
        "types.read",
        "agents.read",
        "runs.read",
        "tasks.read",
        "workers.read",
        "promises.read",
        "workflows.read",
        "tenants.read",
    }
)
_OPERATE = _VIEW | {
    "artifacts.publish",
    "types.write",
    "agents.write",
    "workflows.write",
    "workflows.execute",
    "runs.start",
    "runs.signal",
    "runs.cancel",
    "runs.retry",
    "runs.pause",
    "tasks.create",
    "tasks.cancel",
    "promises.create",
    "promises.settle",
    "queues.write",
}
_WORK = frozenset(
    {
        "artifacts.read",
        "artifacts.publish",
        "types.read",
        "types.write",
        "agents.read",
        "agents.write",
        "tasks.create",
        "tasks.read",
        "runs.read",
        "promises.create",
        "promises.read",
        "promises.settle",
        "workflows.read",
        "tenants.read",
        "runs.start",
        "runs.signal",
        "worker.serve",
        "workers.read",
    }
)

ROLES: dict[str, frozenset[str]] = {
    "viewer": _VIEW,
    "operator": _OPERATE,
    "worker": _WORK,
    "admin": _OPERATE | _WORK | {"admin", "tenants.write"},
}
"""Permissions by role."""


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated caller.

    Attributes:
        name: Unique in the tenant; scope of idempotency keys, and author of runs.
        tenant: The tenant it acts in.
        permissions: What it may do, the union of its roles.
        agent: Name of the agent it speaks for, or "".
        labels: Labels that Labelled artifacts may require of a reader.
    """

    name: str
    tenant: str
    permissions: frozenset[str]
    agent: str = ""
    labels: frozenset[str] = field(default_factory=frozenset)

    def require(self, permission: str) -> None:
        """Raise Forbidden unless the permission is granted."""
        if permission not in self.permissions:
            raise Forbidden(f"this needs the permission {permission!r}, which {self.name!r} does not have")


def permissions_of(roles: list[str]) -> frozenset[str]:
    """The union of the roles' permissions. Raises KeyError on an unknown role."""
    return frozenset().union(*(ROLES[role] for role in roles))
