"""Room that several sessions of the dispatcher share."""

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from millstream.application.engine.sessions import Session


@dataclass(slots=True, eq=False)
class Pool:
    """Room that sessions share beside their own, a part of it at most for one tenant."""

    most: int
    most_of_tenant: int
    starved: "dict[str, Session]" = field(default_factory=dict)
    """Those that would have room of their own, in the order in which they found none here."""
    _taken: Counter[str] = field(default_factory=Counter)
    _total: int = 0

    def has_room(self, tenant: str) -> bool:
        """A task more of the tenant fits in."""
        return self._total < self.most and self._taken[tenant] < self.most_of_tenant

    def fed(self) -> "list[Session]":
        """Those that starved; they starve no more, or again."""
        found = [*self.starved.values()]
        self.starved.clear()
        return found

    def take(self, tenant: str, count: int) -> None:
        """So many tasks more, or (negative) fewer, are under way."""
        self._total += count
        self._taken[tenant] += count
        if not self._taken[tenant]:
            del self._taken[tenant]
