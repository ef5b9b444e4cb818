"""Bounds by key: how many tasks of a key run at once, and how many start in a while.

A task with a bound waits in a line of its key, IN_LINE, until there is room: so it stands in nobody's way, however long
the line is. A task that has room but finds no worker is PENDING like any other, and takes no room from those behind it
before it starts; all that is judged under the line's lock, so no two servers start one too many.
"""

from dataclasses import dataclass, field

LineKey = tuple[str, str]
"""A line: its tenant, and its name."""
CONCURRENCY = "c:"
RATE = "r:"
"""How the names of lines begin, before the key."""
PLANNERS = "~"
"""How the keys of planners begin, such as that of a step for many items; clients' keys do not."""
BUCKETS = 100
"""Starts are remembered in so many parts of the period, each as of the part's end: never one too many, and a start
comes at most a hundredth of the period later than it might."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What bounds a task.

    Attributes:
        concurrency_limit: Tasks with the concurrency key that run at once, at most; each is judged by its own limit.
        rate_limit: Starts of tasks with the rate key in any rate_period_us, at most; likewise.
    """

    concurrency_key: str = ""
    concurrency_limit: int = 0
    rate_key: str = ""
    rate_limit: int = 0
    rate_period_us: int = 0

    @property
    def lines(self) -> tuple[str, ...]:
        """Names of the lines that a task with these bounds waits in, one after the other."""
        found = (CONCURRENCY + self.concurrency_key,) if self.concurrency_key else ()
        return (*found, RATE + self.rate_key) if self.rate_key else found


UNBOUND = Bounds()


@dataclass(slots=True)
class Line:
    """A line as it stands.

    Attributes:
        running: Of a concurrency key, how many of its tasks run.
        period_us: Of a rate key, the longest period that its tasks gave.
        starts: Of a rate key, times (the end of a part of the period) with how many started until then.
        changed: Something started.
    """

    name: str
    running: int = 0
    period_us: int = 0
    starts: list[tuple[int, int]] = field(default_factory=list)
    changed: bool = False

    @property
    def is_rate(self) -> bool:
        """It bounds starts in a while."""
        return self.name.startswith(RATE)

    def room(self, bounds: Bounds, now_us: int) -> int:
        """How many more tasks with these bounds may start now."""
        if not self.is_rate:
            return max(bounds.concurrency_limit - self.running, 0)
        counted = sum(count for at_us, count in self.starts if at_us + bounds.rate_period_us > now_us)
        return max(bounds.rate_limit - counted, 0)

    def opens_us(self, bounds: Bounds, now_us: int) -> int:
        """When a rate lets another task with these bounds start; now where it does already."""
        left = bounds.rate_limit
        for at_us, count in sorted(self.starts, reverse=True):
            left -= count
            if left <= 0:
                return max(at_us + bounds.rate_period_us, now_us)
        return now_us

    def start(self, bounds: Bounds, now_us: int) -> None:
        """A task starts."""
        if not self.is_rate:
            self.running += 1
            return
        self.changed = True
        self.period_us = max(self.period_us, bounds.rate_period_us)
        part_us = max(self.period_us // BUCKETS, 1)
        at_us = -(-now_us // part_us) * part_us
        kept = {each: count for each, count in self.starts if each + self.period_us > now_us}
        kept[at_us] = kept.get(at_us, 0) + 1
        self.starts = sorted(kept.items())
