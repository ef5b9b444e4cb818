"""Time that passes only when it is told to."""

import heapq
import itertools
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Alarm:
    """Something that happens at a time, unless it is stopped before."""

    __slots__ = ("at_us", "ring")

    def __init__(self, at_us: int, ring: Callable[[], None]) -> None:
        self.at_us = at_us
        self.ring: Callable[[], None] | None = ring

    def stop(self) -> None:
        """It does not happen."""
        self.ring = None


class Clock:
    """Microseconds since the epoch, and what happens when."""

    def __init__(self, start: datetime) -> None:
        self.now_us = (start - EPOCH) // timedelta(microseconds=1)
        self._order = itertools.count()
        self._alarms: list[tuple[int, int, Alarm]] = []

    def after(self, delay_us: int, ring: Callable[[], None]) -> Alarm:
        """Have something happen; what is set for the same time happens in the order it was set."""
        return self.at(self.now_us + delay_us, ring)

    def at(self, at_us: int, ring: Callable[[], None]) -> Alarm:
        """Have something happen at a time, or at once where that has passed."""
        alarm = Alarm(max(at_us, self.now_us), ring)
        heapq.heappush(self._alarms, (alarm.at_us, next(self._order), alarm))
        return alarm

    def skip(self, limit_us: int | None = None) -> bool:
        """Go on to the next alarm, up to a time; False where there is none."""
        while self._alarms:
            at_us, _, alarm = self._alarms[0]
            if alarm.ring is not None and limit_us is not None and at_us > limit_us:
                return False
            heapq.heappop(self._alarms)
            if alarm.ring is not None:
                ring, alarm.ring = alarm.ring, None
                self.now_us = at_us
                ring()
                return True
        return False
