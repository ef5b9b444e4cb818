"""The answer of a sync publish: what a cascade made, from memory where it ended here, else read."""

import asyncio
import json
from typing import Protocol

from millstream.application.engine.cache import KEPT_ARTIFACT_BYTES, KEPT_ARTIFACTS
from millstream.application.engine.commands import AttachWaiter
from millstream.application.engine.engine import Engine
from millstream.application.engine.waiting import Ended
from millstream.application.paging import encode_token
from millstream.application.views import Published, SyncResult
from millstream.domain.artifacts import Artifact, Reader, visible
from millstream.domain.errors import NotFound
from millstream.domain.planners import LIMIT_CODE
from millstream.domain.principals import Principal
from millstream.domain.runs import Event, Failure, Run, Task
from millstream.domain.struct_wire import Json


class CascadeReads(Protocol):
    """What is read of runs and artifacts; see store.runs and store.artifacts."""

    async def run(self, tenant: str, run_id: str) -> Run | None: ...
    async def first_end(self, found: Run, after_seq: int) -> tuple[int, int] | None: ...
    async def limits_reached(self, found: Run) -> list[Event]: ...
    async def failed_tasks(self, run_id: str) -> list[Task]: ...
    async def by_ids(self, tenant: str, ids: list[str]) -> dict[str, Artifact]: ...
    async def of_run(self, run_id: str, after_seq: int, limit: int) -> tuple[list[Artifact], bool]: ...


class Cascades:
    """Waits for cascades and gathers what they made."""

    def __init__(self, engine: Engine, reads: CascadeReads) -> None:
        self._engine = engine
        self._reads = reads

    async def result(
        self, principal: Principal, published: Published, ended: "asyncio.Future[Ended]", deadline: float
    ) -> SyncResult:
        """Wait for the end and answer. Of a run that ended here nothing is read."""
        end = await self._wait(ended, deadline)
        if end is not None and end.run is not None and end.artifacts is not None:
            first = end.artifacts[0]
            failures = await self._failures(end.run)
            artifacts = self._visible(principal, end.artifacts)
            duration_ms = (end.run.finished_us - first.created_us) / 1000
            return SyncResult(published.correlation_id, artifacts, True, duration_ms, failures)
        return await self._read(principal, published, None)

    async def replay(self, principal: Principal, published: Published, deadline: float) -> SyncResult:
        """The same answer again: rebuilt up to the point where the cascade was first idle, or waited for on."""
        engine, run_id = self._engine, published.correlation_id
        with engine.waiters.wait(run_id) as ended:
            artifact = await self._artifact(principal, published)
            run = await self._reads.run(principal.tenant, run_id)
            if run is None:
                raise NotFound(f"the cascade {run_id} is gone: its retention has passed")
            if await self._reads.first_end(run, artifact.seq) is None:
                command = AttachWaiter(run_id=run_id, locked=True, tenant=principal.tenant, waiter=engine.lane_id)
                run = await engine.submit(command)
                if run.finished_us == 0:
                    await self._wait(ended, deadline)
        return await self._read(principal, published, artifact, replayed=True)

    async def _artifact(self, principal: Principal, published: Published) -> Artifact:
        found = await self._reads.by_ids(principal.tenant, [published.artifact_id])
        if published.artifact_id not in found:
            raise NotFound(f"the artifact {published.artifact_id} is gone: its retention has passed")
        return found[published.artifact_id]

    async def _wait(self, ended: "asyncio.Future[Ended]", deadline: float) -> Ended | None:
        if ended.done():
            return ended.result()
        left = deadline - asyncio.get_running_loop().time()
        done, _ = await asyncio.wait([ended], timeout=max(left, 0))
        return ended.result() if done else None

    async def _read(
        self, principal: Principal, published: Published, artifact: Artifact | None, replayed: bool = False
    ) -> SyncResult:
        """The answer from the store: what there is up to the first idle point after the artifact."""
        run_id = published.correlation_id
        artifact = artifact or await self._artifact(principal, published)
        run = await self._reads.run(principal.tenant, run_id)
        if run is None:
            raise NotFound(f"the cascade {run_id} is gone: its retention has passed")
        end = await self._reads.first_end(run, artifact.seq)
        found, more = await self._reads.of_run(run_id, 0, KEPT_ARTIFACTS)
        found, cut = _bounded(found)
        token = encode_token("run", run_id, found[-1].seq) if more or cut else ""
        now_us = self._engine.clock.now_us()
        if end is not None:
            kept = [item for item in found if item.seq < end[0]]
            token = "" if len(kept) < len(found) else token
            found, now_us = kept, end[1]
        return SyncResult(
            run_id,
            self._visible(principal, found),
            end is not None,
            max(now_us - artifact.created_us, 0) / 1000,
            await self._failures(run),
            token,
            replayed,
        )

    async def _failures(self, run: Run) -> list[Failure]:
        found: list[Failure] = []
        if run.failed_tasks:
            found = [
                Failure(task.agent, task.id, task.error_code, task.error_message, task.tries, task.artifact_ids)
                for task in await self._reads.failed_tasks(run.id)
            ]
        if run.error_code == LIMIT_CODE:
            for event in await self._reads.limits_reached(run):
                data: dict[str, Json] = json.loads(event.data)
                agent, message = str(data["agent"]), str(data["message"])
                found.append(Failure(agent, "", LIMIT_CODE, message, 0, (event.artifact_id,)))
        return found

    def _visible(self, principal: Principal, artifacts: list[Artifact]) -> list[Artifact]:
        """What the caller may see; as the publisher's own input is among them, it always sees that."""
        if "artifacts.read_all" in principal.permissions:
            return artifacts
        reader = reader_of(principal)
        now_us = self._engine.clock.now_us()
        return [item for index, item in enumerate(artifacts) if index == 0 or may_see(reader, item, now_us)]


def reader_of(principal: Principal) -> Reader:
    """For whom visibility is judged."""
    return Reader(principal.tenant, principal.agent, principal.labels)


def may_see(reader: Reader, artifact: Artifact, now_us: int) -> bool:
    """Whether a reader sees an artifact: its publisher always does."""
    if reader.agent and reader.agent == artifact.produced_by:
        return True
    return visible(artifact.visibility, reader, artifact.tenant, now_us - artifact.created_us)


def _bounded(found: list[Artifact]) -> tuple[list[Artifact], bool]:
    size = 0
    for n, item in enumerate(found):
        size += len(item.payload)
        if n and size > KEPT_ARTIFACT_BYTES:
            return found[:n], True
    return found, False
