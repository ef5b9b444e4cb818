"""The command that runs an agent by name."""

from collections.abc import Sequence
from dataclasses import dataclass

from millstream.application.engine.commands import Command, keep_for_replays
from millstream.domain.agents import Activation
from millstream.domain.batch import Batch
from millstream.domain.lifecycle import details
from millstream.domain.publication import Produce, run_agent
from millstream.domain.runs import Run, RunKind


@dataclass(slots=True)
class RunAgent(Command):
    """Give artifacts to one task of an agent, in a new cascade; returns the run's id."""

    tenant: str = ""
    by: str = ""
    inputs: Sequence[Produce] = ()
    start: Activation = None  # type: ignore[assignment]  # always given; dataclass order wants a default
    task_id: str = ""
    waiter: str = ""
    rerun_of: str = ""

    def decide(self, batch: Batch) -> str:
        """Make the run with its artifacts and its task."""
        run = Run(self.run_id, self.tenant, RunKind.CASCADE, batch.now_us, self.by, updated_us=batch.now_us)
        run.rerun_of = self.rerun_of
        # A rerun gives its inputs to the same agent.
        batch.add_run(run, details(agent=self.start.agent))
        run.waiters = (self.waiter,)
        run_agent(batch, run, self.inputs, self.start, self.task_id)
        keep_for_replays(batch, run, self.key)
        return run.id
