"""Runs in a test's hands: how they stand, and what is done to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from millstream.sdk.errors import MillstreamError
from millstream.sdk.histories import History
from millstream.sdk.payload import JsonValue

if TYPE_CHECKING:
    from millstream.testing.environment import Environment


class RunFailed(MillstreamError):
    """A run failed or was cancelled; `code` and `message` say why."""


class Blocked(Exception):
    """Nothing can go on any more: every open run waits for a promise, a signal, or a task that nobody serves."""


@dataclass(frozen=True, slots=True)
class Publication:
    """An artifact that was published: by a run, or by an agent (`by`)."""

    type: str
    payload: Mapping[str, JsonValue]
    tags: Sequence[str] = ()
    by: str = ""


@dataclass(frozen=True, slots=True)
class TestStep:
    """A step of a workflow that is a document.

    Attributes:
        status: "WAITING", "PENDING", "RUNNING", "COMPLETED", "SKIPPED", "FAILED" or "CANCELLED".
        output: What later steps see of it; None until it is completed.
    """

    __test__ = False  # pytest takes classes of this name for tests

    status: str
    output: JsonValue = None


class TestRun:
    """A run in a test's hands.

    Attributes:
        run_id: Its id.
    """

    __test__ = False

    def __init__(self, environment: Environment, run_id: str) -> None:
        """Made by `Environment.start`."""
        self.run_id = run_id
        self._environment = environment

    @property
    def status(self) -> str:
        """ "RUNNING", "CANCELLING", "COMPLETED", "FAILED" or "CANCELLED"."""
        return self._environment.look(self.run_id).status

    @property
    def state(self) -> dict[str, JsonValue]:
        """What it remembers by name (`ctx.state`)."""
        return self._environment.look(self.run_id).state

    @property
    def events(self) -> list[str]:
        """What has happened in it so far, as the service tells it: "RUN_CREATED", "TASK_CREATED" ..."""
        return self._environment.look(self.run_id).events

    @property
    def history(self) -> History:
        """What its code has seen and done so far, for `replay`. Raises MillstreamError (CONFLICT) where it has no
        code."""
        return self._environment.history(self.run_id)

    async def steps(self) -> dict[str, TestStep]:
        """How the steps of its document stand, by their ids."""
        return await self._environment.steps(self.run_id)

    async def result(self) -> JsonValue:
        """Has everything go on, time too, until the run has ended; its output.

        Raises:
            RunFailed: it failed or was cancelled.
            Blocked: it cannot end without a signal, a promise or a task's handler.
            NonDeterminism: its code does something else when it is led through its history again.
        """
        return await self._environment.finish(self.run_id)

    async def signal(self, name: str, value: JsonValue = None) -> None:
        """Signals it. Raises MillstreamError (CONFLICT) where it has ended, or takes no signals."""
        await self._environment.signal(self.run_id, name, value)

    async def cancel(self, reason: str = "") -> None:
        """Begins to cancel it: its code is told, and has the grace of the service (10 s) to clean up."""
        await self._environment.cancel(self.run_id, reason)
