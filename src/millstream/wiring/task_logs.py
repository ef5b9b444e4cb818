"""What takes in the lines that tasks log, what reads them, and what follows them."""

from dataclasses import dataclass

from millstream.application.log_feed import LogFeed
from millstream.application.log_intake import LogIntake
from millstream.application.log_watches import LogWatching
from millstream.application.task_logs import TaskLogs
from millstream.domain.task_logs import LogBounds
from millstream.store.log_feed import LogFeedReads
from millstream.store.log_writer import LogWriter
from millstream.store.task_logs import TaskLogReads
from millstream.wiring.core import Core


@dataclass(frozen=True, slots=True)
class LogParts:
    """The sides of logs."""

    intake: LogIntake
    reading: TaskLogs
    watching: LogWatching
    feed: LogFeed


def make_task_logs(core: Core) -> LogParts:
    """Lines go by a connection of their own, beside the engine."""
    settings, stores, engine, peers = core.settings, core.stores, core.engine, core.peers
    metrics = core.metrics
    bounds = LogBounds(settings.max_log_lines_per_task, settings.max_log_bytes_per_task)
    reads = TaskLogReads(stores.database)
    feed = LogFeed(LogFeedReads(stores.database), engine.clock)

    def logged(runs: set[tuple[str, str]]) -> None:
        feed.look(run_id for _, run_id in runs)
        peers.logged(runs)

    feed.on_change = peers.interest_changed
    peers.logs_watched = lambda: feed.watched
    intake = LogIntake(LogWriter(stores.url, bounds), engine.clock, logged, metrics.logs)
    engine.recorded.append(lambda _: intake.engine_works())
    return LogParts(
        intake,
        TaskLogs(engine.clock, stores.reads, reads),
        LogWatching(engine.clock, engine.waiters, feed, stores.reads, reads, metrics.streams),
        feed,
    )
