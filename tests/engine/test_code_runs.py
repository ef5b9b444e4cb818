"""Code-first runs through the engine: activations, answers, signals, cancellation, cold and warm, on two servers."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.engine.database import Database
from tests.engine.servers import Roles
from tests.engine.workers import Worker
from tests.engine.world import ROOT, check_all, kinds_of

from millstream.application.code_views import ActivationAnswer, NewCodeRun
from millstream.application.views import Lease, ReportResult
from millstream.domain.code import (
    Activation,
    End,
    EndType,
    Entry,
    EntryType,
    Given,
    Recorded,
    StartTask,
    What,
)
from millstream.domain.retry import DEFAULT_RETRY, DEFAULT_TIMEOUTS
from millstream.domain.runs import RunStatus
from millstream.domain.struct_wire import decode_value, encode_value
from millstream.domain.workers import WORKFLOW_KIND, KindSpec
from millstream.wiring import Service

FLOW = KindSpec("flow", WORKFLOW_KIND, "1")


def task(kind: str = "step", given: Any = None) -> StartTask:
    """A task that the code asks for."""
    return StartTask(kind, encode_value(given), "", 0, 0, DEFAULT_RETRY, DEFAULT_TIMEOUTS, "")


def done(value: Any = None) -> End:
    """The code returns."""
    return End(EndType.COMPLETED, encode_value(value))


class Coder(Worker):
    """A worker whose answers to activations the test gives."""

    def __init__(self, service: Service, *versions: str, **fields: Any) -> None:
        super().__init__(service, **({"kinds": ["step"]} | fields))
        specs = tuple(KindSpec("flow", WORKFLOW_KIND, version) for version in versions or ("1",))
        self._hello = self._hello.__class__(
            **{name: getattr(self._hello, name) for name in self._hello.__slots__} | {"specs": specs}
        )

    async def activation(self) -> tuple[Lease, Activation]:
        """The next lease, which is an activation."""
        lease = await self.take()
        assert lease.activation is not None
        return lease, lease.activation

    async def answer(self, lease: Lease, *whats: What, end: End | None = None, **fields: Any) -> ReportResult:
        """Answer an activation: the commands stand behind its last event."""
        told = lease.activation
        assert told is not None
        commands = [Given(told.count + 1 + index, told.base, what) for index, what in enumerate(whats)]
        said = ActivationAnswer(lease.task.id, lease.attempt, fields.pop("base", told.base), commands, end)
        result = (await self.session.report(reports_of(said)))[0]
        self.session.add_credit(1)
        return result


def reports_of(said: ActivationAnswer) -> Any:
    from millstream.application.views import Reports

    return Reports(answers=(said,))


def seen(lease: Lease) -> list[str]:
    """What an activation tells, readably."""
    told = []
    for item in lease.history.items:
        if isinstance(item, Entry):
            value = decode_value(item.value) if item.value else None
            what = {EntryType.COMPLETED: item.step, EntryType.FAILED: item.step, EntryType.SIGNALLED: item.name}
            told.append(f"{item.type.name} {what.get(item.type, '')} {value}".replace("  ", " "))
        elif isinstance(item, Recorded):
            told.append(f"- {item.number} {item.type.name} {item.name}".rstrip())
    return told


async def begin(service: Service, given: Any = None, **fields: Any) -> str:
    """Start a run; its id."""
    result = await service.code_runs.start(ROOT, NewCodeRun("flow", input=encode_value(given), **fields), None)
    return result.run.id


async def ended(service: Service, run_id: str) -> tuple[RunStatus, Any]:
    """How a run ended, and its output."""
    result = await service.code_runs.result(ROOT, run_id, 5)
    assert result.completed
    return result.run.status, decode_value(result.output) if result.output else None


@pytest.fixture(autouse=True)
async def _consistent(database: Database) -> AsyncIterator[None]:
    yield
    await check_all(database)


async def test_the_shortest_run_is_an_activation_a_task_and_a_result(roles: Roles) -> None:
    """FV-18: from the start to the output, through any server, on either path."""
    async with Coder(roles.worker) as worker:
        run_id = await begin(roles.publisher, {"id": 7})
        first, told = await worker.activation()
        assert (told.workflow, told.version, told.token) == ("flow", "1", 0)
        assert seen(first) == ["STARTED {'id': 7}"]
        await worker.answer(first, task(given="pay"))
        step = await worker.take()
        assert (step.task.kind, step.task.step, decode_value(step.task.input)) == ("step", 1, "pay")
        await worker.complete(step, output=encode_value("paid"))
        second, told = await worker.activation()
        assert seen(second) == ["COMPLETED 1 paid"]
        assert told.token == first.attempt
        await worker.answer(second, end=done("done"))
        assert await ended(roles.publisher, run_id) == (RunStatus.COMPLETED, "done")
    assert await kinds_of(roles.publisher, run_id) == [
        "RUN_CREATED", "TASK_CREATED", "TASK_STARTED", "TASK_COMPLETED", "RUN_COMPLETED",
    ]  # fmt: skip
