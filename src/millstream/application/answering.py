"""What the code of runs says to activations: examined, and stored as one; a run whose code makes no sense is parked."""

from collections.abc import Sequence
from dataclasses import replace

from millstream.application.catalog import Catalog, Catalogs
from millstream.application.engine.code_commands import AnswerActivation
from millstream.application.engine.commands import Command, Complete, Fail
from millstream.application.engine.engine import Engine
from millstream.application.engine.queue import Outcome
from millstream.application.ids import new_id
from millstream.application.publishing import ids_for
from millstream.application.referring import Referring, referred
from millstream.application.rounds import Made, in_rounds
from millstream.application.views.code_runs import ActivationAnswer
from millstream.application.views.reports import ReportResult
from millstream.domain.artifacts import EXTERNAL
from millstream.domain.code import CancelStep, Note, OpenPromise, PublishItem
from millstream.domain.code_runs import Answer
from millstream.domain.errors import LeaseLost, MillstreamError, NotFound, Unavailable
from millstream.domain.principals import Principal
from millstream.domain.publication import Produce

INVALID = "INVALID_ANSWER"


class Answering:
    """Stores what the code of runs says."""

    def __init__(self, engine: Engine, catalogs: Catalogs, referring: Referring) -> None:
        self._engine = engine
        self._catalogs = catalogs
        self._referring = referring

    async def answer(self, principal: Principal, answers: Sequence[ActivationAnswer]) -> list[ReportResult]:
        """Store answers; what became of each, in their order."""

        async def make(answer: ActivationAnswer) -> Made:
            return await self._command(principal, answer)

        errors = await in_rounds(self._catalogs, principal.tenant, answers, make, self._submit)
        await self._park(principal, answers, errors)
        return [ReportResult(each.task_id, each.attempt, error) for each, error in zip(answers, errors, strict=True)]

    async def _submit(self, commands: Sequence[Command]) -> Sequence[Outcome]:
        return await self._engine.submit_all(commands, urgent=True)

    async def _park(
        self, principal: Principal, answers: Sequence[ActivationAnswer], errors: Sequence[MillstreamError | None]
    ) -> None:
        """Fail activations whose answer broke a rule: the same worker would say the same again."""
        bad = [
            _failed(principal, each, error)
            for each, error in zip(answers, errors, strict=True)
            if error is not None and each.fault is None and not isinstance(error, LeaseLost | NotFound | Unavailable)
        ]
        await self._engine.submit_all(bad, urgent=True)

    async def _command(self, principal: Principal, answer: ActivationAnswer) -> tuple[Command, MillstreamError | None]:
        if answer.fault is not None:
            return _failed(principal, answer, answer.fault), answer.fault
        said = _said(answer)
        command = AnswerActivation(
            run_id=answer.task_id, task_ids=(answer.task_id,), size_bytes=answer.size_bytes,
            open_tasks=_touches_open(said), cached_tasks=True, tenant=principal.tenant, said=said,
        )  # fmt: skip
        keys = [(principal.tenant, each.what.key) for each in said.commands if isinstance(each.what, OpenPromise)]
        if keys := [each for each in keys if each[1]]:
            command.promise_keys, command.locked = keys, True
        if answer.artifacts:
            try:
                await self._examine(principal, answer, command)
            except MillstreamError as error:
                if isinstance(error, Unavailable):
                    raise
                return _failed(principal, answer, error), error
        return command, None

    async def _examine(self, principal: Principal, answer: ActivationAnswer, command: AnswerActivation) -> None:
        """Check and match what is published, by the present registry where the one at hand refuses it."""
        catalog = await self._catalogs.get(principal.tenant)
        try:
            produced = await self._produced(principal, catalog, answer)
        except MillstreamError:
            fresh = await self._catalogs.get(principal.tenant, fresh=True)
            if fresh is catalog:
                raise
            catalog = fresh
            produced = await self._produced(principal, catalog, answer)
        command.said = replace(command.said, produced=produced, cascades=[new_id() for _ in produced])
        command.registry = (principal.tenant, catalog.version)
        command.payloads = referred(principal.tenant, [each.new for each in produced])
        command.gated = any(each.gated for each in produced)
        command.locked = command.locked or any(each.tenant_wide for each in produced)

    async def _produced(self, principal: Principal, catalog: Catalog, answer: ActivationAnswer) -> list[Produce]:
        found = []
        for index, item in enumerate(answer.artifacts):
            version, activations, new = await self._referring.examine(
                principal, catalog, item, EXTERNAL, f"artifacts[{index}]."
            )
            found.append(Produce(new, new_id(), version, activations, ids_for(activations)))
        return found


def answer_ahead(command: Complete, ahead: ActivationAnswer) -> None:
    """Have a completion take along what the code of its run says to it."""
    command.ahead = said = _said(ahead)
    command.run_id = ahead.task_id
    command.size_bytes += ahead.size_bytes
    command.open_tasks, command.cached_tasks = _touches_open(said), True


def _said(answer: ActivationAnswer) -> Answer:
    """What the code says, with ids for the tasks that it asks for."""
    commands = [
        each if isinstance(each.what, Note | PublishItem | CancelStep) else replace(each, task_id=new_id())
        for each in answer.commands
    ]
    return Answer(answer.attempt, answer.base, commands, answer.end)


def _touches_open(said: Answer) -> bool:
    """Whether all that is open in the run is needed."""
    return said.end is not None or any(isinstance(each.what, CancelStep) for each in said.commands)


def _failed(principal: Principal, answer: ActivationAnswer, error: MillstreamError) -> Fail:
    return Fail(
        task_ids=(answer.task_id,), tenant=principal.tenant, attempt=answer.attempt, code=INVALID,
        message=error.message, retryable=False,
    )  # fmt: skip
