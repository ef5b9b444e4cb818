"""What calling an agent asks for and gives: between the use cases and the protocols; see adapters.agents."""

from dataclasses import dataclass, field
from typing import Protocol

from millstream.domain.struct_wire import Json


@dataclass(frozen=True, slots=True)
class Given:
    """An artifact that an agent is given; `payload` is None where it is kept outside, as `payload_ref`, and is no JSON
    object that could be sent along."""

    id: str
    type: str
    produced_by: str
    tags: tuple[str, ...]
    partition_key: str
    payload: dict[str, Json] | None
    payload_ref: str = ""


@dataclass(frozen=True, slots=True)
class Credential:
    """A header that is sent to the agents of a tenant at an origin: scheme, host and maybe a port."""

    tenant: str
    origin: str
    header: str
    value: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Call:
    """A task that an agent is called with.

    Attributes:
        token: The same for all attempts of the task, so that the agent can tell that it had it before.
        tries: 1 for the first attempt that counts.
        input: Of a task that has no artifacts.
        trace: The attempt's context in its trace, a traceparent, or "".
        signs_every_s: How soon after the last a sign of life is due, seconds; 0 for never.
    """

    tenant: str
    protocol: str
    url: str
    agent: str
    outputs: tuple[str, ...]
    task_id: str
    attempt: int
    tries: int
    correlation_id: str
    artifacts: tuple[Given, ...]
    input: Json = None
    signs_every_s: float = 0.0
    trace: str = ""

    @property
    def token(self) -> str:
        """The idempotency token."""
        return self.task_id


@dataclass(frozen=True, slots=True)
class Made:
    """An artifact that an agent made."""

    type: str
    payload: dict[str, Json]
    tags: tuple[str, ...] = ()
    partition_key: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What an agent answered."""

    output: Json = None
    made: tuple[Made, ...] = ()


class CallFailed(Exception):
    """A call failed. `retryable` None leaves it to the task's policy."""

    def __init__(
        self, code: str, message: str, retryable: bool | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retryable = retryable
        self.retry_after_s = retry_after_s


class CallWatch(Protocol):
    """Who waits for a call."""

    @property
    def lost(self) -> bool:
        """The task is another server's by now: what the agent does for it goes on."""

    def seen(self, message: str = "", fraction: float | None = None) -> None:
        """The agent gave a sign of life, maybe how far it is."""


class Caller(Protocol):
    """Calls agents; see adapters.agents. A call that is cancelled is cancelled at the agent too, unless it is lost."""

    async def call(self, call: Call, watch: CallWatch) -> Answer:
        """Raises CallFailed."""

    async def close(self) -> None: ...
