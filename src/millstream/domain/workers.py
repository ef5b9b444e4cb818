"""Workers, and the kinds of tasks and workflows that they serve, as discovery shows them."""

from dataclasses import dataclass
from typing import Final

TASK_KIND: Final = 1
WORKFLOW_KIND: Final = 2
"""Categories of kinds, numbered as in the contract."""


@dataclass(frozen=True, slots=True)
class KindSpec:
    """What a worker says of a kind that it serves; schemas are JSON text, "" for none.

    Attributes:
        category: TASK_KIND or WORKFLOW_KIND.
    """

    name: str
    category: int = TASK_KIND
    version: str = ""
    description: str = ""
    input_schema: str = ""
    output_schema: str = ""

    @property
    def code(self) -> str:
        """The kind and its version as one text, as a worker's row lists it."""
        return f"{self.category}:{self.version}:{self.name}"

    @classmethod
    def of_code(cls, code: str) -> "KindSpec":
        """The kind that a text names, without what is said of it."""
        category, version, name = code.split(":", 2)
        return cls(name, int(category), version)


@dataclass(frozen=True, slots=True)
class ServingWorker:
    """A connected worker; `seen_us` is when it, or its server, was last seen to live."""

    worker_id: str
    name: str
    server: str
    connected_us: int
    seen_us: int


@dataclass(frozen=True, slots=True)
class KnownWorker:
    """A worker that is connected to some server, or was not long ago.

    Attributes:
        status: "ONLINE", "DRAINING" or "OFFLINE".
        left_us: When it went; 0 while it is connected.
        truncated: Something of its kinds was left out.
    """

    worker_id: str
    name: str
    status: str
    server: str
    connected_us: int
    heard_us: int
    left_us: int
    slots: int
    used: int
    queues: tuple[str, ...]
    kinds: tuple[KindSpec, ...]
    agents: tuple[str, ...]
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class KnownKind:
    """A kind that some worker serves, or did not long ago.

    Attributes:
        count: Connected workers that serve it, `workers` the first of them.
        registered_us: When such a worker last connected.
    """

    spec: KindSpec
    registered_us: int
    count: int = 0
    queues: tuple[str, ...] = ()
    workers: tuple[ServingWorker, ...] = ()


@dataclass(frozen=True, slots=True)
class WorkerQuery:
    """Which workers; "" is any."""

    status: str = ""
    kind: str = ""
    queue: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class KindQuery:
    """Which kinds; "" and 0 are any, `status` "ONLINE" or "OFFLINE"."""

    name: str = ""
    category: int = 0
    status: str = ""


@dataclass(frozen=True, slots=True)
class Horizon:
    """Who counts as living: whose server was seen after `server_us`, and who was heard of after `worker_us`."""

    server_us: int
    worker_us: int
