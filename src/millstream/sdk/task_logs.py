"""What tasks logged: reading it, and following it."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from millstream.sdk.artifacts import stamp
from millstream.sdk.calls import Area, Calls, Listing
from millstream.sdk.payload import JsonValue, from_struct
from millstream.sdk.results import when
from millstream.sdk.streams import resumed
from millstream.v1 import task_log_pb2
from millstream.v1 import task_log_service_pb2 as wire


@dataclass(frozen=True, slots=True)
class LogEntry:
    """A line that a task logged."""

    sequence: int
    """Its number in the log of its run."""
    run_id: str
    task_id: str
    attempt: int
    offset: int
    """Its number among the lines of the attempt."""
    level: str
    """DEBUG, INFO, WARN or ERROR."""
    message: str
    timestamp: datetime | None
    logger: str = ""
    fields: dict[str, JsonValue] = field(default_factory=dict)
    cut: int = 0
    """Lines that are missing here."""

    @classmethod
    def from_wire(cls, message: task_log_pb2.LogEntry) -> "LogEntry":
        """The value of a message."""
        return cls(
            message.sequence, message.run_id, message.task_id, message.attempt, message.offset,
            task_log_pb2.LogLine.Level.Name(message.level), message.message, when(message, "timestamp"),
            message.logger, from_struct(message.fields), message.cut,
        )  # fmt: skip


class LogWatch:
    """Lines as they are stored: `async for entry in client.logs.watch_task(task_id): ...`. Ends with the task or run.

    A connection that is lost, or a server that goes, is resumed without a loss and without a double, as often as it
    takes.

    Attributes:
        cursor: goes on behind the last line that was given out, in a later watch too.
    """

    def __init__(self, calls: Calls, method: str, request: Callable[[str], Any], cursor: str) -> None:
        """Made by `Logs`."""
        self.cursor = cursor
        self._calls = calls
        self._method = method
        self._request = request

    async def __aiter__(self) -> AsyncIterator[LogEntry]:
        async for _, entry in self.messages():
            if entry is not None:
                yield entry

    async def messages(self) -> AsyncGenerator[tuple[str, LogEntry | None], None]:
        """Every message: its cursor, and its line; None in signs of life, of which the first comes at once.

        Raises:
            NotFoundError: there is no such task or run.
            InvalidRequestError: its detail `cursor` has the code EXPIRED where lines behind it are gone.
        """
        async for message in resumed(self._begin, forever=True, retries=self._calls.retries):
            self.cursor = message.cursor
            yield message.cursor, LogEntry.from_wire(message.entry) if message.HasField("entry") else None
            if message.ended:
                return

    def _begin(self) -> AsyncIterator[Any]:
        answer: Any = getattr(wire, f"{self._method}Response")
        return self._calls.stream(f"TaskLogService/{self._method}", self._request(self.cursor), answer)


class Logs(Area):
    """What tasks logged. `level` takes one level, or several: "ERROR", ("WARN", "ERROR")."""

    def of_task(
        self,
        task_id: str,
        *,
        level: str | Sequence[str] = "",
        text: str = "",
        attempt: int = 0,
        since: datetime | None = None,
        until: datetime | None = None,
        newest_first: bool = False,
        page_size: int = 500,
    ) -> Listing[LogEntry]:
        """Lists the lines of a task, of all its attempts or of one, in the order they were stored."""

        async def fetch(cursor: str | None) -> tuple[list[LogEntry], str | None]:
            request = wire.ListTaskLogsRequest(
                task_id=task_id, level=_levels(level), text=text, attempt=attempt, since=stamp(since),
                until=stamp(until), newest_first=newest_first, page_size=page_size, page_token=cursor or "",
            )  # fmt: skip
            page = await self._calls.read("TaskLogService/ListTaskLogs", request, wire.ListTaskLogsResponse)
            return [LogEntry.from_wire(item) for item in page.items], page.pagination.next_page_token

        return Listing(fetch)

    def of_run(
        self,
        run_id: str,
        *,
        task_id: str = "",
        level: str | Sequence[str] = "",
        text: str = "",
        attempt: int = 0,
        since: datetime | None = None,
        until: datetime | None = None,
        newest_first: bool = False,
        page_size: int = 500,
    ) -> Listing[LogEntry]:
        """Lists the lines of all tasks of a run, or of one of them, in the order they were stored."""

        async def fetch(cursor: str | None) -> tuple[list[LogEntry], str | None]:
            request = wire.ListRunLogsRequest(
                run_id=run_id, task_id=task_id, level=_levels(level), text=text, attempt=attempt, since=stamp(since),
                until=stamp(until), newest_first=newest_first, page_size=page_size, page_token=cursor or "",
            )  # fmt: skip
            page = await self._calls.read("TaskLogService/ListRunLogs", request, wire.ListRunLogsResponse)
            return [LogEntry.from_wire(item) for item in page.items], page.pagination.next_page_token

        return Listing(fetch)

    def watch_task(
        self, task_id: str, *, level: str | Sequence[str] = "", text: str = "", attempt: int = 0, cursor: str = ""
    ) -> LogWatch:
        """Watches the log of a task to its end: the lines there are, or those behind a cursor, then those that come."""

        def request(behind: str) -> wire.WatchTaskLogsRequest:
            return wire.WatchTaskLogsRequest(
                task_id=task_id, level=_levels(level), text=text, attempt=attempt, cursor=behind
            )

        return LogWatch(self._calls, "WatchTaskLogs", request, cursor)

    def watch_run(self, run_id: str, *, level: str | Sequence[str] = "", text: str = "", cursor: str = "") -> LogWatch:
        """Watches the logs of all tasks of a run, in the order they are stored, to its end."""

        def request(behind: str) -> wire.WatchRunLogsRequest:
            return wire.WatchRunLogsRequest(run_id=run_id, level=_levels(level), text=text, cursor=behind)

        return LogWatch(self._calls, "WatchRunLogs", request, cursor)


def _levels(given: str | Sequence[str]) -> str:
    return given if isinstance(given, str) else ",".join(given)
