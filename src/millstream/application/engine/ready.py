"""Pending tasks made by this server, in the order in which they are to be leased.

As long as a dispatch key's waiting work is all known here, it is leased without asking the database, and new work is
handed off again as soon as nothing older waits; a key whose waiting work may be unknown is pulled from the
database instead.
"""

import heapq

from millstream.domain.runs import Task

DispatchKey = tuple[str, str, str]
Entry = tuple[int, int, str]
"""Urgency (the lower the sooner), run_at and id."""

MOST = 20_000
"""Tasks of a key that are remembered; beyond, the database is asked."""


class ReadyWork:
    """Waiting work by dispatch key. An entry may be out of date; whoever leases it looks again."""

    def __init__(self) -> None:
        self._entries: dict[DispatchKey, list[Entry]] = {}

    def __contains__(self, key: DispatchKey) -> bool:
        return key in self._entries

    def keys(self) -> set[DispatchKey]:
        """Keys with waiting work."""
        return set(self._entries)

    def add(self, key: DispatchKey, task: Task) -> bool:
        """Remember a pending task. False where there are too many: they are forgotten then."""
        entries = self._entries.setdefault(key, [])
        if len(entries) >= MOST:
            del self._entries[key]
            return False
        heapq.heappush(entries, (-task.priority, task.run_at_us, task.id))
        return True

    def take(self, key: DispatchKey, most: int) -> list[Entry]:
        """The first entries of a key."""
        entries = self._entries.get(key, [])
        taken = [heapq.heappop(entries) for _ in range(min(most, len(entries)))]
        if not entries:
            self._entries.pop(key, None)
        return taken

    def put_back(self, key: DispatchKey, entries: list[Entry]) -> None:
        """Entries that were not leased after all."""
        if entries:
            heap = self._entries.setdefault(key, [])
            for entry in entries:
                heapq.heappush(heap, entry)

    def drop(self, key: DispatchKey) -> None:
        """Forget a key's work."""
        self._entries.pop(key, None)
