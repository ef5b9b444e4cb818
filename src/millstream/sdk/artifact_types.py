"""Artifact types: registered, listed, changed."""

from collections.abc import Mapping, Sequence
from typing import Any

from millstream.sdk.calls import Area, Listing
from millstream.sdk.handlers import type_spec
from millstream.sdk.payload import JsonValue, fill_struct, from_struct
from millstream.sdk.policies import TypeRef, type_name
from millstream.sdk.results import ArtifactType, when
from millstream.v1 import artifact_service_pb2 as wire
from millstream.v1 import worker_pb2


class Types(Area):
    """Registers artifact types and reads them back."""

    async def create(
        self,
        type: TypeRef,  # noqa: A002  (the contract's name)
        schema: Mapping[str, JsonValue] | None = None,
        *,
        description: str = "",
        compatibility: str = "",
        allowed_changes: Sequence[str] = (),
        retention_days: int | None = None,
        examples: Sequence[Mapping[str, JsonValue]] = (),
        idempotency_key: str = "",
    ) -> ArtifactType:
        """Registers a type: a model with its own JSON Schema, or a name with `schema` (None: anything).

        Args:
            compatibility: what versions must be from this one on: "backward", "rules" or "none"; "": as before.
            allowed_changes: with "rules", the kinds of changes that may refuse what was valid.
            retention_days: how long its artifacts are kept; 0: the server's setting; None: as before.
            examples: payloads that satisfy the schema. With the schema of the version before, they (and what else is
                given) change that version.
        """
        spec = worker_pb2.TypeSpec(name=type) if isinstance(type, str) else type_spec(type)
        request = wire.CreateArtifactTypeRequest(
            name=spec.name,
            schema=spec.schema,
            description=description or spec.description,
            compatibility=compatibility,
            allowed_changes=allowed_changes,
            retention_days=retention_days,
        )
        for example in examples:
            fill_struct(request.examples.add(), example)
        if schema is not None:
            request.schema.Clear()
            fill_struct(request.schema, schema)
        answer = await self._calls.write(
            "ArtifactService/CreateArtifactType",
            request,
            wire.CreateArtifactTypeResponse,
            key=idempotency_key,
        )
        return _artifact_type(answer.message)

    def list(self, *, page_size: int = 100) -> Listing[ArtifactType]:
        """Lists types, each in its latest version, by name."""

        async def fetch(cursor: str | None) -> tuple[list[ArtifactType], str | None]:
            request = wire.ListArtifactTypesRequest(page_size=page_size, page_token=cursor or "")
            page = await self._calls.read("ArtifactService/ListArtifactTypes", request, wire.ListArtifactTypesResponse)
            return [_artifact_type(item) for item in page.items], page.pagination.next_page_token

        return Listing(fetch)

    async def get(self, name: TypeRef, version: int | None = None) -> ArtifactType:
        """Gets a type, in its latest version or the one asked for."""
        request = wire.GetArtifactTypeRequest(name=type_name(name), version=version)
        return _artifact_type(
            await self._calls.read("ArtifactService/GetArtifactType", request, wire.GetArtifactTypeResponse)
        )

    async def update(
        self,
        name: TypeRef,
        *,
        version: int | None = None,
        description: str | None = None,
        deprecated: bool | None = None,
        deprecation_message: str | None = None,
        retention_days: int | None = None,
        compatibility: str | None = None,
        allowed_changes: Sequence[str] = (),
        examples: Sequence[Mapping[str, JsonValue]] = (),
        idempotency_key: str = "",
    ) -> ArtifactType:
        """Changes what a type (or one version of it) says beside its schema; None leaves it as it is.

        Args:
            version: of which version; None: the latest, whose retention and compatibility are the type's.
            examples: in place of those it has; (): these stay.
        """
        request = wire.UpdateArtifactTypeRequest(
            name=type_name(name),
            version=version,
            description=description,
            deprecated=deprecated,
            deprecation_message=deprecation_message,
            retention_days=retention_days,
            compatibility=compatibility,
            allowed_changes=allowed_changes,
        )
        for example in examples:
            fill_struct(request.examples.add(), example)
        answer = await self._calls.write(
            "ArtifactService/UpdateArtifactType", request, wire.UpdateArtifactTypeResponse, key=idempotency_key
        )
        return _artifact_type(answer.message)

    async def deprecate(self, name: TypeRef, message: str = "", *, version: int | None = None) -> ArtifactType:
        """Lets those who publish a type know what to use in its place; it goes on working."""
        return await self.update(name, version=version, deprecated=True, deprecation_message=message)

    async def schema(self, name: TypeRef, version: int | None = None) -> dict[str, JsonValue]:
        """The JSON Schema of a type, in its latest version or the one asked for."""
        return (await self.get(name, version)).schema

    def versions(self, name: TypeRef, *, page_size: int = 100) -> Listing[ArtifactType]:
        """Lists the versions of a type, newest first."""

        async def fetch(cursor: str | None) -> tuple[list[ArtifactType], str | None]:
            request = wire.ListArtifactTypeVersionsRequest(
                name=type_name(name), page_size=page_size, page_token=cursor or ""
            )
            page = await self._calls.read(
                "ArtifactService/ListArtifactTypeVersions", request, wire.ListArtifactTypeVersionsResponse
            )
            return [_artifact_type(item) for item in page.items], page.pagination.next_page_token

        return Listing(fetch)


def _artifact_type(message: Any) -> ArtifactType:
    return ArtifactType(
        name=message.name,
        version=message.version,
        schema=from_struct(message.schema),
        description=message.description,
        created_at=when(message, "created_at"),
        compatibility=message.compatibility,
        allowed_changes=tuple(message.allowed_changes),
        retention_days=message.retention_days,
        deprecated=message.deprecated,
        deprecation_message=message.deprecation_message,
        examples=tuple(from_struct(each) for each in message.examples),
    )
