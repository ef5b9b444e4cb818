"""One clock for the engine: the database's."""

import time


class Clock:
    """The database's time between two batches: read with every batch, carried on by the monotonic clock."""

    def __init__(self) -> None:
        self._offset_us = time.time_ns() // 1000 - time.monotonic_ns() // 1000
        self._last_us = 0

    def set(self, now_us: int) -> None:
        """The database's time was just read."""
        self._offset_us = now_us - time.monotonic_ns() // 1000

    def now_us(self) -> int:
        """The database's time, never going back."""
        self._last_us = max(self._last_us, time.monotonic_ns() // 1000 + self._offset_us)
        return self._last_us
