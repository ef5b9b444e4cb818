"""Who the workers are, and what they serve."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from millstream.sdk.agent_results import ServingWorker
from millstream.sdk.calls import Area, Listing, choice
from millstream.sdk.payload import JsonValue, from_struct
from millstream.sdk.results import when
from millstream.v1 import worker_pb2
from millstream.v1 import worker_service_pb2 as wire


@dataclass(frozen=True, slots=True)
class KindInfo:
    """A kind of tasks or workflows that workers serve; `category` is "TASK" or "WORKFLOW"."""

    kind: str
    category: str
    version: str
    description: str
    input_schema: Mapping[str, JsonValue]
    """JSON Schema of what it takes; empty where no worker told it."""
    output_schema: Mapping[str, JsonValue]
    """JSON Schema of what it returns; empty where no worker told it."""
    status: str = ""
    """"ONLINE" (a worker serves it) or "OFFLINE"; as all that follows, of a kind that was listed."""
    queues: tuple[str, ...] = ()
    worker_count: int = 0
    served_by: tuple[ServingWorker, ...] = ()
    """The first 10 of them."""
    registered_at: datetime | None = None

    @classmethod
    def from_wire(cls, wire: Any) -> "KindInfo":
        """The value of a Kind, or of the KindSpec of a worker."""
        spec = {
            "kind": wire.kind,
            "category": worker_pb2.KindSpec.Category.Name(wire.category),
            "version": wire.version,
            "description": wire.description,
            "input_schema": from_struct(wire.input_schema),
            "output_schema": from_struct(wire.output_schema),
        }
        if isinstance(wire, worker_pb2.KindSpec):
            return cls(**spec)
        return cls(
            **spec,
            status=worker_pb2.Kind.Status.Name(wire.status),
            queues=tuple(wire.queues),
            worker_count=wire.worker_count,
            served_by=tuple(
                ServingWorker(each.worker_id, each.name, each.server, when(each, "connected_at"))
                for each in wire.served_by
            ),
            registered_at=when(wire, "registered_at"),
        )


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A worker that is connected, or was not long ago; `status` is "ONLINE", "DRAINING" or "OFFLINE"."""

    worker_id: str
    name: str
    status: str
    server: str
    """Host and process."""
    connected_at: datetime | None
    last_heartbeat_at: datetime | None
    disconnected_at: datetime | None
    slots: int
    slots_used: int
    queues: tuple[str, ...]
    kinds: tuple[KindInfo, ...]
    agents: tuple[str, ...]
    truncated: bool = False
    """Kinds, agents or schemas were left out; a worker that was listed has no schemas at all."""

    @classmethod
    def from_wire(cls, wire: Any) -> "WorkerInfo":
        """The value of a Worker, or of a response with a worker's fields."""
        return cls(
            worker_id=wire.worker_id,
            name=wire.name,
            status=worker_pb2.Worker.Status.Name(wire.status),
            server=wire.server,
            connected_at=when(wire, "connected_at"),
            last_heartbeat_at=when(wire, "last_heartbeat_at"),
            disconnected_at=when(wire, "disconnected_at"),
            slots=wire.slots,
            slots_used=wire.slots_used,
            queues=tuple(wire.queues),
            kinds=tuple(map(KindInfo.from_wire, wire.kinds)),
            agents=tuple(wire.agents),
            truncated=wire.truncated,
        )


class Workers(Area):
    """Reads workers."""

    def list(
        self, *, status: str = "", kind: str = "", queue: str = "", name: str = "", page_size: int = 100
    ) -> Listing[WorkerInfo]:
        """Lists workers, the last connected first.

        Args:
            status: "ONLINE", "DRAINING" or "OFFLINE".
            kind: that serve it, such as "resize", or "agent:payments" for an agent.
            queue: that take tasks from it.
            name: of this name.
            page_size: workers a call, 1 to 500.

        Raises:
            ValueError: there is no such status.
        """
        wanted = choice(worker_pb2.Worker.Status, status)

        async def fetch(cursor: str | None) -> tuple[list[WorkerInfo], str | None]:
            request = wire.ListWorkersRequest(
                status=wanted, kind=kind, queue=queue, name=name, page_size=page_size, page_token=cursor or ""
            )
            page = await self._calls.read("WorkerService/ListWorkers", request, wire.ListWorkersResponse)
            return [WorkerInfo.from_wire(item) for item in page.items], page.pagination.next_page_token

        return Listing(fetch)

    async def get(self, worker_id: str) -> WorkerInfo:
        """Gets a worker, with what it says of its kinds."""
        request = wire.GetWorkerRequest(worker_id=worker_id)
        answer = await self._calls.read("WorkerService/GetWorker", request, wire.GetWorkerResponse)
        return WorkerInfo.from_wire(answer)


class Kinds(Area):
    """Reads the kinds of tasks and workflows that workers serve."""

    def list(self, *, kind: str = "", category: str = "", status: str = "", page_size: int = 100) -> Listing[KindInfo]:
        """Lists kinds by name and version, with who serves them.

        Args:
            kind: of this name, in all versions.
            category: "TASK" or "WORKFLOW".
            status: "ONLINE" or "OFFLINE".
            page_size: kinds a call, 1 to 500.

        Raises:
            ValueError: there is no such category or status.
        """
        of = choice(worker_pb2.KindSpec.Category, category)
        wanted = choice(worker_pb2.Kind.Status, status)

        async def fetch(cursor: str | None) -> tuple[list[KindInfo], str | None]:
            request = wire.ListKindsRequest(
                kind=kind, category=of, status=wanted, page_size=page_size, page_token=cursor or ""
            )
            page = await self._calls.read("WorkerService/ListKinds", request, wire.ListKindsResponse)
            return [KindInfo.from_wire(item) for item in page.items], page.pagination.next_page_token

        return Listing(fetch)
