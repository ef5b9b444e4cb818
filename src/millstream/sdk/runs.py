"""Runs: started, signalled, waited for, read, cancelled, retried, repeated, paused."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from millstream.sdk.artifacts import SYNC_MARGIN_S, stamp
from millstream.sdk.calls import Listing, choice
from millstream.sdk.executions import StepReading
from millstream.sdk.histories import History
from millstream.sdk.payload import JsonValue, fill_value, from_struct
from millstream.sdk.policies import Seconds, duration
from millstream.sdk.run_operations import RunsDone, filter_of, labels_asked
from millstream.sdk.run_results import Run, RunEvent, RunResult, Task
from millstream.sdk.run_watches import RunWatch
from millstream.v1 import activation_pb2, run_pb2
from millstream.v1 import run_service_pb2 as wire

BULK_TIMEOUT_S = 75.0
"""Of a call about many runs: the contract's longest wait, and a margin."""


class Runs(StepReading):
    """Starts runs of code-first workflows; reads, signals, cancels, retries, repeats, pauses and resumes runs."""

    async def start(
        self,
        workflow: str,
        input: JsonValue = None,  # noqa: A002  (the contract's name)
        *,
        version: str = "",
        run_id: str = "",
        labels: Mapping[str, str] | None = None,
        queue: str = "",
        priority: int = 0,
        signal: tuple[str, JsonValue] | None = None,
        wait: float = 0.0,
        run_timeout: Seconds | None = None,
        idempotency_key: str = "",
    ) -> RunResult:
        """Starts a run of a code-first workflow and returns it as it stands, after `wait` seconds (at most 300) or at
        its end.

        Args:
            version: default: the latest that a worker has registered.
            run_id: a UUID. Default: a new one.
            queue: whose workers run the code, and do its tasks where these name none. Default "default".
            priority: of the code, and of its tasks that name none, -100 to 100, the higher the sooner.
            run_timeout: how long the run may take in all; then it fails with RUN_TIMEOUT.
            signal: name and value of a signal to send with it: starts the run unless one of this run_id goes on
                already, and signals it either way.

        Raises:
            NotFoundError: no worker has registered the workflow.
            ConflictError: there is a run of this run_id, or it has ended.
        """
        request = wire.StartRunRequest(
            workflow=workflow, version=version, run_id=run_id, labels=labels or {}, queue=queue, wait=wait,
            priority=priority, run_timeout=None if run_timeout is None else duration(run_timeout),
        )  # fmt: skip
        fill_value(request.input, input)
        if signal is not None:
            request.signal = signal[0]
            fill_value(request.signal_value, signal[1])
        answer = await self._calls.write(
            "RunService/StartRun",
            request,
            wire.StartRunResponse,
            key=idempotency_key,
            timeout_s=wait + SYNC_MARGIN_S,
        )
        return RunResult.from_wire(answer.message)

    async def signal(self, run_id: str, name: str, value: JsonValue = None, *, idempotency_key: str = "") -> None:
        """Sends a signal to a code-first run.

        Raises:
            ConflictError: it has ended, or takes no signals.
        """
        request = wire.SignalRunRequest(run_id=run_id, name=name)
        fill_value(request.value, value)
        await self._calls.write("RunService/SignalRun", request, wire.SignalRunResponse, key=idempotency_key)

    async def result(self, run_id: str, wait: float = 0.0) -> RunResult:
        """What a run answered, after `wait` seconds (at most 300) or at its end."""
        request = wire.GetRunResultRequest(run_id=run_id, timeout=wait)
        found = await self._calls.read(
            "RunService/GetRunResult", request, wire.GetRunResultResponse, timeout_s=wait + SYNC_MARGIN_S
        )
        return RunResult.from_wire(found)

    async def history(self, run_id: str) -> History:
        """What a code-first run's code has seen and done, for `millstream.testing.replay`.

        Raises:
            ConflictError: it is no code-first run.
            NotFoundError: there is no such run.
        """
        request, items = wire.GetRunHistoryRequest(run_id=run_id), list[activation_pb2.HistoryItem]()
        while True:
            page = await self._calls.read("RunService/GetRunHistory", request, wire.GetRunHistoryResponse)
            items += page.items
            if not page.more:
                return History(page.run_id, page.workflow, page.version, page.first_number, page.seen_sequence, items)
            last = items[-1]
            if last.HasField("event"):
                request.after_sequence, request.after_number = last.event.sequence, 0
            else:
                request.after_sequence, request.after_number = last.command.after_sequence, last.command.number

    async def state(self, run_id: str) -> dict[str, JsonValue]:
        """What a code-first run remembers by name (`ctx.state`)."""
        request = wire.GetRunStateRequest(run_id=run_id)
        return from_struct((await self._calls.read("RunService/GetRunState", request, wire.GetRunStateResponse)).state)

    def list(
        self,
        *,
        status: str | Sequence[str] = "",
        kind: str = "",
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        workflow: str = "",
        labels: Mapping[str, str] | None = None,
        text: str = "",
        parent: str = "",
        sort_by: str = "",
        sort_order: str = "",
        page_size: int = 100,
    ) -> Listing[Run]:
        """Lists runs, newest first.

        Args:
            status: Such as "FAILED", or several.
            kind: "CASCADE", "SINGLE", "GRAPH" or "CODE".
            workflow: Of this workflow, by name or id.
            labels: With all of these.
            text: With this in its id (from its beginning), workflow, error message or a label's value.
            parent: Children of this run.
            sort_by: "created_at" or "updated_at".
            sort_order: "desc" or "asc".

        Raises:
            ValueError: there is no such status or kind.
        """
        asked = [choice(run_pb2.Run.Status, each) for each in ([status] if isinstance(status, str) else status) if each]
        wanted: dict[str, Any] = {
            # Servers of the version before know of one only.
            **({"status": asked[0]} if len(asked) == 1 else {"statuses": asked}),
            "kind": choice(run_pb2.RunKind.Kind, kind),
            "created_after": stamp(created_after),
            "created_before": stamp(created_before),
            "workflow_id": workflow,
            "labels": labels_asked(labels),
            "text": text,
            "parent_run_id": parent,
            "sort_by": sort_by,
            "sort_order": sort_order,
            "page_size": page_size,
        }

        async def fetch(cursor: str | None) -> tuple[list[Run], str | None]:
            request = wire.ListRunsRequest(**wanted, page_token=cursor or "")
            page = await self._calls.read("RunService/ListRuns", request, wire.ListRunsResponse)
            return [Run.from_wire(item) for item in page.items], page.pagination.next_page_token

        return Listing(fetch)

    async def get(self, run_id: str) -> Run:
        """Gets a run."""
        request = wire.GetRunRequest(run_id=run_id)
        return Run.from_wire(await self._calls.read("RunService/GetRun", request, wire.GetRunResponse))

    def events(self, run_id: str, *, after_sequence: int = 0, page_size: int = 500) -> Listing[RunEvent]:
        """Lists the events of a run so far, in order."""

        async def fetch(cursor: int | None) -> tuple[list[RunEvent], int | None]:
            request = wire.ListRunEventsRequest(run_id=run_id, after_sequence=cursor or after_sequence, limit=page_size)
            page = await self._calls.read("RunService/ListRunEvents", request, wire.ListRunEventsResponse)
            return [RunEvent.from_wire(item) for item in page.items], page.next_after_sequence

        return Listing(fetch)

    def watch(
        self,
        run_id: str,
        *,
        include_descendants: bool = False,
        tasks_only: bool = False,
        after_sequence: int = 0,
        cursor: str = "",
    ) -> RunWatch:
        """Watches a run: every event from its first on, or behind one, to its end.

        Args:
            include_descendants: also the runs that it began, and theirs, whenever they begin.
            tasks_only: only what happens to tasks.
            after_sequence: go on behind the event with this number; of a run alone.
            cursor: go on behind it; a watch of before has it.
        """

        def request(behind: str) -> Any:
            kind = wire.WatchRunTasksRequest if tasks_only else wire.WatchRunRequest
            after = 0 if behind else after_sequence
            return kind(run_id=run_id, include_descendants=include_descendants, after_sequence=after, cursor=behind)

        return RunWatch(self._calls, "WatchRunTasks" if tasks_only else "WatchRun", request, cursor)

    def tasks(self, run_id: str, *, status: str = "", page_size: int = 100) -> Listing[Task]:
        """Lists the tasks of a run, in the order they were made.

        Raises:
            ValueError: there is no such status.
        """
        wanted = choice(run_pb2.Task.Status, status)

        async def fetch(cursor: str | None) -> tuple[list[Task], str | None]:
            request = wire.ListRunTasksRequest(
                run_id=run_id, status=wanted, page_size=page_size, page_token=cursor or ""
            )
            page = await self._calls.read("RunService/ListRunTasks", request, wire.ListRunTasksResponse)
            return [Task.from_wire(item) for item in page.items], page.pagination.next_page_token

        return Listing(fetch)

    def children(self, run_id: str, *, page_size: int = 100) -> Listing[Run]:
        """Lists the runs that steps of a run began, newest first."""

        async def fetch(cursor: str | None) -> tuple[list[Run], str | None]:
            request = wire.ListRunChildrenRequest(run_id=run_id, page_size=page_size, page_token=cursor or "")
            page = await self._calls.read("RunService/ListRunChildren", request, wire.ListRunChildrenResponse)
            return [Run.from_wire(item) for item in page.items], page.pagination.next_page_token

        return Listing(fetch)

    async def cancel(self, run_id: str, reason: str = "") -> Run:
        """Cancels a run and returns it as it stands: running tasks are told, and have 10 s to end."""
        request = wire.CancelRunRequest(run_id=run_id, reason=reason)
        answer = await self._calls.write("RunService/CancelRun", request, wire.CancelRunResponse)
        return Run.from_wire(answer.message)

    async def retry(self, run_id: str, note: str = "", *, from_step: str = "", idempotency_key: str = "") -> Run:
        """Lets a failed run go on: what is done stays, what failed begins again; of a run of a workflow from a step.

        Raises:
            ConflictError: it is not FAILED, or nothing of it could be tried again.
        """
        request = wire.RetryRunRequest(run_id=run_id, note=note, from_step=from_step)
        answer = await self._calls.write("RunService/RetryRun", request, wire.RetryRunResponse, key=idempotency_key)
        return Run.from_wire(answer.message)

    async def rerun(self, run_id: str, *, version: str = "", idempotency_key: str = "") -> Run:
        """Begins a new run with what another was given, and returns it; of a workflow's run in the "same" version (the
        default of a definition) or the "latest" (the default of code)."""
        request = wire.RerunRunRequest(run_id=run_id, version=version)
        answer = await self._calls.write("RunService/RerunRun", request, wire.RerunRunResponse, key=idempotency_key)
        return Run.from_wire(answer.message)

    async def pause(self, run_id: str, reason: str = "") -> Run:
        """Pauses a run: nothing new of it starts, what runs ends."""
        request = wire.PauseRunRequest(run_id=run_id, reason=reason)
        answer = await self._calls.write("RunService/PauseRun", request, wire.PauseRunResponse)
        return Run.from_wire(answer.message)

    async def resume(self, run_id: str) -> Run:
        """Lets a paused run go on."""
        request = wire.ResumeRunRequest(run_id=run_id)
        answer = await self._calls.write("RunService/ResumeRun", request, wire.ResumeRunResponse)
        return Run.from_wire(answer.message)

    async def retry_many(
        self,
        run_ids: Sequence[str] = (),
        note: str = "",
        *,
        dry_run: bool = False,
        limit: int | None = None,
        page_token: str = "",
        idempotency_key: str = "",
        **having: Any,
    ) -> RunsDone:
        """Retries failed runs, at most 1,000 a call: those named, or those `having` what `list` is asked for (kind,
        created_after, created_before, workflow, labels, text, parent). A dry run tells which these are."""
        request = wire.RetryRunsRequest(
            run_ids=run_ids, filter=filter_of(**having), note=note, dry_run=dry_run, limit=limit, page_token=page_token
        )
        answer = await self._calls.write(
            "RunService/RetryRuns", request, wire.RetryRunsResponse, key=idempotency_key, timeout_s=BULK_TIMEOUT_S
        )
        return RunsDone.from_wire(answer.message, answer.replayed)

    async def cancel_many(
        self,
        run_ids: Sequence[str] = (),
        reason: str = "",
        *,
        dry_run: bool = False,
        limit: int | None = None,
        page_token: str = "",
        idempotency_key: str = "",
        **having: Any,
    ) -> RunsDone:
        """Cancels runs, at most 1,000 a call: those named, or the running ones `having` what `list` is asked for (kind,
        created_after, created_before, workflow, labels, text, parent). A dry run tells which these are."""
        request = wire.CancelRunsRequest(
            run_ids=run_ids,
            filter=filter_of(**having),
            reason=reason,
            dry_run=dry_run,
            limit=limit,
            page_token=page_token,
        )
        answer = await self._calls.write(
            "RunService/CancelRuns", request, wire.CancelRunsResponse, key=idempotency_key, timeout_s=BULK_TIMEOUT_S
        )
        return RunsDone.from_wire(answer.message, answer.replayed)
