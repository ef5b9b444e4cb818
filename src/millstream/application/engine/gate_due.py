"""The command of gates whose time has come."""

from collections.abc import Sequence
from dataclasses import dataclass

from millstream.application.engine.commands import Command
from millstream.domain.agents import Activation
from millstream.domain.batch import Batch
from millstream.domain.gating import fall_due


@dataclass(slots=True)
class GateDue(Command):
    """Hand a batch over, or give up what waited too long.

    Attributes:
        start: What the gate activates; None where its subscription is gone.
        ids: For the task and the run that it may make.
    """

    buffer_id: str = ""
    start: Activation | None = None
    ids: tuple[str, str] = ("", "")

    def buffers(self, batch: Batch) -> Sequence[str]:
        """The one."""
        return (self.buffer_id,)

    def decide(self, batch: Batch) -> None:
        """Judge it again, under its lock."""
        buffer = batch.buffers.get(self.buffer_id)
        if buffer is None or (buffer.run_id and buffer.run_id not in batch.runs):
            return
        fall_due(batch, buffer, self.start, self.ids, {self.run_id, *self.run_ids})
