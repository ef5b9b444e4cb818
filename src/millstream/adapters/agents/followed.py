"""A task at an A2A agent, as its answers and events tell of it."""

import asyncio
from collections.abc import Sequence
from typing import Final

from a2a.types.a2a_pb2 import (
    Artifact,
    Message,
    StreamResponse,
    Task,
    TaskArtifactUpdateEvent,
    TaskState,
    TaskStatus,
)

from millstream.adapters.agents import parts
from millstream.application.call_ports import Answer, CallFailed, CallWatch

_OVER: Final = frozenset(
    {
        TaskState.TASK_STATE_COMPLETED,
        TaskState.TASK_STATE_FAILED,
        TaskState.TASK_STATE_CANCELED,
        TaskState.TASK_STATE_REJECTED,
    }
)
_ASKS: Final = frozenset({TaskState.TASK_STATE_INPUT_REQUIRED, TaskState.TASK_STATE_AUTH_REQUIRED})
_FAILURES: Final = {
    # Code, what it means, and whether another attempt may help; None leaves that to the task's policy.
    TaskState.TASK_STATE_FAILED: ("AGENT_FAILED", "the agent failed", None),
    TaskState.TASK_STATE_CANCELED: ("AGENT_CANCELLED", "the agent cancelled the task", None),
    TaskState.TASK_STATE_REJECTED: ("AGENT_REJECTED", "the agent rejected the task", False),
    TaskState.TASK_STATE_INPUT_REQUIRED: ("AGENT_INPUT_REQUIRED", "the agent asks for input, which none gives", False),
    TaskState.TASK_STATE_AUTH_REQUIRED: ("AGENT_AUTH_REQUIRED", "the agent asks for credentials", False),
}


class Followed:
    """What is known of an agent's task.

    Attributes:
        id: The agent's own id of it; "" where there is none (yet).
        known: Done when the agent has said something.
    """

    def __init__(self, watch: CallWatch) -> None:
        self.id = ""
        self.known: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._watch = watch
        self._status = TaskStatus()
        self._message: Message | None = None
        self._artifacts: dict[str, Artifact] = {}

    @property
    def lost(self) -> bool:
        """The task it is done for is another server's by now."""
        return self._watch.lost

    @property
    def over(self) -> bool:
        """The agent does nothing more for it."""
        return self._message is not None or self._status.state in _OVER

    @property
    def ended(self) -> bool:
        """Nothing more is to come: it is over, or waits for what never comes."""
        return self.over or self._status.state in _ASKS

    def take(self, event: StreamResponse) -> None:
        """An event of the task's stream."""
        if event.HasField("message"):
            self._message = event.message
            self._seen()
        elif event.HasField("task"):
            self.replace(event.task)
        elif event.HasField("status_update"):
            self.id = event.status_update.task_id or self.id
            self._set(event.status_update.status, parts.about(event.status_update.metadata))
        elif event.HasField("artifact_update"):
            self.id = event.artifact_update.task_id or self.id
            self._add(event.artifact_update)
            self._seen()

    def replace(self, task: Task) -> None:
        """The whole task."""
        self.id = task.id or self.id
        if task.artifacts:
            self._artifacts = {each.artifact_id: each for each in task.artifacts}
        self._set(task.status, parts.about(task.metadata))

    def answer(self, outputs: Sequence[str]) -> Answer:
        """What the agent answered. Raises CallFailed where that is no success."""
        if self._message is not None:
            return parts.answer_of([parts.as_artifact(self._message)], outputs)
        status = self._status
        if status.state != TaskState.TASK_STATE_COMPLETED:
            raise self._failed()
        if not self._artifacts and status.message.parts:
            # It said its answer instead of making something.
            return parts.answer_of([parts.as_artifact(status.message)], outputs)
        return parts.answer_of(self._artifacts.values(), outputs)

    def _failed(self) -> CallFailed:
        code, text, retryable = _FAILURES[self._status.state]
        message = self._status.message
        said, about = parts.text_of(message.parts), parts.about(message.metadata)
        own_code, may_retry = about.get("code"), about.get("retryable")
        if self._status.state == TaskState.TASK_STATE_FAILED:
            code = own_code if isinstance(own_code, str) and own_code else code
            retryable = may_retry if isinstance(may_retry, bool) else retryable
        return CallFailed(code, f"{text}: {said}" if said else text, retryable)

    def _set(self, status: TaskStatus, about: parts.Object) -> None:
        self._status = status
        said = "" if self.ended else parts.text_of(status.message.parts)
        fraction = about.get("progress")
        known = isinstance(fraction, int | float) and not isinstance(fraction, bool)
        self._seen(said, float(fraction) if known and isinstance(fraction, int | float) else None)

    def _seen(self, message: str = "", fraction: float | None = None) -> None:
        if not self.known.done():
            self.known.set_result(None)
        self._watch.seen(message, fraction)

    def _add(self, event: TaskArtifactUpdateEvent) -> None:
        artifact = event.artifact
        before = self._artifacts.get(artifact.artifact_id) if event.append else None
        if before is None:
            self._artifacts[artifact.artifact_id] = artifact
            return
        for part in artifact.parts:
            last = before.parts[-1] if before.parts else None
            if part.HasField("text") and last is not None and last.HasField("text"):
                # Pieces of one text, as it is written.
                last.text += part.text
            else:
                before.parts.append(part)
        before.metadata.MergeFrom(artifact.metadata)
