"""ArtifactService: publishing artifacts, reading them back, and their types."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from google.api.httpbody_pb2 import HttpBody
from google.protobuf.message import Message

from millstream.application.views.artifacts import SyncResult
from millstream.domain.artifacts import Artifact, NewArtifact
from millstream.domain.errors import TimedOut
from millstream.transport.context import Context
from millstream.transport.mapping import artifacts as mapping
from millstream.transport.mapping.batches import Items, put_outcomes
from millstream.transport.mapping.pages import page_of, pagination
from millstream.transport.notices import tell_deprecated
from millstream.transport.reading import Reader
from millstream.transport.use_cases import Artifacts, Types, Watching
from millstream.wire.v1 import artifact_pb2
from millstream.wire.v1 import artifact_service_pb2 as wire

DEFAULT_SYNC_S = 30.0
SCHEMA_TYPE = "application/schema+json"


class ArtifactService:
    """Artifacts over the wire; `item` reads an artifact of a batch as Publish reads its request."""

    def __init__(self, artifacts: Artifacts, watching: Watching, types: Types, item: Reader) -> None:
        self._artifacts = artifacts
        self._watching = watching
        self._types = types
        self._items: Items[wire.PublishBatchRequest.Item, NewArtifact] = Items("Publish", item, _new)

    async def publish(self, request: wire.PublishRequest, context: Context) -> Message:
        """Publish an artifact."""
        published = await self._artifacts.publish(context.principal, _new(request), context.key)
        context.replayed(published.replayed)
        context.headers["x-correlation-id"] = published.correlation_id
        tell_deprecated(context, published.notice)
        return wire.PublishResponse(
            status="accepted",
            artifact_id=published.artifact_id,
            correlation_id=published.correlation_id,
            deprecation=published.notice or None,
        )

    async def publish_sync(self, request: wire.PublishSyncRequest, context: Context) -> Message:
        """Publish an artifact and wait for its cascade."""
        timeout_s = request.timeout if request.HasField("timeout") else DEFAULT_SYNC_S
        result = await self._artifacts.publish_sync(context.principal, _new(request), context.key, timeout_s)
        if not result.completed and request.fail_on_timeout:
            raise TimedOut(f"the cascade {result.correlation_id} was not idle within {timeout_s:g} s; it goes on")
        context.replayed(result.replayed)
        context.headers["x-correlation-id"] = result.correlation_id
        tell_deprecated(context, result.notice)
        return _sync_response(result, request.filters)

    async def publish_batch(self, request: wire.PublishBatchRequest, context: Context) -> Message:
        """Publish artifacts, each with an outcome of its own."""
        items, keys = self._items.read(request.artifacts, context.trusted)
        batch = await self._artifacts.publish_batch(context.principal, items, keys, context.key)
        context.replayed(batch.replayed)
        out = wire.PublishBatchResponse()
        put_outcomes(out, batch.results, "artifacts", context.correlation_id)
        return out

    async def list_artifacts(self, request: wire.ListArtifactsRequest, context: Context) -> Message:
        """List artifacts."""
        page = await self._artifacts.list(
            context.principal, mapping.query_of(request), page_of(request, by_offset=True), request.embed_meta
        )
        out = wire.ListArtifactsResponse(pagination=pagination(page.info))
        for listed in page.items:
            mapping.put_listed(out.items.add(), listed)
        return out

    async def watch_artifacts(
        self, request: wire.WatchArtifactsRequest, context: Context
    ) -> AsyncGenerator[Message, None]:
        """Send artifacts as they are stored."""
        context.cursor = request.cursor
        watch = self._watching.watch(context.principal, mapping.watched_of(request), request.cursor)
        async with aclosing(watch):
            async for sent in watch:
                context.cursor = sent.cursor
                out = wire.WatchArtifactsResponse(cursor=sent.cursor)
                if sent.artifact is not None:
                    mapping.put_artifact(out.artifact, sent.artifact)
                yield out

    async def summarize_artifacts(self, request: wire.SummarizeArtifactsRequest, context: Context) -> Message:
        """Count artifacts."""
        summary = await self._artifacts.summarize(context.principal, mapping.query_of(request))
        out = wire.SummarizeArtifactsResponse()
        out.summary.SetInParent()
        mapping.put_summary(out.summary, summary)
        return out

    async def get_artifact(self, request: wire.GetArtifactRequest, context: Context) -> Message:
        """Get an artifact."""
        artifact = await self._artifacts.get(context.principal, request.artifact_id.lower())
        return mapping.put_artifact(artifact_pb2.Artifact(), artifact)

    async def create_artifact_type(self, request: wire.CreateArtifactTypeRequest, context: Context) -> Message:
        """Register a type."""
        kind, replayed = await self._types.create(context.principal, mapping.new_type(request), context.key)
        context.replayed(replayed)
        return mapping.put_type(artifact_pb2.ArtifactType(), kind)

    async def list_artifact_types(self, request: wire.ListArtifactTypesRequest, context: Context) -> Message:
        """List types."""
        page = await self._types.list(context.principal, page_of(request))
        out = wire.ListArtifactTypesResponse(pagination=pagination(page.info))
        for kind in page.items:
            mapping.put_type(out.items.add(), kind)
        return out

    async def get_artifact_type(self, request: wire.GetArtifactTypeRequest, context: Context) -> Message:
        """Get a type."""
        version = request.version if request.HasField("version") else None
        kind = await self._types.get(context.principal, request.name, version)
        return mapping.put_type(artifact_pb2.ArtifactType(), kind)

    async def update_artifact_type(self, request: wire.UpdateArtifactTypeRequest, context: Context) -> Message:
        """Change a type."""
        kind, replayed = await self._types.update(context.principal, mapping.type_change(request), context.key)
        context.replayed(replayed)
        return mapping.put_type(artifact_pb2.ArtifactType(), kind)

    async def get_artifact_type_schema(self, request: wire.GetArtifactTypeSchemaRequest, context: Context) -> Message:
        """Get the schema of a type."""
        version = request.version if request.HasField("version") else None
        kind = await self._types.get(context.principal, request.name, version)
        body: Message = HttpBody(content_type=SCHEMA_TYPE, data=(kind.schema or "{}").encode())
        return body

    async def list_artifact_type_versions(
        self, request: wire.ListArtifactTypeVersionsRequest, context: Context
    ) -> Message:
        """List the versions of a type."""
        page = await self._types.versions(context.principal, request.name, page_of(request))
        out = wire.ListArtifactTypeVersionsResponse(pagination=pagination(page.info))
        for kind in page.items:
            mapping.put_type(out.items.add(), kind)
        return out


def _new(request: wire.PublishRequest | wire.PublishSyncRequest) -> NewArtifact:
    return mapping.new_artifact(request, request.correlation_id)


def _sync_response(result: SyncResult, filters: wire.PublishSyncRequest.Filters) -> wire.PublishSyncResponse:
    out = wire.PublishSyncResponse(
        correlation_id=result.correlation_id, completed=result.completed, duration_ms=result.duration_ms
    )
    for artifact in _filtered(result.artifacts, filters):
        mapping.put_artifact(out.artifacts.add(), artifact)
    for failure in result.failures:
        mapping.put_failure(out.failures.add(), failure)
    if result.next_page_token:
        out.truncated = True
        out.next_page_token = result.next_page_token
    if result.notice:
        out.deprecation = result.notice
    return out


def _filtered(artifacts: list[Artifact], filters: wire.PublishSyncRequest.Filters) -> list[Artifact]:
    types, makers = frozenset(filters.type_names), frozenset(filters.produced_by)
    if not types and not makers:
        return artifacts
    return [
        each for each in artifacts if (not types or each.type in types) and (not makers or each.produced_by in makers)
    ]
