"""Tasks: creating, reading and cancelling them."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from millstream.application.engine.commands import CancelTask, CreateTask
from millstream.application.engine.engine import Engine
from millstream.application.engine.queue import Outcome, Replayed
from millstream.application.ids import new_id
from millstream.application.paging import Page, PageRequest, fitting, text_bytes
from millstream.application.publishing import batch_of, claim_call, item_key
from millstream.application.runs import RunReads as _RunReads
from millstream.application.runs import claim_of, task_page
from millstream.application.sight import Sight
from millstream.application.stuck import StuckReads, stuck_tasks
from millstream.application.views.artifacts import Published
from millstream.application.views.batches import Batch
from millstream.application.views.idempotency import Key
from millstream.application.views.runs import StuckQuery, StuckTask
from millstream.application.views.tasks import CreatedTask, NewTask, TaskQuery, TaskView
from millstream.domain.batch import BUSINESS, KeyClaim
from millstream.domain.errors import MillstreamError, NotFound, Unavailable, ValidationFailed
from millstream.domain.principals import Principal
from millstream.domain.runs import Attempt, AttemptStatus, Task, TaskStatus


class RunReads(_RunReads, StuckReads, Protocol):
    """What is read of runs and tasks; see store.runs."""


class Tasks:
    """The use cases of tasks.

    Args:
        key_ttl_us: How long an idempotency key holds, microseconds.
    """

    def __init__(self, engine: Engine, reads: RunReads, key_ttl_us: int) -> None:
        self._engine = engine
        self._reads = reads
        self._key_ttl_us = key_ttl_us

    async def create(self, principal: Principal, new: NewTask, key: Key | None, rerun_of: str = "") -> CreatedTask:
        """Create one task; `rerun_of` is the run that its run repeats. Raises ValidationFailed, IdempotencyConflict,
        RateLimited."""
        check_new(new)
        result = (await self._create_all(principal, [new], [key], rerun_of))[0]
        if isinstance(result, MillstreamError):
            raise result
        return result

    async def create_batch(
        self,
        principal: Principal,
        items: Sequence[NewTask | MillstreamError],
        keys: Sequence[Key | None],
        key: Key | None,
    ) -> Batch:
        """Create many, each with an outcome of its own. Raises IdempotencyConflict, RateLimited."""
        expires_us = self._engine.clock.now_us() + self._key_ttl_us
        await claim_call(self._engine, claim_of(principal, key, [], expires_us))
        keys = [own or item_key(key, index) for index, own in enumerate(keys)]
        items = [_checked(item) for item in items]
        wanted = [index for index, item in enumerate(items) if isinstance(item, NewTask)]
        made = await self._create_all(
            principal, [item for item in items if isinstance(item, NewTask)], [keys[index] for index in wanted]
        )
        results: list[Published | CreatedTask | MillstreamError] = [
            item if isinstance(item, MillstreamError) else Unavailable("") for item in items
        ]
        for index, result in zip(wanted, made, strict=True):
            results[index] = result
        return batch_of(results, key)

    async def _create_all(
        self, principal: Principal, items: Sequence[NewTask], keys: Sequence[Key | None], rerun_of: str = ""
    ) -> list[CreatedTask | MillstreamError]:
        now_us = self._engine.clock.now_us()
        commands: list[CreateTask] = []
        for new, key in zip(items, keys, strict=True):
            task_id, run_id = new_id(), new_id()
            commands.append(
                CreateTask(
                    run_id=run_id,
                    new_run=True,
                    size_bytes=500 + len(new.input),
                    key=claim_of(principal, key, [task_id], now_us + self._key_ttl_us),
                    business_key=self._business_key(principal, new, [task_id, run_id], now_us),
                    tenant=principal.tenant,
                    by=principal.name,
                    new=new,
                    task_id=task_id,
                    rerun_of=rerun_of,
                )
            )
        outcomes = await self._engine.submit_all(commands)
        return [await self._created(principal, outcome) for outcome in outcomes]

    def _business_key(self, principal: Principal, new: NewTask, made: list[str], now_us: int) -> KeyClaim | None:
        """The claim of a task's own key, whoever asks for it."""
        if not new.business_key:
            return None
        expires_us = now_us + (new.business_ttl_us or self._key_ttl_us)
        rpc = f"{BUSINESS}task {new.kind}"
        return KeyClaim(principal.tenant, "", rpc, new.business_key, b"", json.dumps(made), expires_us)

    async def _created(self, principal: Principal, outcome: Outcome) -> CreatedTask | MillstreamError:
        if isinstance(outcome, MillstreamError):
            return outcome
        if isinstance(outcome, Replayed):
            found = await self._reads.task(principal.tenant, json.loads(outcome.claim.response)[0])
            return CreatedTask(found, True) if found else NotFound("the task is gone: its retention has passed")
        return CreatedTask(outcome)

    async def get(self, principal: Principal, task_id: str) -> TaskView:
        """A task with its output, which is shown to those who may see all that the task was given. Raises NotFound."""
        found = await self._task(principal, task_id)
        shown = await self._seen(principal, found)
        whole = shown.artifact_ids == found.artifact_ids
        output = await self._reads.output(found) if found.status is TaskStatus.COMPLETED and whole else b""
        return TaskView(shown, output)

    async def _seen(self, principal: Principal, found: Task) -> Task:
        """The task, with those of its artifacts that the caller may see."""
        return (await Sight(self._reads).tasks(principal, [found], self._engine.clock.now_us()))[0]

    async def _task(self, principal: Principal, task_id: str) -> Task:
        found = await self._reads.task(principal.tenant, task_id)
        if found is None:
            raise NotFound(f"there is no task {task_id}")
        return found

    async def cancel(self, principal: Principal, task_id: str, reason: str, key: Key | None) -> TaskView:
        """Begin to cancel a task. Raises NotFound, Conflict, IdempotencyConflict."""
        expires_us = self._engine.clock.now_us() + self._key_ttl_us
        command = CancelTask(
            task_ids=(task_id,), locked=True, key=claim_of(principal, key, [task_id], expires_us),
            tenant=principal.tenant, reason=reason, by=principal.name,
        )  # fmt: skip
        outcome = await self._engine.submit(command)
        if isinstance(outcome, Replayed):
            return TaskView(await self._seen(principal, await self._task(principal, task_id)), replayed=True)
        return TaskView(await self._seen(principal, outcome))

    async def attempts(
        self, principal: Principal, task_id: str, after: int, limit: int, run_id: str = ""
    ) -> tuple[list[Attempt], int | None]:
        """Attempts from first to last, the running one included, and where to go on; their outputs as get shows them.
        Raises NotFound, also of a task of another run than `run_id`, where that is given."""
        task = await self._task(principal, task_id)
        if run_id and task.run_id != run_id:
            raise NotFound(f"run {run_id} has no task {task_id}")
        found = await self._reads.attempts(task, after, limit)
        if (await self._seen(principal, task)).artifact_ids != task.artifact_ids:
            found = [replace(each, output=b"") for each in found]
        if task.status is TaskStatus.RUNNING and task.attempt > after:
            found.append(
                Attempt(task.id, task.attempt, task.day, AttemptStatus.RUNNING, task.started_us, 0, task.worker_name)
            )
        page = fitting(found, limit, lambda each: 300 + len(each.output) + text_bytes(each.error_message))
        return page, page[-1].number if len(found) > len(page) else None

    async def stuck(
        self, principal: Principal, query: StuckQuery, size: int, page_token: str
    ) -> tuple[list[StuckTask], str]:
        """What does not get on, and the token to go on with ("" at the end). Raises ValidationFailed."""
        return await stuck_tasks(self._reads, principal, query, size, page_token, self._engine.clock.now_us())

    async def list(self, principal: Principal, query: TaskQuery, request: PageRequest) -> Page[Task]:
        """Tasks newest first. Raises ValidationFailed."""
        return await task_page(self._reads, principal, query, request, self._engine.clock.now_us())


def _checked(item: NewTask | MillstreamError) -> NewTask | MillstreamError:
    """The item, or why it cannot be."""
    if isinstance(item, NewTask):
        try:
            check_new(item)
        except ValidationFailed as error:
            return error
    return item


def check_new(new: NewTask) -> None:
    """Raise ValidationFailed on what the contract's rules cannot say."""
    if new.run_at_us and new.delay_us:
        raise ValidationFailed.of("delay", "give run_at or delay, not both")
    if new.kind.startswith("agent:"):
        raise ValidationFailed.of("kind", "kinds beginning with 'agent:' are the server's; publish an artifact instead")
    if new.timeouts.fault:
        raise ValidationFailed.of("timeouts.heartbeat", new.timeouts.fault)
    if 0 < new.run_timeout_us <= new.delay_us:
        raise ValidationFailed.of("run_timeout", "is over before delay is; make it longer", "OUT_OF_RANGE")
