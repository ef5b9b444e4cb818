"""The functions that a worker serves: how they are called, and what they register."""

import inspect
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, TypeAlias, TypedDict

from google.protobuf.struct_pb2 import Struct
from pydantic import BaseModel, PydanticUserError, TypeAdapter

from millstream.sdk.context import Context
from millstream.sdk.payload import fill_struct
from millstream.sdk.policies import RetryPolicy, Subscription, Timeouts, TypeRef, type_name
from millstream.sdk.workflow_context import WorkflowContext
from millstream.v1 import agent_pb2, worker_pb2

Function: TypeAlias = Callable[..., Any]
Consumes: TypeAlias = TypeRef | Subscription | Sequence[TypeRef | Subscription]
Publishes: TypeAlias = TypeRef | Sequence[TypeRef]

WORKFLOW_KIND: Final = "workflow:"
"""Kinds of the tasks that run a workflow's code begin with this; its name, "@" and its version follow."""
_WORKFLOW_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.:-]{0,127}")
AGENT_KIND: Final = "agent:"
"""Kinds of tasks that begin with this are an agent's."""
MAX_KIND_SCHEMA_BYTES: Final = 64 * 1024
"""Longer schemas of kinds are not told: they are for people, and the service would refuse them."""
_VERSION: Final = re.compile(r"[A-Za-z0-9_.-]{0,64}")
_TYPE_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")


class AgentOptions(TypedDict, total=False):
    """What `Worker.agent` takes besides the types."""

    name: str
    """Default: the function's name."""
    description: str
    """For people. Default: the first paragraph of the docstring."""
    where: str
    """CEL over `payload` and `artifact` (its type, tags, produced_by, partition_key): only where it is true."""
    from_agents: Sequence[str]
    """Only artifacts made by these ("external" for clients)."""
    tags: Sequence[str]
    """Only artifacts with at least one of these."""
    priority: int
    """Of its tasks, -100 to 100, the higher the sooner."""
    delivery: Literal["broadcast", "exclusive"]
    """"exclusive": of the exclusive agents that match an artifact only one gets it."""
    max_concurrency: int
    """Tasks of it at once over all workers. 0: no bound."""
    labels: Sequence[str]
    """What Labelled artifacts may require."""
    queue: str
    """Of its tasks. Default "default"."""
    retry: RetryPolicy
    """How failed tasks are tried again."""
    timeouts: Timeouts
    """How long tasks may take."""
    auto_heartbeat: bool
    """The worker sends the heartbeats. Default: for async functions."""


@dataclass(frozen=True, slots=True)
class Call:
    """How a function takes its arguments."""

    function: Function
    is_async: bool
    input_name: str | None
    """Name of the parameter that takes the input, if any."""
    context_name: str | None
    """Name of the one that takes the Context, if any."""
    annotation: Any
    """What the input's parameter is annotated with; None where it is not."""
    returns: Any = None
    """What it is said to return; None where it is not."""

    def __call__(self, value: Any, context: Any) -> Any:
        """Calls the function; of an async one this is the coroutine."""
        arguments = {}
        if self.input_name is not None:
            arguments[self.input_name] = value
        if self.context_name is not None:
            arguments[self.context_name] = context
        return self.function(**arguments)


@dataclass(frozen=True, slots=True)
class AgentHandler:
    """An agent: the models its artifacts come as, and those it may publish."""

    call: Call
    auto_heartbeat: bool
    name: str
    consumes: Mapping[str, type[BaseModel] | None]
    outputs: frozenset[str]
    many: bool
    """It waits for several artifacts, and is called with a list."""
    spec: agent_pb2.AgentSpec


@dataclass(frozen=True, slots=True)
class TaskHandler:
    """A kind of standalone tasks, with what makes its input of plain JSON; None: it takes plain JSON."""

    call: Call
    auto_heartbeat: bool
    kind: str
    validate: Callable[[Any], Any] | None
    spec: worker_pb2.KindSpec
    """What discovery shows of it."""


@dataclass(frozen=True, slots=True)
class WorkflowHandler:
    """A workflow in one version, with what makes its input of plain JSON; None: it takes plain JSON."""

    call: Call
    auto_heartbeat: bool
    validate: Callable[[Any], Any] | None
    spec: worker_pb2.KindSpec


Handler: TypeAlias = AgentHandler | TaskHandler | WorkflowHandler


@dataclass(slots=True)
class Registry:
    """Everything one worker serves."""

    handlers: dict[str, Handler] = field(default_factory=dict)
    """By the kind of the tasks."""
    models: dict[str, type[BaseModel]] = field(default_factory=dict)
    """Types to register, by name."""

    def add_agent(
        self,
        function: Function,
        consumes: Consumes,
        publishes: Publishes,
        options: AgentOptions,
    ) -> None:
        """Registers an agent.

        Raises:
            ValueError: the name is taken, a type's name is no name, or two models share one.
        """
        name = options.get("name") or function.__name__
        subscriptions = _subscriptions(consumes, options)
        outputs = _refs(publishes)
        refs = [ref for subscription in subscriptions for ref in subscription.refs()]
        for ref in (*refs, *outputs):
            self._add_type(ref)
        handler = AgentHandler(
            call=inspect_call(function),
            auto_heartbeat=_auto_heartbeat(function, options.get("auto_heartbeat")),
            name=name,
            consumes={type_name(ref): None if isinstance(ref, str) else ref for ref in refs},
            outputs=frozenset(type_name(ref) for ref in outputs),
            many=any(subscription.gated for subscription in subscriptions),
            spec=_agent_spec(name, function, subscriptions, outputs, options),
        )
        self._add(AGENT_KIND + name, handler)

    def add_task(self, function: Function, kind: str, auto_heartbeat: bool | None, version: str = "") -> None:
        """Registers a kind of standalone tasks.

        Raises:
            ValueError: the kind is taken, or is one of the server's, or the version is none.
        """
        if not _VERSION.fullmatch(version):
            raise ValueError(f"a version is at most 64 letters, digits, '_', '.' and '-', not {version!r}")
        if kind.startswith(AGENT_KIND):
            raise ValueError(f"kinds beginning with {AGENT_KIND!r} are the server's: {kind!r}")
        call = inspect_call(function)
        beats = _auto_heartbeat(function, auto_heartbeat)
        self._add(kind, TaskHandler(call, beats, kind, _validator(call.annotation), _kind_spec(call, kind, version)))

    def add_workflow(self, function: Function, name: str, version: str) -> None:
        """Registers a version of a workflow.

        Raises:
            ValueError: it is registered already, or the name or version is none.
            TypeError: the function is not async.
        """
        if not version or not _VERSION.fullmatch(version):
            raise ValueError(f"a version is 1 to 64 letters, digits, '_', '.' and '-', not {version!r}")
        if not _WORKFLOW_NAME.fullmatch(name):
            raise ValueError(
                f"a workflow's name is a letter, then letters, digits, '_', '.', ':' and '-', not {name!r}"
            )
        if not inspect.iscoroutinefunction(function):
            raise TypeError(f"a workflow is an async function, which {function!r} is not")
        call = inspect_workflow(function)
        spec = _kind_spec(call, name, version)
        spec.category = worker_pb2.KindSpec.WORKFLOW
        self._add(f"{WORKFLOW_KIND}{name}@{version}", WorkflowHandler(call, True, _validator(call.annotation), spec))

    def specs(self) -> tuple[list[worker_pb2.KindSpec], list[agent_pb2.AgentSpec], list[worker_pb2.TypeSpec]]:
        """Kinds, agents and types, as a hello names them."""
        kinds = [each.spec for each in self.handlers.values() if isinstance(each, TaskHandler | WorkflowHandler)]
        agents = [handler.spec for handler in self.handlers.values() if isinstance(handler, AgentHandler)]
        return kinds, agents, [type_spec(model) for model in self.models.values()]

    def _add(self, kind: str, handler: Handler) -> None:
        if kind in self.handlers:
            raise ValueError(f"{kind!r} is registered already")
        self.handlers[kind] = handler

    def _add_type(self, ref: TypeRef) -> None:
        name = type_name(ref)
        if not _TYPE_NAME.fullmatch(name):
            raise ValueError(f"{name!r} cannot name an artifact type: letters, digits, '_', '.' and '-' only")
        if isinstance(ref, str):
            return
        if self.models.setdefault(name, ref) is not ref:
            raise ValueError(f"two models are called {name!r}: an artifact type's name is the model's bare name")


def type_spec(model: type[BaseModel]) -> worker_pb2.TypeSpec:
    """The model as an artifact type: its bare name, its JSON Schema, its docstring."""
    spec = worker_pb2.TypeSpec(name=model.__name__, description=_description(model))
    fill_struct(spec.schema, model.model_json_schema())
    return spec


def inspect_call(function: Function) -> Call:
    """How to call the function: the input comes first, the Context by annotation or second.

    Raises:
        TypeError: an annotation cannot be resolved.
    """
    try:
        hints = typing.get_type_hints(function)
    except NameError as error:
        raise TypeError(
            f"an annotation of {function.__qualname__} cannot be resolved ({error}): "
            "define the model at the top of its module"
        ) from error
    names = [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    context = next((name for name in names if hints.get(name) is Context), None)
    inputs = [name for name in names if name != context]
    if context is None and len(inputs) > 1:
        context = inputs.pop(1)
    return Call(
        function=function,
        is_async=inspect.iscoroutinefunction(function),
        input_name=inputs[0] if inputs else None,
        context_name=context,
        annotation=hints.get(inputs[0]) if inputs else None,
        returns=hints.get("return"),
    )


def inspect_workflow(function: Function) -> Call:
    """How to call a workflow's function: the context comes first, or by annotation; then the input, if it takes one.

    Raises:
        TypeError: an annotation cannot be resolved.
    """
    call = inspect_call(function)
    names = [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    hints = typing.get_type_hints(function)
    context = next((name for name in names if hints.get(name) is WorkflowContext), names[0] if names else None)
    given = next((name for name in names if name != context), None)
    return replace(call, input_name=given, context_name=context, annotation=hints.get(given) if given else None)


def _kind_spec(call: Call, kind: str, version: str) -> worker_pb2.KindSpec:
    spec = worker_pb2.KindSpec(
        kind=kind,
        category=worker_pb2.KindSpec.TASK,
        version=version,
        description=_description(call.function),
    )
    takes, returns = _schema(call.annotation, "validation"), _schema(call.returns, "serialization")
    for told, schema in ((spec.input_schema, takes), (spec.output_schema, returns)):
        made = Struct()
        fill_struct(made, schema or {})
        if schema and made.ByteSize() <= MAX_KIND_SCHEMA_BYTES:
            told.CopyFrom(made)
    return spec


def _schema(annotation: Any, mode: Literal["validation", "serialization"]) -> dict[str, Any] | None:
    """JSON Schema of what a function is annotated with; None where that says nothing, or cannot be said in JSON."""
    if annotation in (None, Any, object):
        return None
    try:
        return TypeAdapter(annotation).json_schema(mode=mode)
    except PydanticUserError:
        return None


def _validator(annotation: Any) -> Callable[[Any], Any] | None:
    if annotation in (None, Any, object, dict):
        return None
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation.model_validate
    return TypeAdapter(annotation).validate_python


def _auto_heartbeat(function: Function, asked: bool | None) -> bool:
    # The loop beats for async code, whose hanging stops only itself; a thread may hang unseen.
    return inspect.iscoroutinefunction(function) if asked is None else asked


def _subscriptions(consumes: Consumes, options: AgentOptions) -> list[Subscription]:
    items = [consumes] if isinstance(consumes, str | type | Subscription) else list(consumes)
    plain: list[TypeRef] = [item for item in items if not isinstance(item, Subscription)]
    own = [item for item in items if isinstance(item, Subscription)]
    if not plain:
        return own
    common = Subscription(
        plain,
        where=options.get("where", ""),
        from_agents=options.get("from_agents", ()),
        tags=options.get("tags", ()),
        priority=options.get("priority", 0),
        delivery=options.get("delivery", "broadcast"),
    )
    return [common, *own]


def _refs(publishes: Publishes) -> list[TypeRef]:
    return [publishes] if isinstance(publishes, str | type) else list(publishes)


def _agent_spec(
    name: str,
    function: Function,
    subscriptions: Sequence[Subscription],
    outputs: Sequence[TypeRef],
    options: AgentOptions,
) -> agent_pb2.AgentSpec:
    spec = agent_pb2.AgentSpec(
        name=name,
        description=options.get("description") or _description(function),
        subscriptions=[subscription.to_wire() for subscription in subscriptions],
        outputs=[type_name(ref) for ref in outputs],
        labels=options.get("labels", ()),
        max_concurrency=options.get("max_concurrency", 0),
        queue=options.get("queue", ""),
    )
    if retry := options.get("retry"):
        spec.retry.CopyFrom(retry.to_wire())
    if timeouts := options.get("timeouts"):
        spec.timeouts.CopyFrom(timeouts.to_wire())
    return spec


def _description(documented: Any) -> str:
    """The first paragraph of the docstring, on one line; pydantic's own is nobody's."""
    text = documented.__doc__ if callable(documented) or "__doc__" in vars(documented) else ""
    if not text or text == BaseModel.__doc__:
        return ""
    return " ".join(inspect.cleandoc(text).split("\n\n")[0].split())[:2000]
