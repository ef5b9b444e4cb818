"""What is registered in a test: workflows as documents and as code, and agents. The service's own rules judge it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from pydantic import ValidationError

from millstream.adapters.sandbox import Sandbox
from millstream.adapters.schemas import JsonSchemas
from millstream.adapters.values import CelExpressions
from millstream.application.ports import Costly
from millstream.application.workflow_rules import examine
from millstream.domain.agents import Activation, Agent, AgentSpec
from millstream.domain.artifacts import NewArtifact
from millstream.domain.errors import FieldFault, NotFound, ValidationFailed
from millstream.domain.matching import match, routes_of
from millstream.domain.struct_wire import Json, decode_value
from millstream.domain.workflows import Definition
from millstream.sdk.handlers import WorkflowHandler

SCHEMAS: Final = JsonSchemas()
EXPRESSIONS: Final = CelExpressions()


class Documents:
    """Workflows as documents, in versions; see application.workflows."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._versions: dict[str, list[tuple[Any, Definition]]] = {}

    @property
    def names(self) -> list[str]:
        """Workflows with their versions."""
        return [f"{name}@{number + 1}" for name, found in self._versions.items() for number in range(len(found))]

    async def define(self, given: Mapping[str, Any]) -> Definition:
        """Make a workflow, or its next version unless it is the latest. Raises ValidationFailed, with all faults."""
        found = await examine(given, EXPRESSIONS, SCHEMAS, self._sandbox)
        if found.definition is None or found.faults:
            told = "; ".join(f"{each.field}: {each.message}" if each.field else each.message for each in found.faults)
            raise ValidationFailed(f"the workflow {given.get('name')!r}: {told}", tuple(found.faults))
        versions = self._versions.setdefault(found.definition.name, [])
        document = json.loads(json.dumps(given))
        if not versions or versions[-1][0] != document:
            versions.append((document, replace(found.definition, version=len(versions) + 1)))
        return versions[-1][1]

    def _find(self, name: str, version: str) -> Definition:
        versions = self._versions.get(name, [])
        if not versions:
            raise NotFound(f"there is no workflow {name!r}")
        if version and not (version.isdecimal() and 0 < int(version) <= len(versions)):
            raise NotFound(f"workflow {name!r} has no version {version}")
        return versions[int(version or len(versions)) - 1][1]

    async def current(
        self, _tenant: str, name: str, version: str = "", fresh: bool = False
    ) -> tuple[Definition, int]:  # fmt: skip
        """A version, by default the latest, and the version of the registry, which never moves. Raises NotFound."""
        return self._find(name, version), 1

    async def pinned(self, _tenant: str, name: str, version: str) -> Definition:
        """A version that a run follows."""
        return self._find(name, version)

    def moved(self, tenant: str) -> None:
        """Nothing is kept that could be outdated."""

    async def check_input(self, definition: Definition, value: Json, size_bytes: int, field: str = "input") -> None:
        """Raise ValidationFailed unless a run may be given the value."""
        await self._check(definition.input_schema, value, size_bytes, field)

    async def check_output(self, definition: Definition, value: Json, size_bytes: int, field: str = "output") -> None:
        """Raise ValidationFailed unless a run may answer the value."""
        await self._check(definition.output_schema, value, size_bytes, field)

    async def _check(self, schema: str, value: Json, size_bytes: int, field: str) -> None:
        faults: Sequence[FieldFault] = ()
        if schema:
            try:
                faults = SCHEMAS.compile(schema)(value, field, size_bytes)
            except Costly:
                faults = await self._sandbox.faults(schema, value, field)
        if faults:
            raise ValidationFailed(f"{faults[0].field}: {faults[0].message}", tuple(faults))


class Code:
    """Workflows as code, the version that was registered last last; see application.code_workflows."""

    def __init__(self, others: Callable[[], Sequence[str]]) -> None:
        """`others`: workflows that are no code, for whoever looks for one in vain."""
        self.versions: dict[str, dict[str, WorkflowHandler]] = {}
        self._others = others

    def handler(self, name: str, version: str) -> WorkflowHandler:
        """The code of a version."""
        return self.versions[name][version]

    async def version_for(self, _tenant: str, name: str, version: str, given: bytes) -> str:
        """The version that a run is to have ("": the latest), whose code takes its input. Raises NotFound,
        ValidationFailed."""
        found = self.versions.get(name, {})
        version = version or next(reversed(found), "")
        if version not in found:
            known = [*self._others(), *(f"{each}@{number}" for each, all_ in self.versions.items() for number in all_)]
            text = f"no worker has the workflow {name!r}{f' in version {version!r}' if version else ''}"
            raise NotFound(f"{text}; there are: {', '.join(known) or '(none)'}")
        validate = found[version].validate
        if validate is not None:
            try:
                validate(decode_value(given))
            except ValidationError as error:
                raise ValidationFailed.of("input", str(error)) from None
        return version


class Agents:
    """Agents, and which of them an artifact activates: a catalog that is never outdated, of types without schemas."""

    version = 1

    def __init__(self, tenant: str, ids: Callable[[], str]) -> None:
        self.agents: dict[str, Agent] = {}
        self._tenant = tenant
        self._ids = ids

    def add(self, spec: AgentSpec) -> None:
        """Register an agent, in place of one of its name."""
        self.agents[spec.name] = Agent(self._ids(), self._tenant, spec, 1, 0, 0)

    async def get(self, _tenant: str, fresh: bool = False) -> Agents:
        """These."""
        return self

    async def examine(
        self, _principal: object, _catalog: object, new: NewArtifact, producer: str, *_: object
    ) -> tuple[int, Sequence[Activation], NewArtifact]:
        """Version of the artifact's type, the agents that it activates, and the artifact."""
        return 1, self.activations(new, producer), new

    def activations(self, new: NewArtifact, producer: str) -> Sequence[Activation]:
        """The agents that an artifact activates."""
        routes = routes_of([*self.agents.values()]).get(new.type, ())
        return match(routes, new, producer, self._tenant, lambda _: True, lambda _: None)
