"""How many calls a server serves at once.

Under more load than it can carry a server must not take in more: every call it holds makes all of them later, until
nobody waits for the answers any more. What it refuses at the door costs it little, and comes again.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator

from millstream.domain.errors import RateLimited

_RETRY_AFTER_S = 1.0


class Admission:
    """The calls under way, bounded in all and by tenant.

    Args:
        most: Calls at once.
        most_of_tenant: Of them for one tenant, so that one that floods leaves room for the others.
    """

    def __init__(self, most: int = 4096, most_of_tenant: int = 3072) -> None:
        self._most = most
        self._most_of_tenant = most_of_tenant
        self._all = 0
        self._by_tenant: Counter[str] = Counter()

    def __len__(self) -> int:
        return self._all

    @contextlib.contextmanager
    def room(self, tenant: str) -> Iterator[None]:
        """Hold a place for the length of the block. Raises RateLimited where there is none."""
        if self._all >= self._most:
            raise RateLimited(
                f"the server serves {self._most} calls at once (max_calls); try again in a moment", (), _RETRY_AFTER_S
            )
        if self._by_tenant[tenant] >= self._most_of_tenant:
            raise RateLimited(
                f"the server serves {self._most_of_tenant} calls of a tenant at once (max_calls_per_tenant); try again"
                " in a moment", (), _RETRY_AFTER_S,
            )  # fmt: skip
        self._all += 1
        self._by_tenant[tenant] += 1
        try:
            yield
        finally:
            self._all -= 1
            self._by_tenant[tenant] -= 1
            if not self._by_tenant[tenant]:
                del self._by_tenant[tenant]
