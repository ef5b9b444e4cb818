"""What the engine asks of a store.

Outcomes of a write that are no results: Conflicted, Refused, Disconnected. All of them leave nothing written, but for
Disconnected, after which `settle` finds out.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Final, Protocol

from millstream.domain.batch import Batch, KeyClaim
from millstream.domain.bounds import Bounds, Line, LineKey
from millstream.domain.errors import BadRequest, FieldFault, Unavailable
from millstream.domain.gates import Buffer
from millstream.domain.runs import Run, Task
from millstream.domain.struct_wire import Json
from millstream.domain.workers import KindSpec


class Conflicted(Unavailable):
    """Another writer was there first: read again, under locks."""

    def __init__(self) -> None:
        super().__init__("others are writing the same; try again", retry_after_s=1.0)


class Refused(BadRequest):
    """The database refuses the data itself; trying again as it is cannot help."""

    def __init__(self) -> None:
        super().__init__("the database cannot hold a value of this request")


class Disconnected(Unavailable):
    """The connection was lost, maybe at the commit, whose outcome is unknown."""

    def __init__(self) -> None:
        super().__init__("the database cannot be reached", retry_after_s=1.0)


class TooSlow(Exception):
    """A read took longer than it was given, and was ended."""


class Costly(Exception):
    """To evaluate this within the server may hold up everybody else: it is the sandbox's."""


class NoValue(ValueError):
    """An expression has no value, such as where a key is missing."""


class Sandbox(Protocol):
    """Evaluates apart from the server what may take long; see adapters.sandbox."""

    async def condition(self, text: str, variables: Mapping[str, Json]) -> bool:
        """Whether a condition holds; False where that takes too long."""

    async def key(self, text: str, variables: Mapping[str, Json]) -> str | None:
        """The key of an artifact; None where it has none, or that takes too long."""

    async def faults(self, schema: str, value: Json, prefix: str) -> list[FieldFault]:
        """The faults of a value by a schema. Raises ValidationFailed where that takes too long."""

    async def read(self, schema: str) -> None:
        """Read a schema. Raises ValueError where it is none, or takes too long."""


class Transaction(Protocol):
    """A transaction that locks what it reads. Locks are taken in the order keys, runs, buffers, each by id."""

    async def keys(self, claims: Iterable[KeyClaim]) -> dict[tuple[str, str, str, str], KeyClaim]:
        """The live keys that are already claimed, of those asked for; expired ones are removed."""

    async def runs(self, run_ids: set[str], task_ids: set[str]) -> tuple[dict[str, Run], set[str]]:
        """Lock runs, named directly or by their tasks; and of those named directly the ones that are locked elsewhere,
        by id. A task that `tasks` finds without its run here is one whose run is locked elsewhere, too."""

    async def tasks(self, task_ids: set[str], open_of: set[str], failed_of: set[str]) -> dict[str, Task]:
        """Read tasks by id, all open tasks of some runs, and those of others that a retry begins again. Their runs must
        be locked."""

    async def registry(self, tenants: set[str]) -> dict[str, int]:
        """Versions of the tenants' registries."""

    async def room(self, gates: set[tuple[str, str]]) -> dict[tuple[str, str], int]:
        """Lock limited agents by (tenant, kind); how many more of their tasks may run. Those locked elsewhere are left
        out."""

    async def lines(self, wanted: set[LineKey]) -> dict[LineKey, Line]:
        """Lock lines; those locked elsewhere, or not there, are left out."""

    async def buffers(self, ids: set[str], of_runs: set[str]) -> tuple[dict[str, Buffer], set[str]]:
        """Lock buffers by id, and all of some runs; and the ids of those that are locked elsewhere."""

    async def open_promises(self, wanted: set[tuple[str, str]]) -> dict[tuple[str, str], str]:
        """Ids of the open promises that have these keys, by (tenant, key). Not locked: the write fails on a second."""

    async def payloads(self, wanted: set[tuple[str, bytes]]) -> set[tuple[str, bytes]]:
        """Which payloads there are, of those asked for by (tenant, SHA-256). Not locked: the write looks again."""

    async def write(self, batch: Batch) -> None:
        """Write the batch."""


class Lane(Protocol):
    """One connection through which one process commits, in order.

    Attributes:
        id: UUID of this incarnation.
    """

    id: str

    def prepare(self, batch: Batch, registry: Mapping[str, int]) -> Any:
        """What writes a batch, if the registries still have these versions; may be made during another's write."""

    async def write(self, statement: Any) -> int:
        """Write what was prepared, in one autocommit statement.

        Returns the database's time in microseconds. Raises Conflicted, Refused, Disconnected.
        """

    def transaction(self, blocking: bool = False) -> AbstractAsyncContextManager[Transaction]:
        """A transaction, committed at the end of the block. Raises Conflicted, Refused, Disconnected.

        Runs locked elsewhere are waited for (up to 5 s) when blocking, passed over otherwise.
        """

    async def settle(self) -> bool:
        """After Disconnected: connect again, and whether the last write was committed. It never will be, if not.

        Waits for the database as long as it takes; the caller bounds it.
        """

    async def now_us(self) -> int:
        """The database's time."""


FULL: Final = 0xFFFFFFFF
"""All artifacts of a row of the feed."""

Places = dict[str, tuple[int, int]]
"""How far each lane of the feed was read: the number of a row, and how many of the reader's artifacts of it."""


@dataclass(frozen=True, slots=True)
class RunHead:
    """Where a run stands: the number of its last event, and whether it has ended."""

    last_seq: int
    ended: bool


@dataclass(frozen=True, slots=True)
class FeedRow:
    """What one batch stored: ids of artifacts by tenant, of the tenants asked for."""

    lane: str
    n: int
    ids: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class ConnectedWorker:
    """A worker's connection to this server.

    Attributes:
        kinds: Kinds of the tasks it is given, its agents' among them.
        served: What it says of its kinds, agents left out.
        queues: Queues it takes tasks from.
        slots: Tasks it takes at once.
        heard_us: When it was last heard of.
        used: Tasks it has.
    """

    session: str
    tenant: str
    worker_id: str
    name: str
    kinds: tuple[str, ...]
    connected_us: int
    served: tuple[KindSpec, ...] = ()
    queues: tuple[str, ...] = ()
    slots: int = 0
    draining: bool = False
    heard_us: int = 0
    used: int = 0


@dataclass(frozen=True, slots=True)
class Group:
    """What waits in a line for one kind of worker.

    Attributes:
        bounds: Of the first task.
        called: How many were called up and have not started.
    """

    tenant: str
    line: Line
    queue: str
    kind: str
    bounds: Bounds
    called: int

    @property
    def key(self) -> LineKey:
        """The line."""
        return (self.tenant, self.line.name)


@dataclass(frozen=True, slots=True)
class InLine:
    """A task that waits in a line."""

    id: str
    tenant: str
    kind: str
    limited: bool
    bounds: Bounds


class Upkeep(Protocol):
    """The engine as the runtime's loops see it; see engine.upkeep.

    Attributes:
        lane_id: Lane of this server.
        lease_us: How long a lease holds, microseconds.
    """

    lane_id: str
    lease_us: int

    @property
    def max_gates(self) -> int: ...
    def gates_full(self, full: Set[tuple[str, str]]) -> None: ...
    async def open_gates(self, due: Sequence[Buffer]) -> bool: ...
    def now_us(self) -> int: ...
    def set_clock(self, now_us: int) -> None: ...
    async def make_due(self, task_ids: Sequence[str]) -> bool: ...
    async def start_too_late(self, task_ids: Sequence[str]) -> bool: ...
    async def reap(self, expired: Sequence[str], overdue_runs: Sequence[str]) -> None: ...
    async def time_out(self, run_ids: Sequence[str]) -> bool: ...
    def attend(self, run_ids: Sequence[str]) -> None: ...
    def long_awaited(self) -> list[str]: ...
    def ended(self, run_id: str) -> None: ...
    async def look_for_work(self) -> None: ...
    def leases(self) -> tuple[dict[str, int], list[str]]: ...
    def lost(self, task_id: str, attempt: int) -> None: ...
    def signs_of_life(self) -> list[ConnectedWorker]: ...
