"""Prometheus metrics of streams, and of what tasks log.

A stream's messages are counted in plain numbers, which are added to the metrics when somebody asks for these: to a
thousand watchers of one run a metric of its own for each message is a part of its price.
"""

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from millstream.adapters.sampling import Sampled

STREAMS: Final = ("artifacts", "run", "run_tree", "run_tasks", "task_logs", "run_logs")
_DELAY_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class StreamMetrics:
    """What streams tell of themselves."""

    def __init__(self, registry: CollectorRegistry) -> None:
        open_ = Gauge(
            "millstream_streams_open",
            "Streams under way.",
            ["stream"],
            registry=registry,
            multiprocess_mode="livesum",
        )
        messages = Counter(
            "millstream_stream_messages_total", "Messages sent in streams.", ["stream", "message"], registry=registry
        )
        slow = Counter(
            "millstream_streams_too_slow_total",
            "Streams that ended because their reader did not keep pace.",
            ["stream"],
            registry=registry,
        )
        delay = Histogram(
            "millstream_stream_delay_seconds",
            "Time from an event, artifact or line to its sending.",
            ["stream"],
            buckets=_DELAY_S,
            registry=registry,
        )
        self._passed_over = Counter(
            "millstream_stream_values_passed_over_total",
            "Values of tasks that were not passed on, to a reader that is behind or to another server.",
            registry=registry,
        )
        self._meters = {
            each: StreamMeter(each, open_.labels(each), messages, slow.labels(each), delay.labels(each))
            for each in STREAMS
        }

    def meter(self, stream: str) -> "StreamMeter":
        """The meter of a kind of streams. Raises KeyError where there is no such kind."""
        return self._meters[stream]

    def passed_over(self, count: int) -> None:
        """So many values were not passed on."""
        self._passed_over.inc(count)

    def settle(self) -> None:
        """Add up what was counted since the last time. For the thread that counts."""
        for meter in self._meters.values():
            meter.settle()


class StreamMeter:
    """Measures the streams of one kind."""

    __slots__ = ("_beats", "_counters", "_delay", "_items", "_open", "_slow", "_values")

    def __init__(self, stream: str, open_: Gauge, messages: Counter, slow: Counter, delay: Histogram) -> None:
        self._open = open_
        self._slow = slow
        self._delay = Sampled(delay)
        self._items = self._values = self._beats = 0
        self._counters = [messages.labels(stream, message) for message in ("item", "value", "heartbeat")]

    def begin(self) -> None:
        """A stream begins."""
        self._open.inc()

    def end(self) -> None:
        """It ended."""
        self._open.dec()

    def item(self) -> None:
        """Something that is stored is sent."""
        self._items += 1

    def fresh_item(self, late_us: int) -> None:
        """The same, live, so long after it was stored."""
        self._items += 1
        if self._delay.due():
            self._delay.observe_us(late_us)

    def value(self) -> None:
        """Something that is not stored is sent."""
        self._values += 1

    def beat(self) -> None:
        """A sign of life is sent."""
        self._beats += 1

    def too_slow(self) -> None:
        """A reader did not keep pace, which ends its stream."""
        self._slow.inc()

    def settle(self) -> None:
        """Add up what was counted since the last time."""
        for counter, count in zip(self._counters, (self._items, self._values, self._beats), strict=True):
            if count:
                counter.inc(count)
        self._items = self._values = self._beats = 0


class LogMetrics:
    """What the intake of logs tells of itself."""

    def __init__(self, registry: CollectorRegistry) -> None:
        lines = Counter("millstream_log_lines_total", "Lines that tasks logged.", ["outcome"], registry=registry)
        self._stored, self._cut = lines.labels("stored"), lines.labels("cut")
        self._passed_over = Counter(
            "millstream_log_batches_passed_over_total",
            "Batches of lines for which there was no room, asked for again.",
            registry=registry,
        )

    def stored(self, lines: int, cut: int) -> None:
        """So many lines were stored, and so many cut."""
        self._stored.inc(lines)
        self._cut.inc(cut)

    def passed_over(self) -> None:
        """There was no room for a batch."""
        self._passed_over.inc()
