"""What the use cases of workflows take and give."""

from dataclasses import dataclass

from millstream.domain.errors import FieldFault


@dataclass(frozen=True, slots=True)
class WorkflowHead:
    """A workflow, as it is now. Times are microseconds since the epoch; `deleted_us` is 0 while it is there.

    Attributes:
        id: Of the workflow; one that is made again after a deletion has another.
        version: The latest.
        created_by: Who made it.
    """

    tenant: str
    name: str
    id: str
    version: int
    description: str
    created_us: int
    created_by: str
    updated_us: int
    deleted_us: int = 0


@dataclass(frozen=True, slots=True)
class WorkflowPause:
    """That a workflow is held, all its versions; `paused_us` is 0 where it was resumed meanwhile."""

    workflow: str
    paused_us: int
    paused_by: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class WorkflowVersion:
    """A version of a workflow, which never changes.

    Attributes:
        workflow_id: The workflow whose version it was made as.
        document: JSON as text; "" in lists.
    """

    name: str
    version: int
    workflow_id: str
    document: str
    created_us: int
    created_by: str


@dataclass(frozen=True, slots=True)
class WorkflowDetail:
    """A workflow with a version of it, mostly the latest.

    Attributes:
        warnings: What may be meant so, and mostly is not; of the call that made the version.
    """

    head: WorkflowHead
    version: WorkflowVersion
    warnings: tuple[FieldFault, ...] = ()


@dataclass(frozen=True, slots=True)
class WorkflowQuery:
    """Which workflows to list.

    Attributes:
        sort: "name", "created_at" or "updated_at".
    """

    name: str = ""
    deleted: bool = False
    sort: str = "name"
    descending: bool = False


@dataclass(frozen=True, slots=True)
class Validation:
    """What is wrong with a document, by field, and what may be."""

    faults: tuple[FieldFault, ...]
    warnings: tuple[FieldFault, ...]
