"""Measurements that are taken now and then: a histogram needs no more, and under load each has a price."""

import time
from typing import Final

from prometheus_client import Histogram

GAP_S: Final = 0.01
"""Between two measurements, at least."""


class Sampled:
    """A histogram that measures at most once in a while."""

    __slots__ = ("_due_s", "_histogram")

    def __init__(self, histogram: Histogram) -> None:
        self._histogram = histogram
        self._due_s = 0.0

    def due(self) -> bool:
        """Whether to measure what is at hand. Where it says so, nothing else is due for a while."""
        now_s = time.monotonic()
        if now_s < self._due_s:
            return False
        self._due_s = now_s + GAP_S
        return True

    def observe_us(self, took_us: int) -> None:
        """It took so long; the clocks of servers and workers may differ a little."""
        self._histogram.observe(max(took_us, 0) / 1e6)
