"""A wire to PostgreSQL that breaks at the worst moment: at the commit (engine-rules 3).

A Unix socket that passes everything on, reads along, and now and then cuts a lane's connection where a batch is
committed: at an Execute outside a transaction (the owner path's one statement, and the settling of a lost one), and at
COMMIT (the locked path). What the server sees is the same each time, a lost connection; what has become of its batch
differs by the cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final, Literal

from tests.crash.processes import Postgres

Cut = Literal["before", "after", "at once", "late"]
CUTS: Final[tuple[Cut, ...]] = ("before", "after", "at once", "late")
"""before: the commit is never sent. after: it is sent, answered, and the answer thrown away. at once: it is sent and
the connection closed without waiting. late: the connection is closed, and the commit arrives after that."""
_SOCKET = ".s.PGSQL.5432"
_LANE = b"lock_timeout"
"""Only lanes ask for this setting when they connect."""
_LATE_S = 0.4


class Wire:
    """The wire. `chance` of a cut at each commit; 0 passes everything on."""

    def __init__(self, postgres: Postgres, folder: Path, seed: int) -> None:
        self.folder = folder
        self.chance = 0.0
        self.cuts: Counter[Cut] = Counter()
        self._real = str(postgres.server.socket_dir / _SOCKET)
        self._random = random.Random(seed)
        self._passing: set[asyncio.Task[None]] = set()

    def url(self, real: str) -> str:
        """The address of a database by this wire."""
        return f"{real.partition('?')[0]}?host={self.folder}"

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Wire]:
        """Listen while the block runs."""
        server = await asyncio.start_unix_server(self._accept, path=str(self.folder / _SOCKET))
        try:
            yield self
        finally:
            server.close()
            for task in self._passing:
                task.cancel()
            await asyncio.gather(*self._passing, return_exceptions=True)

    async def _accept(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._passing.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                backend, to_backend = await asyncio.open_unix_connection(self._real)
                await _Connection(self, client, to_client, backend, to_backend).run()
        finally:
            self._passing.discard(task)
            to_client.close()

    def choose(self) -> Cut | None:
        """Whether and how to cut here."""
        if self._random.random() >= self.chance:
            return None
        cut = self._random.choice(CUTS)
        self.cuts[cut] += 1
        return cut


class _Connection:
    def __init__(
        self,
        wire: Wire,
        client: asyncio.StreamReader,
        to_client: asyncio.StreamWriter,
        backend: asyncio.StreamReader,
        to_backend: asyncio.StreamWriter,
    ) -> None:
        self._wire = wire
        self._client, self._to_client = client, to_client
        self._backend, self._to_backend = backend, to_backend
        self._in_transaction = False

    async def run(self) -> None:
        answers = asyncio.create_task(self._answers())
        try:
            size = await self._client.readexactly(4)
            startup = size + await self._client.readexactly(int.from_bytes(size, "big") - 4)
            self._to_backend.write(startup)
            if _LANE in startup:
                await self._lane(answers)
            else:
                while data := await self._client.read(1 << 16):
                    self._to_backend.write(data)
                    await self._to_backend.drain()
        finally:
            answers.cancel()
            await asyncio.gather(answers, return_exceptions=True)
            self._to_backend.close()

    async def _answers(self) -> None:
        with contextlib.suppress(OSError):
            while data := await self._backend.read(1 << 16):
                self._to_client.write(data)
                await self._to_client.drain()
        self._to_client.close()

    async def _lane(self, answers: asyncio.Task[None]) -> None:
        """Pass whole requests on, each up to its Sync, until one is cut."""
        request, commits = b"", False
        while True:
            kind = await self._client.readexactly(1)
            size = await self._client.readexactly(4)
            body = await self._client.readexactly(int.from_bytes(size, "big") - 4)
            request += kind + size + body
            commits |= self._commits(kind, body)
            if kind not in b"SHQXp":
                continue
            cut = self._wire.choose() if commits else None
            if cut is not None:
                answers.cancel()
                await asyncio.gather(answers, return_exceptions=True)
                await self._cut(cut, request)
                return
            self._to_backend.write(request)
            await self._to_backend.drain()
            request, commits = b"", False

    def _commits(self, kind: bytes, body: bytes) -> bool:
        """Whether this message commits something."""
        if kind == b"Q":
            if body.startswith(b"BEGIN"):
                self._in_transaction = True
            elif body.startswith((b"COMMIT", b"ROLLBACK")):
                self._in_transaction = False
                return body.startswith(b"COMMIT")
            return False
        return kind == b"E" and not self._in_transaction

    async def _cut(self, cut: Cut, request: bytes) -> None:
        if cut == "late":
            self._to_client.close()
            await asyncio.sleep(_LATE_S)
        if cut != "before":
            self._to_backend.write(request)
            await self._to_backend.drain()
        if cut in ("after", "late"):
            # Its first bytes come after the commit.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(5):
                    await self._backend.read(1 << 16)
