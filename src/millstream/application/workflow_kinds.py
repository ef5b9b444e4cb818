"""Which workflows there are to begin: those that the service keeps, and those whose code workers have."""

from dataclasses import dataclass
from typing import Protocol

import orjson

from millstream.application.paging import Page, PageInfo, PageRequest
from millstream.application.views.workflows import WorkflowDetail, WorkflowHead, WorkflowQuery, WorkflowVersion
from millstream.domain.errors import NotFound, ValidationFailed
from millstream.domain.principals import Principal
from millstream.domain.workers import TASK_KIND, WORKFLOW_KIND, KindQuery, KnownKind

VERSIONS_MOST = 100


@dataclass(frozen=True, slots=True)
class KeptWorkflow:
    """A workflow that the service keeps. Schemas are JSON text, "" for none, and in lists."""

    head: WorkflowHead
    versions: tuple[str, ...]
    input_schema: str = ""
    output_schema: str = ""


@dataclass(frozen=True, slots=True)
class ServedKind:
    """A kind that workers serve: of its versions the one of which a worker connected last, and all their names."""

    kind: KnownKind
    versions: tuple[str, ...]


class Kept(Protocol):
    """Workflows that the service keeps; see application.workflows."""

    async def get(self, principal: Principal, id_or_name: str) -> WorkflowDetail: ...
    async def versions(self, principal: Principal, id_or_name: str, request: PageRequest) -> Page[WorkflowVersion]: ...
    async def list(self, principal: Principal, query: WorkflowQuery, request: PageRequest) -> Page[WorkflowHead]: ...


class Served(Protocol):
    """Kinds that workers serve; see application.discovery."""

    async def kinds(self, principal: Principal, query: KindQuery, request: PageRequest) -> Page[KnownKind]: ...


class WorkflowKinds:
    """The use cases."""

    def __init__(self, kept: Kept, served: Served) -> None:
        self._kept = kept
        self._served = served

    async def task_kind(self, principal: Principal, name: str) -> ServedKind:
        """A kind of tasks that workers serve. Raises NotFound."""
        found = await self._served_kind(principal, name, TASK_KIND)
        if found is None:
            raise NotFound(f"no worker serves tasks of kind {name!r}")
        return found

    async def get(self, principal: Principal, name: str) -> KeptWorkflow | ServedKind:
        """A workflow by its name: the kept one goes before the served. Raises NotFound."""
        try:
            detail = await self._kept.get(principal, name)
        except NotFound:
            detail = None
        if detail is not None and not detail.head.deleted_us:
            versions = await self._kept.versions(principal, detail.head.name, PageRequest(page_size=VERSIONS_MOST))
            document = orjson.loads(detail.version.document)
            return KeptWorkflow(
                detail.head, tuple(str(each.version) for each in versions.items),
                _schema(document.get("input_schema")), _schema(document.get("output_schema")),
            )  # fmt: skip
        served = await self._served_kind(principal, name, WORKFLOW_KIND)
        if served is None:
            raise NotFound(f"there is no workflow {name!r}")
        return served

    async def _served_kind(self, principal: Principal, name: str, category: int) -> ServedKind | None:
        query = KindQuery(name=name, category=category)
        found = (await self._served.kinds(principal, query, PageRequest(page_size=VERSIONS_MOST))).items
        if not found:
            return None
        latest = sorted(found, key=lambda each: (each.count > 0, each.registered_us), reverse=True)
        return ServedKind(latest[0], tuple(each.spec.version for each in latest if each.spec.version))

    async def list(self, principal: Principal, request: PageRequest) -> Page[KeptWorkflow | ServedKind]:
        """The kept ones by name, and then the served ones by name and version. Raises ValidationFailed."""
        request.check()
        if request.page_token is not None:
            raise ValidationFailed.of("page_token", "is of no list of workflow definitions; use limit and offset")
        size, skip = request.size, request.skip
        query, kinds = WorkflowQuery(), KindQuery(category=WORKFLOW_KIND)
        kept = await self._kept.list(principal, query, PageRequest(limit=size, offset=skip))
        total = kept.info.total or 0
        items: list[KeptWorkflow | ServedKind] = [KeptWorkflow(each, (str(each.version),)) for each in kept.items]
        left = max(size - len(items), 0) if skip + len(items) >= total else 0
        wanted = PageRequest(limit=max(left, 1), offset=max(skip - total, 0))
        served = await self._served.kinds(principal, kinds, wanted)
        items += [alone(each) for each in served.items[:left]]
        return Page(items, PageInfo(total=total + (served.info.total or 0), limit=size, offset=skip))


def alone(kind: KnownKind) -> ServedKind:
    """A kind as a list shows it: in one of its versions."""
    return ServedKind(kind, (kind.spec.version,) if kind.spec.version else ())


def _schema(given: object) -> str:
    return orjson.dumps(given).decode() if given else ""
