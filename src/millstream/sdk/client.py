"""The client: everything but worker streams."""

from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Final, Self

from millstream.sdk.agents import Agents
from millstream.sdk.artifact_types import Types
from millstream.sdk.artifacts import Artifacts, NewArtifact
from millstream.sdk.calls import Calls
from millstream.sdk.channel import credentials, open_channel
from millstream.sdk.context import Publishable
from millstream.sdk.correlations import Correlations
from millstream.sdk.discovery import Kinds, Workers
from millstream.sdk.payloads import Payloads
from millstream.sdk.policies import TypeRef, Visibility
from millstream.sdk.promises import Promises
from millstream.sdk.queues import Queues
from millstream.sdk.results import BatchOutcome, Published, SyncResult
from millstream.sdk.runs import Runs
from millstream.sdk.system import System
from millstream.sdk.task_logs import Logs
from millstream.sdk.tasks import Tasks
from millstream.sdk.tenants import Tenants
from millstream.sdk.workflows import Workflows

KEEPALIVE_S: Final = 120.0
"""Rarer than a worker's: a sync publish may be silent for 5 minutes, and servers take frequent probes ill."""


class Client:
    """Publishes artifacts, creates tasks, and reads everything back.

        async with Client("127.0.0.1:8080") as client:
            result = await client.publish_sync(Order(order_id="o-1", amount=12.5))
            print(result.of(Payment))

    A call that finds the service away or full is repeated with a growing pause until its deadline; writes carry an
    idempotency key, so that none happens twice. Every call raises a `ServiceError` for what the service refuses.

    Attributes:
        artifacts: list, get, summary, watch.
        correlations: status, export.
        types: create, update, deprecate, list, get, schema, versions.
        agents: create, update, delete, list, get, pause, resume, run, history.
        workflows: apply, create, update, validate, delete, list, get, versions, version, schema.
        runs: list, get, events, tasks, cancel.
        tasks: create, create_batch, list, get, cancel, attempts.
        promises: create, resolve, reject, wait, list, get, cancel.
        tasks: create, create_batch, list, get, cancel, attempts; dead.list, dead.retry, dead.drop.
        queues: list, throughput, pause, resume.
        logs: of_task, of_run, watch_task, watch_run.
        payloads: upload, download, download_to, read, load, get.
        tenants: create, list, get.
        system: log_levels, set_log_level.
    """

    def __init__(
        self,
        target: str = "127.0.0.1:8080",
        *,
        api_key: str | None = None,
        timeout: float = 30.0,
        retries: int = 7,
    ) -> None:
        """Nothing is connected yet. To be made inside the event loop that uses it.

        Args:
            target: `host:port` of the service, or of the proxy before it.
            api_key: who calls.
            timeout: deadline of each call in seconds, its retries included; a sync publish has its own.
            retries: how often a call is repeated; 7 outlast a restart of the service, about 8 s.

        Raises:
            ValueError: the target is not `host:port`.
        """
        self._channel = open_channel(target, keepalive_s=KEEPALIVE_S)
        calls = Calls(self._channel, credentials(api_key), timeout, retries)
        self.artifacts = Artifacts(calls)
        self.correlations = Correlations(calls)
        self.types = Types(calls)
        self.agents = Agents(calls)
        self.workflows = Workflows(calls)
        self.runs = Runs(calls)
        self.tasks = Tasks(calls)
        self.logs = Logs(calls)
        self.promises = Promises(calls)
        self.queues = Queues(calls)
        self.payloads = Payloads(calls)
        self.workers = Workers(calls)
        self.kinds = Kinds(calls)
        self.tenants = Tenants(calls)
        self.system = System(calls)

    async def publish(
        self,
        item: Publishable | TypeRef,
        *,
        tags: Sequence[str] = (),
        visibility: Visibility | None = None,
        partition_key: str = "",
        correlation_id: str = "",
        idempotency_key: str = "",
        payload_ref: str = "",
    ) -> Published:
        """Publishes an artifact and returns at once; the cascade it sets off goes on.

        Args:
            item: a model, or (type name, dict).
            tags: channels that subscriptions may name, at most 32.
            visibility: who may see it. Default Public.
            partition_key: a key of the caller's, kept and returned.
            correlation_id: a UUID; of an existing cascade: the artifact joins it. Default: a new one.
            idempotency_key: the same key again stores nothing and gives the first answer. Default: one per call.
            payload_ref: in place of data, what `payloads.upload` gave; `item` is the type alone then.

        Raises:
            PayloadError: the data is not JSON.
            ServiceError: the service refused it.
        """
        return await self.artifacts.publish(
            NewArtifact(item, tags, visibility, partition_key, correlation_id, idempotency_key, payload_ref)
        )

    async def publish_sync(
        self,
        item: Publishable | TypeRef,
        *,
        timeout: float = 30.0,  # noqa: ASYNC109  (the service's own wait, not this call's)
        fail_on_timeout: bool = False,
        type_names: Sequence[TypeRef] = (),
        produced_by: Sequence[str] = (),
        tags: Sequence[str] = (),
        visibility: Visibility | None = None,
        partition_key: str = "",
        correlation_id: str = "",
        idempotency_key: str = "",
        payload_ref: str = "",
    ) -> SyncResult:
        """Publishes an artifact, waits until its cascade is idle, and returns what the cascade made.

        Args:
            item: a model, or (type name, dict).
            timeout: seconds to wait, 1 to 300; then the result says `completed=False`.
            fail_on_timeout: raise DeadlineError instead.
            type_names: return only artifacts of these types (models or names); the cascade is not limited.
            produced_by: return only artifacts made by these agents ("external" for clients).
            tags: as in `publish`, and so are the rest.

        Raises:
            PayloadError: the data is not JSON.
            ServiceError: the service refused it.
        """
        new = NewArtifact(item, tags, visibility, partition_key, correlation_id, idempotency_key, payload_ref)
        return await self.artifacts.publish_sync(new, timeout, fail_on_timeout, type_names, produced_by)

    async def publish_batch(self, items: Iterable[Publishable | NewArtifact]) -> list[BatchOutcome]:
        """Publishes any number of artifacts, each with an outcome of its own, in their order.

        They go in batches of up to 1,000 and 2 MiB. An error of a whole batch is raised if it is the first, and
        stands in the outcomes of its items otherwise.

        Raises:
            PayloadError: an item is not JSON.
            ServiceError: the service refused the first batch.
        """
        return await self.artifacts.publish_batch(items)

    async def close(self) -> None:
        """Closes the connection."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
