"""What a caller may see of artifacts where other things speak of them: tasks, events, failures and runs."""

import json
from collections.abc import Iterable, Sequence, Set
from dataclasses import replace
from typing import Protocol

from millstream.domain.artifacts import EXTERNAL, Artifact, Reader, visible
from millstream.domain.principals import Principal
from millstream.domain.runs import Event, EventType, Failure, Run, Task
from millstream.domain.struct_wire import Json

READ_ALL = "artifacts.read_all"
"""The permission that lifts visibility."""


class SightReads(Protocol):
    """What is asked about artifacts that are not read themselves; see store.artifacts."""

    async def seen(self, tenant: str, ids: Sequence[str], reader: Reader, now_us: int) -> set[str]: ...
    async def seen_tasks(self, tenant: str, task_ids: Sequence[str], reader: Reader, now_us: int) -> set[str]: ...
    async def seen_in_runs(
        self, tenant: str, run_ids: Sequence[str], reader: Reader, now_us: int
    ) -> dict[str, int]: ...


def reader_of(principal: Principal) -> Reader:
    """For whom visibility is judged."""
    return Reader(principal.tenant, principal.agent, principal.labels, principal.name)


def restricted(principal: Principal) -> Reader | None:
    """For whom visibility is judged; None for one who sees everything of the tenant."""
    return None if READ_ALL in principal.permissions else reader_of(principal)


def may_see(reader: Reader, artifact: Artifact, now_us: int) -> bool:
    """Whether a reader sees an artifact: its publisher always does."""
    if reader.agent not in ("", EXTERNAL) and reader.agent == artifact.produced_by:
        return True
    if reader.name and reader.name == artifact.published_by:
        return True
    return visible(artifact.visibility, reader, artifact.tenant, now_us - artifact.created_us)


class Sight:
    """Takes out of tasks, events, failures and runs what tells of artifacts that the caller may not see."""

    def __init__(self, reads: SightReads) -> None:
        self._reads = reads

    async def tasks(self, principal: Principal, found: Sequence[Task], now_us: int) -> list[Task]:
        """Tasks with the artifacts they were given, of those that the caller may see."""
        seen = await self._seen(principal, (each for task in found for each in task.artifact_ids), now_us)
        if seen is None:
            return list(found)
        return [replace(task, artifact_ids=tuple(each for each in task.artifact_ids if each in seen)) for task in found]

    async def failures(self, principal: Principal, found: Sequence[Failure], now_us: int) -> list[Failure]:
        """Failures with the artifacts they are about, of those that the caller may see."""
        seen = await self._seen(principal, (each for failure in found for each in failure.artifact_ids), now_us)
        if seen is None:
            return list(found)
        return [replace(each, artifact_ids=tuple(i for i in each.artifact_ids if i in seen)) for each in found]

    async def events(self, principal: Principal, found: Sequence[Event], now_us: int) -> list[Event]:
        """Events, those of other artifacts without the id and what they tell of it; their numbers stay. What a gate had
        is told to those who may see all of it."""
        seen = await self._seen(principal, (event.artifact_id for event in found if event.artifact_id), now_us)
        if seen is None:
            return list(found)
        fired = [event.task_id for event in found if event.type is EventType.GATE_FIRED]
        whole = await self.whole_tasks(principal, fired, now_us)
        return [_shown(event, seen, whole) for event in found]

    async def whole_tasks(self, principal: Principal, task_ids: Iterable[str], now_us: int) -> Set[str]:
        """Those of the tasks whose artifacts the caller may see, all of them."""
        reader, wanted = restricted(principal), sorted(set(task_ids))
        if reader is None or not wanted:
            return set(wanted)
        return await self._reads.seen_tasks(principal.tenant, wanted, reader, now_us)

    async def runs(self, principal: Principal, found: Sequence[Run], now_us: int) -> list[Run]:
        """Runs that count only the artifacts that the caller may see, up to 10,000."""
        reader = restricted(principal)
        if reader is None or not any(run.artifact_count for run in found):
            return list(found)
        wanted = [run.id for run in found if run.artifact_count]
        counts = await self._reads.seen_in_runs(principal.tenant, wanted, reader, now_us)
        return [replace(run, artifact_count=counts.get(run.id, 0)) for run in found]

    async def _seen(self, principal: Principal, ids: Iterable[str], now_us: int) -> set[str] | None:
        """Those of the artifacts that the caller may see; None: all."""
        reader, wanted = restricted(principal), sorted(set(ids))
        if reader is None:
            return None
        return await self._reads.seen(principal.tenant, wanted, reader, now_us) if wanted else set()


def _shown(event: Event, seen: Set[str], whole: Set[str]) -> Event:
    if event.artifact_id and event.artifact_id not in seen:
        return replace(event, artifact_id="", data="")
    if event.type is EventType.GATE_FIRED and event.task_id not in whole:
        return replace(event, data="")
    if event.type is EventType.GATE_WAITING and event.data:
        # What waited beside it is not noted, so it cannot be judged.
        data: dict[str, Json] = json.loads(event.data)
        data.pop("have", None)
        return replace(event, data=json.dumps(data, ensure_ascii=False, separators=(",", ":")))
    return event
