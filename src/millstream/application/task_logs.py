"""Reading what tasks log."""

from dataclasses import replace
from typing import Protocol

from millstream.application.engine.clock import Clock
from millstream.application.paging import (
    Page,
    PageRequest,
    decode_token,
    encode_token,
    fitting,
    page_info,
    token_number,
    token_of,
)
from millstream.application.ports import TooSlow
from millstream.application.sight import Sight, SightReads
from millstream.application.views.task_logs import LogEntry, LogQuery
from millstream.domain.errors import NotFound, TimedOut
from millstream.domain.principals import Principal
from millstream.domain.runs import Run, Task


class LogReads(Protocol):
    """What is read of logs; see store.task_logs."""

    async def lines(
        self,
        query: LogQuery,
        from_day: int,
        beyond_seq: int | None,
        skip: int,
        limit: int,
        look_at: int | None = None,
    ) -> list[LogEntry]: ...
    async def count_lines(self, query: LogQuery, from_day: int) -> tuple[int, bool]: ...


class RunReads(SightReads, Protocol):
    """What is read of runs and tasks; see store.runs."""

    async def run(self, tenant: str, run_id: str) -> Run | None: ...
    async def task(self, tenant: str, task_id: str) -> Task | None: ...


class TaskLogs:
    """The use cases of logs. Lines of a task are shown to those who may see all that it was given."""

    def __init__(self, clock: Clock, reads: RunReads, logs: LogReads) -> None:
        self._clock = clock
        self._reads = reads
        self._logs = logs
        self._sight = Sight(reads)

    async def of_task(
        self, principal: Principal, query: LogQuery, page: PageRequest, run_id: str = ""
    ) -> Page[LogEntry]:
        """Lines of a task. Raises NotFound, also of a task of another run than `run_id`, where that is given;
        ValidationFailed, TimedOut."""
        task = await self._reads.task(principal.tenant, query.task_id)
        if task is None:
            raise NotFound(f"there is no task {query.task_id}")
        if run_id and task.run_id != run_id:
            raise NotFound(f"run {run_id} has no task {query.task_id}")
        return await self._page(principal, replace(query, run_id=task.run_id), task.day, page)

    async def of_run(self, principal: Principal, query: LogQuery, page: PageRequest) -> Page[LogEntry]:
        """Lines of all tasks of a run, or of one of them. Raises NotFound, ValidationFailed, TimedOut."""
        run = await self._reads.run(principal.tenant, query.run_id)
        if run is None:
            raise NotFound(f"there is no run {query.run_id}")
        return await self._page(principal, query, run.day, page)

    async def _page(self, principal: Principal, query: LogQuery, day: int, request: PageRequest) -> Page[LogEntry]:
        request.check()
        kind = f"logs {'down' if query.newest_first else 'up'}"
        beyond = None
        if request.page_token:
            beyond = decode_token(request.page_token, token_of(kind), token_number)[1]
        try:
            found = await self._logs.lines(query, day, beyond, request.skip, request.size)
            total = None if request.page_token is not None else await self._logs.count_lines(query, day)
        except TooSlow:
            raise TimedOut(
                "there are too many lines to look through for these: narrow it by task, level or time"
            ) from None
        page = fitting(found, request.size, lambda entry: entry.size_bytes)
        token = encode_token(kind, page[-1].seq) if len(found) > len(page) else ""
        info = page_info(request, total, token, cut=len(page) < request.size)
        return Page(await self._seen(principal, page), info)

    async def _seen(self, principal: Principal, entries: list[LogEntry]) -> list[LogEntry]:
        whole = await self._sight.whole_tasks(principal, {entry.task_id for entry in entries}, self._clock.now_us())
        return [entry for entry in entries if entry.task_id in whole]
