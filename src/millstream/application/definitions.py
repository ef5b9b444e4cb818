"""Workflow definitions as documents: what may stand in one.

`needs`, expressions and names are looked at together, with what is registered; see application.workflow_rules.
"""

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from millstream.domain.retry import DEFAULT_RETRY
from millstream.domain.workflows import STEPS_MOST

NAME = r"^[A-Za-z_][A-Za-z0-9_.-]*$"
KIND = r"^[A-Za-z][A-Za-z0-9_.:-]*$"
STEP_ID = r"^[A-Za-z_][A-Za-z0-9_]*$"
"""As it is written in expressions: `steps.pay.output`."""
NEED = r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)?$"
EXPRESSION_CHARS_MOST = 2000
LISTED_MOST = 100
"""Needs of a step, cases of a branch."""
DAY_S = 86_400.0
SCHEMA_ID = "https://millstream.dev/schemas/workflow.json"

Name = Annotated[str, Field(min_length=1, max_length=128, pattern=NAME)]
Kind = Annotated[str, Field(min_length=1, max_length=128, pattern=KIND)]
StepId = Annotated[str, Field(min_length=1, max_length=64, pattern=STEP_ID)]
Need = Annotated[str, Field(min_length=1, max_length=129, pattern=NEED)]
Expression = Annotated[str, Field(max_length=EXPRESSION_CHARS_MOST)]
Given = Annotated[str, Field(min_length=1, max_length=EXPRESSION_CHARS_MOST)]
Seconds = Annotated[float, Field(ge=0, le=30 * DAY_S)]
LabelName = Annotated[str, Field(min_length=1, max_length=128)]
LabelValue = Annotated[str, Field(max_length=256)]
Labels = Annotated[dict[LabelName, LabelValue], Field(max_length=32)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Retry(_Strict):
    """When a failed task is tried again."""

    max_attempts: int = Field(default=DEFAULT_RETRY.max_attempts, ge=1, le=10_000, description="Attempts in all.")
    initial: Seconds = Field(default=1.0, description="Seconds before the second attempt.")
    factor: float = Field(default=2.0, ge=1, le=100, description="Growth of the wait.")
    maximum: Seconds = Field(default=60.0, description="The longest wait, seconds.")
    jitter: float = Field(default=0.1, ge=0, le=1, description="Share of the wait that is random.")
    non_retryable: list[LabelName] = Field(
        default=[], max_length=32, description="Failure codes that are final at once."
    )


class Limits(_Strict):
    """How long a task may take, seconds; 0: no bound."""

    schedule_to_start: Seconds = Field(default=0.0, description="From ready to started.")
    start_to_close: Seconds = Field(default=300.0, description="One attempt.")
    heartbeat: Seconds = Field(default=0.0, description="Between two signs of life.")


class Concurrency(_Strict):
    """A bound of tasks that run at once."""

    key: JsonValue = Field(description='Whose tasks are counted together, over all runs: a text, or "${CEL}".')
    limit: int = Field(ge=1, le=10_000, description="Tasks of that key that may run at once.")


class Compensate(_Strict):
    """What undoes a step."""

    compensate: StepId = Field(
        description="The step that undoes it. It never starts by itself: when the run fails, the compensations of all "
        "completed steps, and of the failed one, run in the reverse order of the work."
    )


class _Step(_Strict):
    id: StepId = Field(description="Its name in `needs` and in expressions.")
    needs: list[Need] = Field(
        default=[], max_length=LISTED_MOST,
        description='Steps that have to end before; "check.big" needs the branch `check` to have taken its case `big`. '
        "The step starts once all have ended, unless all of them were skipped.",
    )  # fmt: skip
    when: Expression = Field(default="", description="CEL over `input` and `steps`: skipped where it is false.")
    output: JsonValue = Field(
        default=None, description="What later steps see of it, over `result`, `input` and `steps`; else its result."
    )
    on_failure: Literal["fail", "continue"] | Compensate = Field(
        default="fail",
        description="What its final failure means: the run fails, goes on without it, or fails once all that was done "
        "is undone.",
    )
    labels: Labels = Field(default={}, description="Labels of its task or run.")


class _Work(_Strict):
    input: JsonValue = Field(
        default=None,
        description='What it is given; "${CEL}" stands for a value. Default: the input of the run, in a map the item.',
    )
    retry: Retry = Retry()


class _Once(_Work):
    retry: Retry = Field(
        default=Retry(max_attempts=1), description="Default: once, because what it does is tried again by itself."
    )
    timeout: Seconds = Field(default=0.0, description="How long its run may take, seconds; 0: no bound of its own.")


class _Task(_Work):
    kind: Literal["task"]
    task: Kind = Field(description="Kind of the task.")
    queue: Name = Field(default="default", description="Where it waits.")
    timeouts: Limits = Limits()
    priority: int = Field(default=0, ge=-100, le=100, description="The higher, the sooner.")
    concurrency: Concurrency | None = Field(
        default=None, description="How many of a key run at once. Default: no bound."
    )


class _Agent(_Once):
    kind: Literal["agent"]
    agent: Name = Field(description="Its name.")


class _Workflow(_Once):
    kind: Literal["workflow"]
    workflow: Name = Field(description="Its name.")
    version: int | None = Field(
        default=None, ge=1, description="Its version. Default: the latest when the step starts."
    )


class EachTask(_Task):
    """A task for each item of a list."""

    labels: Labels = Field(default={}, description="Labels of its tasks.")


class EachAgent(_Agent):
    """A run of an agent for each item of a list."""

    labels: Labels = Field(default={}, description="Labels of its runs.")


class EachWorkflow(_Workflow):
    """A run of a workflow for each item of a list."""

    labels: Labels = Field(default={}, description="Labels of its runs.")


class TaskStep(_Task, _Step):
    """A task for the workers of a kind."""


class AgentStep(_Agent, _Step):
    """An agent, run by its name."""


class WorkflowStep(_Workflow, _Step):
    """A run of another workflow, or of this one."""


class PublishStep(_Step):
    """A publication of an artifact."""

    kind: Literal["publish"]
    type: Name = Field(description="The artifact's type.")
    payload: dict[str, JsonValue] | Given = Field(default={}, description='What it holds; "${CEL}" stands for a value.')
    wait: bool = Field(default=False, description="Whether it has ended only once all that it sets off has.")


class PromiseStep(_Step):
    """A promise that somebody resolves from outside; its result is what they give."""

    kind: Literal["wait_promise"]
    promise: Name = Field(description="Its name, for people.")
    key: JsonValue = Field(
        default=None, description='By which it can be resolved: a text, or "${CEL}". Default: its id.'
    )
    timeout: Seconds = Field(default=0.0, description="Seconds until it fails. 0: no bound.")


class SleepStep(_Step):
    """A pause that survives restarts."""

    kind: Literal["sleep"]
    seconds: Seconds | Given = Field(description="How long: seconds, or CEL of such.")


class MapStep(_Step):
    """The same work for each item of a list; its result is the list of results."""

    kind: Literal["map"]
    over: Given = Field(description="CEL of the list, over `input` and `steps`.")
    each: Annotated[EachTask | EachAgent | EachWorkflow, Field(discriminator="kind")] = Field(
        description="What is done for an item, which expressions in it call `item`; its place, from 0, is `index`."
    )
    concurrency: int = Field(default=100, ge=1, le=10_000, description="Items that are worked on at once.")


class Case(_Strict):
    """A case of a branch."""

    name: StepId = Field(description='What steps call it that need it: "check.big" is the case `big` of `check`.')
    when: Given = Field(description="CEL over `input` and `steps`: whether it is taken.")


class BranchStep(_Step):
    """A choice: the first case that holds is taken, else "default". Its result is {"case": its name}."""

    kind: Literal["branch"]
    branches: list[Case] = Field(min_length=1, max_length=LISTED_MOST, description="Its cases, in order.")


AnyWork: TypeAlias = EachTask | EachAgent | EachWorkflow
AnyStep: TypeAlias = (
    TaskStep | AgentStep | WorkflowStep | PublishStep | PromiseStep | SleepStep | MapStep | BranchStep
)  # fmt: skip


class Document(_Strict):
    """A workflow: steps in a directed acyclic graph."""

    name: Name = Field(description="Unique in the tenant; it stays for all versions.")
    description: str = Field(default="", max_length=2000, description="What it does, for people.")
    input_schema: dict[str, Any] | None = Field(default=None, description="JSON Schema of what a run is given.")
    output_schema: dict[str, Any] | None = Field(default=None, description="JSON Schema of what a run answers.")
    output: JsonValue = Field(
        default=None, description="What a run answers, over `input` and `steps`; else the outputs of its last steps."
    )
    timeout: Seconds = Field(default=0.0, description="How long a run may take, seconds; 0: no bound.")
    labels: Labels = Field(default={}, description="Labels of its runs, where their caller gives none of that name.")
    steps: list[Annotated[AnyStep, Field(discriminator="kind")]] = Field(
        min_length=1, max_length=STEPS_MOST, description="Its steps, in any order."
    )


def json_schema() -> dict[str, Any]:
    """JSON Schema of documents, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": SCHEMA_ID} | Document.model_json_schema()
