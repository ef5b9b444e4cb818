"""Workflows: defined in versions, checked, and read back."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from google.api.httpbody_pb2 import HttpBody
from pydantic_core import from_json

from millstream.sdk.calls import Listing, choice
from millstream.sdk.errors import FieldDetail, NotFoundError
from millstream.sdk.executions import Executions, Holding
from millstream.sdk.payload import JsonValue, fill_struct, from_struct
from millstream.sdk.results import when
from millstream.v1 import workflow_pb2
from millstream.v1 import workflow_service_pb2 as wire


@dataclass(frozen=True, slots=True)
class Workflow:
    """A workflow."""

    id: str
    name: str
    version: int
    """The latest."""
    status: str
    """ACTIVE or DELETED."""
    description: str = ""
    definition: Mapping[str, JsonValue] | None = None
    """Of the latest version; None in lists."""
    created_at: datetime | None = None
    created_by: str = ""
    updated_at: datetime | None = None
    deleted_at: datetime | None = None
    warnings: tuple[FieldDetail, ...] = ()
    """What may be meant so and mostly is not, of the call that created or changed it."""


@dataclass(frozen=True, slots=True)
class WorkflowVersion:
    """A version of a workflow, which never changes."""

    version: int
    workflow_id: str
    created_at: datetime | None = None
    created_by: str = ""
    definition: Mapping[str, JsonValue] | None = None
    """None in lists."""


@dataclass(frozen=True, slots=True)
class DefinitionCheck:
    """What is wrong with a definition, by the path of the field."""

    valid: bool
    faults: tuple[FieldDetail, ...]
    warnings: tuple[FieldDetail, ...]


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of a definition that was applied."""

    workflow: Workflow
    outcome: Literal["created", "updated", "unchanged"]


class Workflows(Executions, Holding):
    """Workflows. A definition is a dict, as the documentation of workflows has it."""

    async def create(self, definition: Mapping[str, Any], *, idempotency_key: str = "") -> Workflow:
        """Creates a workflow.

        Raises:
            InvalidRequestError: something is wrong with the definition; `details` names all of it.
            ConflictError: there is one of its name.
        """
        request = wire.CreateWorkflowRequest()
        _define(request, definition)
        answer = await self._calls.write(
            "WorkflowService/CreateWorkflow", request, wire.CreateWorkflowResponse, key=idempotency_key
        )
        return _workflow(answer.message, _details(answer.message.warnings))

    async def update(
        self,
        workflow: str,
        definition: Mapping[str, Any],
        *,
        expected_version: int | None = None,
        idempotency_key: str = "",
    ) -> Workflow:
        """Makes the next version of a workflow, by its name or id; a definition equal to the latest makes none.

        Raises:
            InvalidRequestError: something is wrong with the definition; `details` names all of it.
            ConflictError: it has another version than expected.
            NotFoundError: there is none, or it was deleted.
        """
        request = wire.UpdateWorkflowRequest(workflow_id=workflow, expected_version=expected_version)
        _define(request, definition)
        answer = await self._calls.write(
            "WorkflowService/UpdateWorkflow", request, wire.UpdateWorkflowResponse, key=idempotency_key
        )
        return _workflow(answer.message, _details(answer.message.warnings))

    async def apply(self, definition: Mapping[str, Any]) -> Applied:
        """Creates the workflow that the definition names, or makes its next version, unless it is as defined.

        Raises:
            InvalidRequestError: something is wrong with the definition; `details` names all of it.
            ConflictError: somebody else changed it meanwhile.
        """
        before = await self._living(str(definition.get("name") or ""))
        if before is None:
            return Applied(await self.create(definition), "created")
        after = await self.update(before.id, definition, expected_version=before.version)
        return Applied(after, "unchanged" if after.version == before.version else "updated")

    async def _living(self, name: str) -> Workflow | None:
        try:
            found = await self.get(name) if 0 < len(name) <= NAME_CHARS_MOST else None
        except NotFoundError:
            return None
        return found if found is not None and found.status != "DELETED" and found.name == name else None

    async def validate(self, definition: Mapping[str, Any]) -> DefinitionCheck:
        """Says what is wrong with a definition; nothing is saved."""
        request = wire.ValidateWorkflowRequest()
        _define(request, definition)
        found = await self._calls.read("WorkflowService/ValidateWorkflow", request, wire.ValidateWorkflowResponse)
        return DefinitionCheck(found.valid, _details(found.faults), _details(found.warnings))

    def list(self, *, name: str = "", status: str = "", sort: str = "", page_size: int = 100) -> Listing[Workflow]:
        """Lists workflows; `status` is "ACTIVE" or "DELETED", `sort` is "name", "created_at" or "updated_at", and "-"
        before it turns the order round.

        Raises:
            ValueError: there is no such status.
        """
        wanted = choice(workflow_pb2.Workflow.Status, status)

        async def fetch(cursor: str | None) -> tuple[list[Workflow], str | None]:
            request = wire.ListWorkflowsRequest(
                name=name, status=wanted, sort=sort, page_size=page_size, page_token=cursor or ""
            )
            page = await self._calls.read("WorkflowService/ListWorkflows", request, wire.ListWorkflowsResponse)
            return [_workflow(item) for item in page.items], page.pagination.next_page_token

        return Listing(fetch)

    async def get(self, workflow: str) -> Workflow:
        """Gets a workflow by its name or its id, with its latest definition."""
        request = wire.GetWorkflowRequest(workflow_id=workflow)
        return _workflow(await self._calls.read("WorkflowService/GetWorkflow", request, wire.GetWorkflowResponse))

    async def delete(self, workflow: str) -> None:
        """Deletes a workflow: no run of it begins any more; those that began go on."""
        request = wire.DeleteWorkflowRequest(workflow_id=workflow)
        await self._calls.write("WorkflowService/DeleteWorkflow", request, wire.DeleteWorkflowResponse)

    def versions(self, workflow: str, *, page_size: int = 100) -> Listing[WorkflowVersion]:
        """Lists the versions of a workflow, newest first, without their definitions."""

        async def fetch(cursor: str | None) -> tuple[list[WorkflowVersion], str | None]:
            request = wire.ListWorkflowVersionsRequest(
                workflow_id=workflow, page_size=page_size, page_token=cursor or ""
            )
            rpc, response = "WorkflowService/ListWorkflowVersions", wire.ListWorkflowVersionsResponse
            page = await self._calls.read(rpc, request, response)
            found = [
                WorkflowVersion(item.version, item.workflow_id, when(item, "created_at"), item.created_by)
                for item in page.items
            ]
            return found, page.pagination.next_page_token

        return Listing(fetch)

    async def version(self, workflow: str, version: int) -> WorkflowVersion:
        """Gets a version of a workflow, with its definition."""
        request = wire.GetWorkflowVersionRequest(workflow_id=workflow, version=version)
        rpc, response = "WorkflowService/GetWorkflowVersion", wire.GetWorkflowVersionResponse
        found = await self._calls.read(rpc, request, response)
        return WorkflowVersion(
            found.version, found.workflow_id, when(found, "created_at"), found.created_by, from_struct(found.definition)
        )

    async def schema(self) -> dict[str, JsonValue]:
        """The JSON Schema of definitions, for editors."""
        found = await self._calls.read("WorkflowService/GetWorkflowSchema", wire.GetWorkflowSchemaRequest(), HttpBody)
        schema: dict[str, JsonValue] = from_json(found.data)
        return schema


NAME_CHARS_MOST = 128
"""A name that is longer is no workflow's."""


def _define(request: Any, definition: Mapping[str, Any]) -> None:
    # An empty one is given, too.
    request.definition.SetInParent()
    fill_struct(request.definition, definition)


def _workflow(found: Any, warnings: tuple[FieldDetail, ...] = ()) -> Workflow:
    listed = isinstance(found, workflow_pb2.Workflow)
    return Workflow(
        id=found.id,
        name=found.name,
        version=found.version,
        status=workflow_pb2.Workflow.Status.Name(found.status),
        description=found.description,
        definition=None if listed else from_struct(found.definition),
        created_at=when(found, "created_at"),
        created_by=found.created_by,
        updated_at=when(found, "updated_at"),
        deleted_at=when(found, "deleted_at"),
        warnings=warnings,
    )


def _details(found: Any) -> tuple[FieldDetail, ...]:
    return tuple(FieldDetail(each.field, each.message, each.code) for each in found)
