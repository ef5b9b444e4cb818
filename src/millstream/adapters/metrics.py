"""Prometheus metrics of the process, or of all processes that share PROMETHEUS_MULTIPROC_DIR."""

import functools
import os
from collections import Counter as Tally
from collections.abc import Callable
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values

from millstream.adapters.sampling import Sampled
from millstream.adapters.shared_metrics import SharedMetrics
from millstream.adapters.stream_metrics import LogMetrics, StreamMetrics
from millstream.domain.batch import Batch
from millstream.domain.runs import EventType

_LATENCY_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_COMMIT_S: Final = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5)
_WORK_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 3600)
_BATCH: Final = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000)

_GAUGES: Final = {
    "queue_commands": "Commands that wait for the committer.",
    "queue_bytes": "Bytes of the commands that wait for the committer.",
    "tasks_ready": "Tasks that wait for a worker.",
    "oldest_ready_task_seconds": "Age of the oldest task that waits for a worker.",
    "leases": "Tasks in the hands of workers of this server.",
    "waiters": "Callers that wait for the end of a run.",
    "workers_connected": "Workers connected to this server.",
    "worker_slots": "Tasks that the workers of this server can have at once.",
    "log_waiting_bytes": "Bytes of logged lines that wait to be stored.",
    "database_connections": "Connections of this server for reads and upkeep.",
    "database_connections_busy": "Of them those in use.",
}


class Metrics:
    """All metrics of the service; one object per process."""

    def __init__(self) -> None:
        directory = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        self.shared = directory is not None
        """Other processes show the metrics of this one too, as they were when it last set them."""
        self._all = SharedMetrics(Path(directory)) if directory is not None else None
        if self._all is not None:
            self._all.begin()
            # By default each count asks the kernel for the process's id: 5 % of a small call. A server never forks.
            pid = os.getpid()
            values.ValueClass = values.MultiProcessValue(lambda: pid)  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "millstream_requests_total", "Calls that ended.", ["rpc", "code"], registry=self._registry
        )
        self._latency = Histogram(
            "millstream_request_seconds",
            "Time from arrival to answer.",
            ["rpc"],
            buckets=_LATENCY_S,
            registry=self._registry,
        )
        self._in_flight = Gauge(
            "millstream_requests_in_flight",
            "Calls under way.",
            ["rpc"],
            registry=self._registry,
            multiprocess_mode="livesum",
        )
        self.engine = EngineMetrics(self._registry)
        self.streams = StreamMetrics(self._registry)
        self.logs = LogMetrics(self._registry)
        self.database = DatabaseMetrics(self._registry)

    def meter(self, rpc: str) -> "Meter":
        """The meter of a method."""
        return Meter(rpc, self._requests, self._latency, self._in_flight)

    def settle(self) -> None:
        """Add up what was counted since the last time. For the thread that counts, before the metrics are shown."""
        self.engine.settle()
        self.streams.settle()

    def exposition(self) -> bytes:
        """The metrics in the text format, those of all processes where they share a directory. For a thread of its own:
        to merge files takes milliseconds."""
        return generate_latest(self._registry) if self._all is None else self._all.exposition()


class Meter:
    """Measures the calls of one method."""

    __slots__ = ("_codes", "_in_flight", "_latency", "_requests", "_rpc")

    def __init__(self, rpc: str, requests: Counter, latency: Histogram, in_flight: Gauge) -> None:
        self._rpc = rpc
        self._requests = requests
        self._latency = latency.labels(rpc)
        self._in_flight = in_flight.labels(rpc)
        # Looking a child up by its labels costs more than counting.
        self._codes: dict[str, Counter] = {"OK": requests.labels(rpc, "OK")}

    def begin(self) -> None:
        """A call begins."""
        self._in_flight.inc()

    def end(self, code: str, seconds: float) -> None:
        """It ended with a code."""
        self._in_flight.dec()
        self._latency.observe(seconds)
        counter = self._codes.get(code)
        if counter is None:
            counter = self._codes[code] = self._requests.labels(self._rpc, code)
        counter.inc()


class EngineMetrics:
    """What the engine tells of itself."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._commands = Histogram(
            "millstream_batch_commands", "Commands in a batch.", ["path"], buckets=_BATCH, registry=registry
        )
        self._commit = Histogram(
            "millstream_commit_seconds", "Time a batch took.", ["path"], buckets=_COMMIT_S, registry=registry
        )
        self._gauges = {
            # Each process knows the same backlog of the database; its own leases and callers add up.
            name: Gauge(
                f"millstream_{name}",
                text,
                registry=registry,
                multiprocess_mode="livemax" if name in _SHARED else "livesum",
            )
            for name, text in _GAUGES.items()
        }
        self._undone = Counter(
            "millstream_batches_undone_total", "Batches that had to be decided again, or failed.", registry=registry
        )
        self._wait = _sampled(registry, "task_wait_seconds", "Time from when a task could start to its first lease.")
        self._attempt = _sampled(registry, "attempt_seconds", "Time from an attempt's lease to its end.")
        self._events = _by_label(registry, "events_total", "Events that were stored.", "type")
        self._counts = [0] * (max(EventType) + 1)
        self._paths: dict[str, tuple[Histogram, Histogram]] = {}
        self._attempts = _by_label(registry, "attempts_total", "Attempts at tasks that ended.", "outcome")
        self._runs = _by_label(registry, "runs_ended_total", "Runs that ended.", "status")
        self._artifacts = Counter("millstream_artifacts_total", "Artifacts that were stored.", registry=registry)

    def observe_batch(self, commands: int, seconds: float, path: str) -> None:
        """A batch was committed on "owner" or "locked" path."""
        pair = self._paths.get(path)
        if pair is None:
            pair = self._paths[path] = (self._commands.labels(path), self._commit.labels(path))
        pair[0].observe(commands)
        pair[1].observe(seconds)

    def observe_undone(self) -> None:
        """A batch was not committed as it was decided."""
        self._undone.inc()

    def committed(self, batch: Batch) -> None:
        """Count what a batch recorded, ended and stored, and measure a task of it now and then."""
        counts = self._counts
        for row in batch.events:
            counts[row[3]] += 1
        self._measure_work(batch)
        attempts = Tally(each.status.name for each in batch.attempts)
        runs = Tally(each.status.name for each in batch.ended.values() if each.finished_us)
        for metric, ended in ((self._attempts, attempts), (self._runs, runs)):
            for name, count in ended.items():
                metric(name).inc(count)
        if batch.artifacts:
            self._artifacts.inc(len(batch.artifacts))

    def _measure_work(self, batch: Batch) -> None:
        if batch.handoffs and batch.handoffs[0].attempt == 1 and self._wait.due():
            task = batch.handoffs[0].task
            self._wait.observe_us(task.started_us - max(task.created_us, task.run_at_us))
        if batch.attempts and self._attempt.due():
            attempt = batch.attempts[0]
            self._attempt.observe_us(attempt.finished_us - attempt.started_us)

    def settle(self) -> None:
        """Add up the events since the last time. For the thread that counts."""
        for kind, count in enumerate(self._counts):
            if count:
                self._events(EventType(kind).name).inc(count)
        self._counts = [0] * len(self._counts)

    def set(self, name: str, value: float) -> None:
        """Set a gauge. Raises KeyError where there is no such gauge."""
        self._gauges[name].set(value)


class DatabaseMetrics:
    """What the database is asked for reads and upkeep."""

    def __init__(self, registry: CollectorRegistry) -> None:
        text = "Time of a statement for reads or upkeep, with the wait for a connection."
        self._seconds = Sampled(Histogram("millstream_database_seconds", text, buckets=_COMMIT_S, registry=registry))
        self._failed = _by_label(registry, "database_errors_total", "Statements that failed.", "error")

    def asked(self, took_us: int) -> None:
        """It answered, after so long."""
        if self._seconds.due():
            self._seconds.observe_us(took_us)

    def failed(self, error: str) -> None:
        """It did not: "conflict", "lost", "refused", "slow" or "other"."""
        self._failed(error).inc()


def _sampled(registry: CollectorRegistry, name: str, text: str) -> Sampled:
    """A histogram of the time of work, of which a part is measured."""
    return Sampled(Histogram(f"millstream_{name}", text, buckets=_WORK_S, registry=registry))


def _by_label(registry: CollectorRegistry, name: str, text: str, label: str) -> Callable[[str], Counter]:
    """A counter by one label, whose children are looked up once: to do it each time costs more than counting."""
    return functools.cache(Counter(f"millstream_{name}", text, [label], registry=registry).labels)


_SHARED: Final = frozenset({"tasks_ready", "oldest_ready_task_seconds"})
