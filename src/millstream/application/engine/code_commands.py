"""The commands of code-first runs."""

from collections.abc import Sequence
from dataclasses import dataclass

from millstream.application.engine.commands import Command, found_of, keep_for_replays
from millstream.application.engine.graph_commands import waiting_for
from millstream.domain.batch import Batch
from millstream.domain.code_runs import Answer, NewRun, answer, begin, signal
from millstream.domain.errors import Conflict, NotFound
from millstream.domain.runs import Run


@dataclass(slots=True)
class StartRun(Command):
    """Begin a run, or signal the one that there is; returns it, and whether it began here.

    Attributes:
        signal: Name and value of a signal to send with it; None: the run must be new.
        waiter: The lane where a caller waits for its end.
    """

    tenant: str = ""
    by: str = ""
    new: NewRun = None  # type: ignore[assignment]  # always given; dataclass order wants a default
    signal: tuple[str, bytes] | None = None
    waiter: str = ""

    def decide(self, batch: Batch) -> tuple[Run, bool]:
        """Begin it unless it is there. Raises Conflict, also where its parent does not wait for it any more."""
        run = batch.runs.get(self.run_id)
        if self.new.parent_task:
            waiting_for(batch, self.new.parent_task)
        began = run is None
        if run is None:
            run = begin(batch, self.run_id, self.tenant, self.by, self.new)
        elif run.tenant != self.tenant or self.signal is None:
            raise Conflict(f"there is a run {self.run_id} already; use another run_id, or leave it out")
        if self.signal is not None:
            signal(batch, run, *self.signal)
        if self.waiter and self.waiter not in run.waiters:
            run.waiters = (*run.waiters, self.waiter)
            batch.touch(run)
        keep_for_replays(batch, run, self.key)
        keep_for_replays(batch, run, self.business_key)
        return run, began


@dataclass(slots=True)
class SignalRun(Command):
    """Signal a run; returns the number of the event."""

    tenant: str = ""
    name: str = ""
    value: bytes = b""

    def decide(self, batch: Batch) -> int:
        """Have its code told."""
        run = batch.runs.get(self.run_id)
        if run is None or run.tenant != self.tenant:
            raise NotFound(f"there is no run {self.run_id}")
        seq = signal(batch, run, self.name, self.value)
        keep_for_replays(batch, run, self.key)
        return seq


@dataclass(slots=True)
class AnswerActivation(Command):
    """Take what a run's code says."""

    tenant: str = ""
    said: Answer = None  # type: ignore[assignment]  # always given; dataclass order wants a default

    def buffers(self, batch: Batch) -> Sequence[str]:
        """Those of the gates that its artifacts enter."""
        said = self.said
        return [
            each
            for item, cascade in zip(said.produced, said.cascades, strict=True)
            for each in item.buffers(self.tenant, cascade)
        ]

    def decide(self, batch: Batch) -> bool:
        """Whether this changed anything: an answer may come twice."""
        run, lead = found_of(batch, self.run_id)
        if run.tenant != self.tenant:
            raise NotFound(f"there is no task {lead.id}")
        return answer(batch, run, lead, self.said)
