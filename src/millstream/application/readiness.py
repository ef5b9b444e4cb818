"""Readiness: whether this server can serve, and if not, what is in the way and what to do.

Load balancers ask often: the database is asked at most once a second, whoever asks; the rest costs nothing. Nothing
here tells an address, a name or a text of the database's: anyone may ask.
"""

import asyncio
import logging
from collections.abc import Set
from dataclasses import dataclass
from typing import Final, Protocol

from millstream.application.fresh import Fresh
from millstream.domain.errors import MillstreamError

log = logging.getLogger(__name__)

FRESH_S: Final = 1.0
"""How long an answer of the database stands."""
ANSWER_S: Final = 5.0
"""How long the database may take to answer."""
STUCK_S: Final = 5.0
"""A full queue from which nothing was taken for this long does not move. One that moves is only full: its callers are
told to come again, and to send them to other servers would fill theirs."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that a server needs; `detail` says how it is, for people."""

    name: str
    ok: bool = True
    detail: str = ""


class SchemaReads(Protocol):
    """Reads which migration the database has; see store.schema."""

    async def schema_revision(self) -> str | None: ...


class Queue(Protocol):
    """The queue in front of the committer; see engine.queue."""

    @property
    def full(self) -> bool: ...
    @property
    def still_s(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Schema:
    """The migrations that this release brings: its newest, and all of them."""

    head: str
    known: Set[str]


class Readiness:
    """Judges whether this server can serve."""

    def __init__(self, reads: SchemaReads, schema: Schema, queue: Queue) -> None:
        self.draining = False
        self._reads = reads
        self._schema = schema
        self._queue = queue
        self._ended: dict[str, str] = {}
        self._database = Fresh(self._look, FRESH_S)

    def part_ended(self, name: str, why: str) -> None:
        """A part of the server ended that has to run as long as the server does."""
        self._ended[name] = why

    async def checks(self) -> list[Check]:
        """All checks that could be made. What depends on a database that does not answer is not among them."""
        return [*await self._database(), self._engine(), self._moving(), self._server()]

    async def ok(self) -> bool:
        """Whether this server can serve."""
        return all(check.ok for check in await self.checks())

    async def _look(self) -> list[Check]:
        try:
            async with asyncio.timeout(ANSWER_S):
                revision = await self._reads.schema_revision()
        except (MillstreamError, TimeoutError):
            return [Check("database", False, "it does not answer; see that it runs and can be reached")]
        except Exception:
            log.exception("the database's migrations could not be read")
            return [Check("database", False, "it cannot be read; the server's log has why")]
        return [Check("database"), self._migrations(revision)]

    def _migrations(self, revision: str | None) -> Check:
        head = self._schema.head
        if revision == head:
            return Check("migrations", True, f"at {head}")
        if revision is not None and revision not in self._schema.known:
            # Releases only add to the tables, so this one goes on.
            return Check("migrations", True, f"at {revision}, of a newer release; this one brings {head}")
        at = "it was never migrated" if revision is None else f"at {revision}"
        return Check("migrations", False, f"{at}, this server needs {head}: run `millstream migrate up`")

    def _engine(self) -> Check:
        if not self._ended:
            return Check("engine")
        parts = ", ".join(f"{name} ({why})" for name, why in self._ended.items())
        return Check("engine", False, f"parts ended: {parts}; the log has why; start this server again")

    def _moving(self) -> Check:
        if not self._queue.full:
            return Check("queue")
        still_s = self._queue.still_s
        if still_s < STUCK_S:
            return Check("queue", True, "full; callers are told to come again")
        why = f"full, and nothing was taken from it for {still_s:.0f} s; see whether the database takes writes"
        return Check("queue", False, why)

    def _server(self) -> Check:
        return Check("server", False, "draining: it is about to end") if self.draining else Check("server")
