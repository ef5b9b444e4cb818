"""Artifacts: published, listed, counted."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

from millstream.sdk.calls import Area, Listing, chunks
from millstream.sdk.context import Publishable
from millstream.sdk.errors import ServiceError
from millstream.sdk.execution import fill_publication
from millstream.sdk.payloads import Payloads
from millstream.sdk.policies import TypeRef, Visibility, type_name
from millstream.sdk.results import (
    Artifact,
    ArtifactSummary,
    BatchOutcome,
    Failure,
    Published,
    SyncResult,
    item_error,
    when,
)
from millstream.sdk.streams import ArtifactWatch
from millstream.v1 import artifact_service_pb2 as wire

SYNC_MARGIN_S = 10.0
"""How much longer than the wait itself a sync publish's call may take."""

DraftT = TypeVar("DraftT", wire.PublishRequest, wire.PublishSyncRequest, wire.PublishBatchRequest.Item)


@dataclass(frozen=True, slots=True)
class NewArtifact:
    """An artifact to publish, where more than its data is to be said."""

    item: Publishable | TypeRef
    """With payload_ref, the type alone."""
    tags: Sequence[str] = ()
    visibility: Visibility | None = None
    partition_key: str = ""
    correlation_id: str = ""
    """A UUID; of an existing cascade: the artifact joins it. Default: a new one."""
    idempotency_key: str = ""
    """In a batch, of this item alone."""
    payload_ref: str = ""
    """In place of data: what `client.payloads.upload` gave."""

    def fill(self, draft: DraftT) -> DraftT:
        """Puts it into a request.

        Raises:
            PayloadError: the data is not JSON.
        """
        fill_publication(draft, self.item, self.payload_ref)
        draft.tags.extend(self.tags)
        draft.partition_key = self.partition_key
        draft.correlation_id = self.correlation_id
        if self.visibility is not None:
            draft.visibility.CopyFrom(self.visibility.to_wire())
        return draft


class Artifacts(Area):
    """Publishes artifacts and reads them back."""

    async def publish(self, new: NewArtifact) -> Published:
        """Publishes an artifact; the cascade it sets off goes on."""
        answer = await self._calls.write(
            "ArtifactService/Publish",
            new.fill(wire.PublishRequest()),
            wire.PublishResponse,
            key=new.idempotency_key,
        )
        return Published(
            answer.message.artifact_id, answer.message.correlation_id, answer.replayed, answer.message.deprecation
        )

    async def publish_sync(
        self,
        new: NewArtifact,
        timeout: float,  # noqa: ASYNC109  (the service's own wait, not this call's)
        fail_on_timeout: bool,
        type_names: Sequence[TypeRef],
        produced_by: Sequence[str],
    ) -> SyncResult:
        """Publishes an artifact and waits until its cascade is idle."""
        request = new.fill(wire.PublishSyncRequest(timeout=timeout, fail_on_timeout=fail_on_timeout))
        request.filters.type_names.extend(type_name(ref) for ref in type_names)
        request.filters.produced_by.extend(produced_by)
        answer = await self._calls.write(
            "ArtifactService/PublishSync",
            request,
            wire.PublishSyncResponse,
            key=new.idempotency_key,
            timeout_s=timeout + SYNC_MARGIN_S,
        )
        return sync_result(answer.message, answer.replayed)

    async def publish_batch(self, items: Iterable[Publishable | NewArtifact]) -> list[BatchOutcome]:
        """Publishes any number of artifacts, each with an outcome of its own, in their order."""
        drafts = (
            (item if isinstance(item, NewArtifact) else NewArtifact(item)).fill(
                wire.PublishBatchRequest.Item(
                    idempotency_key=item.idempotency_key if isinstance(item, NewArtifact) else ""
                )
            )
            for item in items
        )
        outcomes: list[BatchOutcome] = []
        for chunk in chunks(drafts):
            outcomes += await self._publish_chunk(chunk, len(outcomes))
        return outcomes

    async def _publish_chunk(self, chunk: list[wire.PublishBatchRequest.Item], before: int) -> list[BatchOutcome]:
        try:
            answer = await self._calls.write(
                "ArtifactService/PublishBatch",
                wire.PublishBatchRequest(artifacts=chunk),
                wire.PublishBatchResponse,
            )
        except ServiceError as error:
            if not before:
                raise
            return failed_chunk(error, before, len(chunk))
        return [
            BatchOutcome(
                before + result.index,
                result.status,
                result.artifact_id,
                result.correlation_id,
                item_error(result.error) if result.HasField("error") else None,
                result.deprecation,
            )
            for result in answer.message.results
        ]

    def list(
        self,
        *,
        type: TypeRef = "",  # noqa: A002  (the contract's name)
        produced_by: str = "",
        correlation_id: str = "",
        tag: str = "",
        created_from: datetime | None = None,
        created_to: datetime | None = None,
        visibility: str = "",
        embed_meta: bool = False,
        page_size: int = 100,
        page_token: str = "",
    ) -> Listing[Artifact]:
        """Lists artifacts, newest first. `embed_meta` fills `consumed_by`; `page_token` goes on from a page."""

        async def fetch(cursor: str | None) -> tuple[list[Artifact], str | None]:
            request = wire.ListArtifactsRequest(
                type=type_name(type),
                produced_by=produced_by,
                correlation_id=correlation_id,
                tag=tag,
                created_from=stamp(created_from),
                created_to=stamp(created_to),
                visibility=visibility,
                embed_meta=embed_meta,
                page_size=page_size,
                page_token=cursor or page_token,
            )
            page = await self._calls.read("ArtifactService/ListArtifacts", request, wire.ListArtifactsResponse)
            return [Artifact.from_wire(item) for item in page.items], page.pagination.next_page_token

        return Listing(fetch)

    async def get(self, artifact_id: str) -> Artifact:
        """Gets one artifact, with its payload also where that is kept outside (a JSON object of up to 16 MiB). In lists
        and results such a payload is empty: `client.payloads.load` gets it."""
        request = wire.GetArtifactRequest(artifact_id=artifact_id)
        found = await self._calls.read("ArtifactService/GetArtifact", request, wire.GetArtifactResponse)
        artifact = Artifact.from_wire(found)
        return artifact if artifact.payload else await Payloads(self._calls).load(artifact)

    def watch(
        self,
        *,
        types: Sequence[TypeRef] = (),
        produced_by: Sequence[str] = (),
        tags: Sequence[str] = (),
        visibility: Sequence[str] = (),
        correlation_id: str = "",
        cursor: str = "",
    ) -> ArtifactWatch:
        """Watches what is stored from now on, or behind the `cursor` of an earlier watch; without a loss or a double,
        whatever breaks meanwhile. Of several types, producers, tags or kinds of visibility, one is enough.

            async for artifact in client.artifacts.watch(types=[Payment]): ...
        """

        def request(behind: str) -> wire.WatchArtifactsRequest:
            return wire.WatchArtifactsRequest(
                types=[type_name(ref) for ref in types],
                produced_by=produced_by,
                tags=tags,
                visibility=visibility,
                correlation_id=correlation_id,
                cursor=behind,
            )

        return ArtifactWatch(self._calls, request, cursor)

    async def summary(
        self,
        *,
        type: TypeRef = "",  # noqa: A002  (the contract's name)
        produced_by: str = "",
        correlation_id: str = "",
        tag: str = "",
        created_from: datetime | None = None,
        created_to: datetime | None = None,
        visibility: str = "",
    ) -> ArtifactSummary:
        """Counts artifacts by type, producer, visibility and tag."""
        request = wire.SummarizeArtifactsRequest(
            type=type_name(type),
            produced_by=produced_by,
            correlation_id=correlation_id,
            tag=tag,
            created_from=stamp(created_from),
            created_to=stamp(created_to),
            visibility=visibility,
        )
        response = await self._calls.read(
            "ArtifactService/SummarizeArtifacts", request, wire.SummarizeArtifactsResponse
        )
        counts = response.summary
        return ArtifactSummary(
            total=counts.total,
            by_type=dict(counts.by_type),
            by_producer=dict(counts.by_producer),
            by_visibility=dict(counts.by_visibility),
            tag_counts=dict(counts.tag_counts),
            earliest_created_at=when(counts, "earliest_created_at"),
            latest_created_at=when(counts, "latest_created_at"),
        )


def stamp(time: datetime | None) -> Timestamp | None:
    """The time as the wire has it; one without a zone is local time."""
    if time is None:
        return None
    message = Timestamp()
    message.FromDatetime(time.astimezone())
    return message


def failed_chunk(error: ServiceError, before: int, count: int) -> list[BatchOutcome]:
    """Outcomes of a whole batch that failed after others were stored, whose outcomes must not be lost."""
    return [BatchOutcome(before + place, "failed", error=error) for place in range(count)]


def sync_result(message: Any, replayed: bool) -> SyncResult:
    """The value of a PublishSyncResponse or a RunAgentResponse."""
    return SyncResult(
        correlation_id=message.correlation_id,
        artifacts=tuple(Artifact.from_wire(item) for item in message.artifacts),
        completed=message.completed,
        duration_ms=message.duration_ms,
        failures=tuple(
            Failure(f.agent, f.task_id, f.code, f.message, f.attempts, tuple(f.artifact_ids)) for f in message.failures
        ),
        truncated=message.truncated,
        next_page_token=message.next_page_token,
        replayed=replayed,
        deprecation=message.deprecation,
    )
