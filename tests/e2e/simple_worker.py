"""A worker of unary calls that does exactly what a test tells it."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import grpc
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Value

from millstream.v1 import worker_pb2, worker_service_pb2, worker_service_pb2_grpc

WAIT_S = 20.0


class SimpleWorker:
    """Polls and reports over gRPC, in one tenant."""

    def __init__(self, channel: grpc.aio.Channel, tenant: str, **metadata: str) -> None:
        self._stub = worker_service_pb2_grpc.WorkerServiceStub(channel)
        named = (("x-tenant", tenant),) if tenant else ()
        self._metadata = (*named, *((name.replace("_", "-"), text) for name, text in metadata.items()))
        self.worker_id = str(uuid.uuid4())

    async def poll(self, *kinds: str, tasks: int = 1, wait: float = WAIT_S) -> list[worker_pb2.Lease]:
        """Lease tasks; at least one, within 20 s."""
        request = worker_service_pb2.PollRequest(
            worker_id=self.worker_id, name="simple", kinds=kinds, max_tasks=tasks, wait=wait
        )
        return list((await self._stub.Poll(request, metadata=self._metadata)).leases)

    async def complete(
        self,
        lease: worker_pb2.Lease,
        output: Any = None,
        artifacts: dict[str, dict[str, Any]] | None = None,
        refused: bool = False,
        produced: Sequence[worker_pb2.ProducedArtifact] = (),
    ) -> str:
        """Complete a task, with artifacts as payloads by type (or as messages); the code of the error, where it is to
        be refused."""
        value = json_format.ParseDict(output, Value())
        done = worker_pb2.Completion(task_id=lease.task_id, attempt=lease.attempt, output=value)
        for kind, payload in (artifacts or {}).items():
            done.artifacts.add(type=kind).payload.update(payload)
        done.artifacts.extend(produced)
        request = worker_service_pb2.CompleteRequest(completions=[done])
        return self._only((await self._stub.Complete(request, metadata=self._metadata)).results, refused)

    async def fail(self, lease: worker_pb2.Lease, code: str, message: str, refused: bool = False) -> str:
        """Fail an attempt; the code of the error, where it is to be refused."""
        failure = worker_pb2.AttemptFailure(task_id=lease.task_id, attempt=lease.attempt, code=code, message=message)
        request = worker_service_pb2.FailRequest(failures=[failure])
        return self._only((await self._stub.Fail(request, metadata=self._metadata)).results, refused)

    async def progress(self, lease: worker_pb2.Lease, share: float, message: str = "", refused: bool = False) -> str:
        """Report progress; the code of the error, where it is to be refused."""
        told = worker_pb2.TaskProgress(task_id=lease.task_id, attempt=lease.attempt, fraction=share, message=message)
        request = worker_service_pb2.ReportProgressRequest(progress=[told])
        return self._only((await self._stub.ReportProgress(request, metadata=self._metadata)).results, refused)

    async def heartbeat(self, *leases: tuple[str, int]) -> list[worker_pb2.ReportResult]:
        """Renew leases by task and attempt; what became of each."""
        refs = [worker_pb2.LeaseRef(task_id=task_id, attempt=attempt) for task_id, attempt in leases]
        request = worker_service_pb2.HeartbeatRequest(leases=refs)
        return list((await self._stub.Heartbeat(request, metadata=self._metadata)).results)

    async def cancel_requested(self, lease: worker_pb2.Lease) -> bool:
        """Whether the task is being cancelled."""
        (result,) = await self.heartbeat((lease.task_id, lease.attempt))
        return result.cancel_requested

    def _only(self, results: Any, refused: bool) -> str:
        (result,) = results
        assert result.HasField("error") is refused, result
        code: str = result.error.code
        return code
