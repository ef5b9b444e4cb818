"""What takes in the lines that tasks log, and what reads them."""

from dataclasses import dataclass

from millstream.application.log_intake import LogIntake
from millstream.application.task_logs import TaskLogs
from millstream.domain.task_logs import LogBounds
from millstream.store.log_writer import LogWriter
from millstream.store.task_logs import TaskLogReads
from millstream.wiring.core import Core


@dataclass(frozen=True, slots=True)
class LogParts:
    """The two sides of logs."""

    intake: LogIntake
    reading: TaskLogs


def make_task_logs(core: Core) -> LogParts:
    """Lines go by a connection of their own, beside the engine."""
    settings, stores, clock = core.settings, core.stores, core.engine.clock
    bounds = LogBounds(settings.max_log_lines_per_task, settings.max_log_bytes_per_task)
    intake = LogIntake(LogWriter(stores.url, bounds), clock, lambda runs: None)
    return LogParts(intake, TaskLogs(clock, stores.reads, TaskLogReads(stores.database)))
