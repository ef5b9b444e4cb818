"""Workflow definitions as documents: what may stand in one, and what it means."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from millstream.domain.errors import FieldFault
from millstream.domain.retry import DEFAULT_RETRY, SECOND_US, RetryPolicy, Timeouts
from millstream.domain.workflows import STEPS_MOST, Definition, OnFailure, Step, StepKind, Template

NAME = r"^[A-Za-z_][A-Za-z0-9_.-]*$"
STEP_ID = r"^[A-Za-z_][A-Za-z0-9_]*$"
"""As it is written in expressions: `steps.pay.output`."""
EXPRESSION_CHARS_MOST = 2000
DAY_S = 86_400.0

Name = Annotated[str, Field(min_length=1, max_length=128, pattern=NAME)]
StepId = Annotated[str, Field(min_length=1, max_length=64, pattern=STEP_ID)]
Expression = Annotated[str, Field(max_length=EXPRESSION_CHARS_MOST)]
Seconds = Annotated[float, Field(ge=0, le=30 * DAY_S)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Retry(_Strict):
    """When a failed task is tried again."""

    max_attempts: int = Field(default=DEFAULT_RETRY.max_attempts, ge=1, le=10_000, description="Attempts in all.")
    initial: Seconds = Field(default=1.0, description="Seconds before the second attempt.")
    factor: float = Field(default=2.0, ge=1, le=100, description="Growth of the wait.")
    maximum: Seconds = Field(default=60.0, description="The longest wait, seconds.")
    jitter: float = Field(default=0.1, ge=0, le=1, description="Share of the wait that is random.")
    non_retryable: list[str] = Field(default=[], max_length=32, description="Failure codes that are final at once.")

    def policy(self) -> RetryPolicy:
        """For the engine."""
        return RetryPolicy(
            int(self.initial * SECOND_US), self.factor, int(self.maximum * SECOND_US), self.jitter,
            self.max_attempts, tuple(self.non_retryable),
        )  # fmt: skip


class Limits(_Strict):
    """How long a task may take, seconds; 0: no bound."""

    schedule_to_start: Seconds = Field(default=0.0, description="From ready to started.")
    start_to_close: Seconds = Field(default=300.0, description="One attempt.")
    heartbeat: Seconds = Field(default=0.0, description="Between two signs of life.")

    def timeouts(self) -> Timeouts:
        """For the engine."""
        return Timeouts(
            int(self.schedule_to_start * SECOND_US), int(self.start_to_close * SECOND_US),
            int(self.heartbeat * SECOND_US),
        )  # fmt: skip


class _StepBase(_Strict):
    id: StepId = Field(description="Its name in `needs` and in expressions.")
    needs: list[StepId] = Field(
        default=[], max_length=100,
        description="Steps that have to end before. It starts once all have, unless all of them were skipped.",
    )  # fmt: skip
    when: Expression = Field(default="", description="CEL over `input` and `steps`: skipped where it is false.")
    output: JsonValue = Field(
        default=None, description="What later steps see of it, over `result`, `input` and `steps`; else its result."
    )
    on_failure: Literal["fail", "continue"] = Field(
        default="fail", description="What its final failure means: the run fails, or goes on with it in `steps`."
    )


class _WorkBase(_StepBase):
    input: JsonValue = Field(default=None, description='What it is given; "${CEL}" stands for a value.')
    retry: Retry = Retry()
    timeouts: Limits = Limits()
    priority: int = Field(default=0, ge=-100, le=100, description="The higher, the sooner.")
    labels: dict[str, str] = Field(default={}, max_length=32, description="Labels of its task.")


class TaskStep(_WorkBase):
    """A task for the workers of a kind."""

    kind: Literal["task"]
    task: Name = Field(description="Kind of the task.")
    queue: Name = Field(default="default", description="Where it waits.")


class AgentStep(_WorkBase):
    """An agent, run by its name."""

    kind: Literal["agent"]
    agent: Name = Field(description="Its name.")


class SleepStep(_StepBase):
    """A pause that survives restarts."""

    kind: Literal["sleep"]
    seconds: Seconds | Expression = Field(description="How long: seconds, or CEL of such.")


AnyStep = Annotated[TaskStep | AgentStep | SleepStep, Field(discriminator="kind")]


class Document(_Strict):
    """A workflow: steps in a directed acyclic graph."""

    name: Name
    description: str = Field(default="", max_length=2000)
    input_schema: dict[str, Any] | None = Field(default=None, description="JSON Schema of what a run is given.")
    output_schema: dict[str, Any] | None = Field(default=None, description="JSON Schema of what a run answers.")
    output: JsonValue = Field(
        default=None, description="What a run answers, over `input` and `steps`; else the outputs of its last steps."
    )
    timeout: Seconds = Field(default=0.0, description="How long a run may take, seconds; 0: no bound.")
    steps: list[AnyStep] = Field(min_length=1, max_length=STEPS_MOST)

    def steps_of(self) -> tuple[Step, ...]:
        """The steps for the engine."""
        return tuple(_step(each) for each in self.steps)

    def definition(self) -> Definition:
        """For the engine. The graph must be free of faults."""
        return Definition(self.name, self.steps_of(), _frozen(self.output), int(self.timeout * SECOND_US))


def _step(given: TaskStep | AgentStep | SleepStep) -> Step:
    common: dict[str, Any] = {
        "id": given.id, "kind": StepKind(given.kind), "needs": tuple(given.needs), "when": given.when,
        "output": _frozen(given.output), "on_failure": OnFailure(given.on_failure),
    }  # fmt: skip
    if isinstance(given, SleepStep):
        return Step(**common, sleep=given.seconds)
    common |= {
        "input": _frozen(given.input), "retry": given.retry.policy(), "timeouts": given.timeouts.timeouts(),
        "priority": given.priority, "labels": tuple(sorted(given.labels.items())),
    }  # fmt: skip
    if isinstance(given, AgentStep):
        return Step(**common, target=given.agent)
    return Step(**common, target=given.task, queue=given.queue)


def _frozen(value: Any) -> Template:
    if isinstance(value, dict):
        return {key: _frozen(each) for key, each in value.items()}
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def read(document: Mapping[str, Any]) -> tuple[Document | None, list[FieldFault]]:
    """The document, or what is wrong with its fields."""
    try:
        return Document.model_validate(document, strict=True), []
    except ValidationError as error:
        return None, [*_faults(error)]


def json_schema() -> dict[str, Any]:
    """JSON Schema of documents, for editors."""
    return Document.model_json_schema()


def _faults(error: ValidationError) -> Iterator[FieldFault]:
    for each in error.errors(include_url=False, include_context=True, include_input=False):
        code = _CODES.get(each["type"], "INVALID")
        text = _WORDS.get(each["type"], each["msg"][:1].lower() + each["msg"][1:])
        yield FieldFault(_path(each["loc"]), text.format(**each.get("ctx", {})), code)


_CODES = {
    "missing": "REQUIRED", "extra_forbidden": "UNKNOWN_FIELD", "union_tag_not_found": "REQUIRED",
    "too_long": "OUT_OF_RANGE", "too_short": "OUT_OF_RANGE", "string_too_long": "OUT_OF_RANGE",
    "greater_than_equal": "OUT_OF_RANGE", "less_than_equal": "OUT_OF_RANGE",
}  # fmt: skip
_WORDS = {
    "missing": "is required",
    "extra_forbidden": "is not a field here",
    "union_tag_not_found": "is required",
    "union_tag_invalid": "must be one of {expected_tags}",
    "string_pattern_mismatch": "must match {pattern}",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "string_too_long": "must have at most {max_length} characters",
    "too_long": "must have at most {max_length} items",
    "too_short": "must have at least {min_length} items",
}
_TAGS = frozenset(StepKind)


def _path(places: Sequence[int | str]) -> str:
    out = ""
    for number, place in enumerate(places):
        if isinstance(place, int):
            out += f"[{place}]"
        elif not (place in _TAGS and number and isinstance(places[number - 1], int)):
            # The kind of a step, by which its rules were chosen, is no part of the path.
            out += f".{place}" if out else place
    return out
