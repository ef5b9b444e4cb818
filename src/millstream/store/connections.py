"""Connections to PostgreSQL, and its errors as the ports' own."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any, Final

import asyncpg

from millstream.application.ports import Conflicted, Disconnected, Refused, TooSlow

Record = asyncpg.Record

_CONFLICTS = (
    asyncpg.UniqueViolationError,
    asyncpg.DivisionByZeroError,
    asyncpg.LockNotAvailableError,
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
)
LOST = (
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.InterfaceError,
    # "another operation is in progress": so a connection answers whose end by the server was not noticed yet.
    asyncpg.InternalClientError,
    asyncpg.CannotConnectNowError,
    # No room on the disk, in memory or for another connection: it may come back, and the data is not at fault.
    asyncpg.InsufficientResourcesError,
    ConnectionError,
    OSError,
    TimeoutError,
)
_REFUSALS = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError, asyncpg.ProgramLimitExceededError)


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Raise the port's errors in place of the driver's."""
    try:
        yield
    except _CONFLICTS as error:
        raise Conflicted from error
    except LOST as error:
        raise Disconnected from error
    except _REFUSALS as error:
        raise Refused from error


async def connect(url: str, settings: Mapping[str, str]) -> "asyncpg.Connection[Record]":
    """One connection with server settings. Raises OSError or asyncpg.PostgresError."""
    return await asyncpg.connect(
        url, server_settings=dict(settings), timeout=5, command_timeout=30, statement_cache_size=500
    )


async def _kept(_: Any) -> None:
    """Leave a connection as it is when it goes back to the pool: nothing here changes its session, and the driver's
    own reset is a trip to the server after each query. The driver still ends a transaction that was left open."""


_FAULTS: Final[dict[type[Exception], str]] = {
    Conflicted: "conflict",
    Disconnected: "lost",
    Refused: "refused",
    TooSlow: "slow",
}


class Database:
    """A pool of connections for reads and for background work. Raises the ports' errors, never the driver's."""

    def __init__(self, pool: "asyncpg.Pool[Record]") -> None:
        self._pool = pool
        self.asked: Callable[[int], None] = lambda took_us: None
        """Called with the microseconds that a statement took, the wait for a connection too."""
        self.failed: Callable[[str], None] = lambda error: None
        """Called when a statement failed, with "conflict", "lost", "refused", "slow" or "other"."""

    @classmethod
    async def open(cls, url: str, size: int) -> "Database":
        """Connect. enable_seqscan is left on: these are cold queries, whose plans must fit the data."""
        settings = {"jit": "off", "idle_in_transaction_session_timeout": "5000"}
        with translated():
            pool = await asyncpg.create_pool(
                url, min_size=1, max_size=size, command_timeout=30, timeout=5, server_settings=settings, reset=_kept
            )
        return cls(pool)

    async def close(self) -> None:
        """Disconnect, at once where connections are in use."""
        with contextlib.suppress(*LOST):
            async with asyncio.timeout(2):
                await self._pool.close()
            return
        self._pool.terminate()

    @property
    def size(self) -> tuple[int, int]:
        """Its connections, and those of them that are idle."""
        return self._pool.get_size(), self._pool.get_idle_size()

    @contextlib.contextmanager
    def _asked(self) -> Iterator[None]:
        """Measure a statement; errors as the ports' own."""
        began_s = time.monotonic()
        try:
            with translated():
                yield
        except Exception as error:
            self.failed(_FAULTS.get(type(error), "other"))
            raise
        self.asked(int((time.monotonic() - began_s) * 1e6))

    async def fetch(self, statement: str, *arguments: Any) -> list[Record]:
        """All rows."""
        with self._asked():
            return list(await self._pool.fetch(statement, *arguments))

    async def fetch_within(self, seconds: float, statement: str, *arguments: Any) -> list[Record]:
        """All rows, read within so much time: the server ends it then. Raises TooSlow."""
        with self._asked():
            async with self._pool.acquire() as connection, connection.transaction(readonly=True):
                await connection.execute(f"SET LOCAL statement_timeout = {max(int(seconds * 1000), 1)}")
                try:
                    return list(await connection.fetch(statement, *arguments))
                except asyncpg.QueryCanceledError as error:
                    raise TooSlow from error

    async def fetchrow(self, statement: str, *arguments: Any) -> Record | None:
        """The first row."""
        with self._asked():
            return await self._pool.fetchrow(statement, *arguments)

    async def fetchval(self, statement: str, *arguments: Any) -> Any:
        """The first value of the first row."""
        with self._asked():
            return await self._pool.fetchval(statement, *arguments)

    async def execute(self, statement: str, *arguments: Any) -> str:
        """Run it; returns the command tag."""
        with self._asked():
            return str(await self._pool.execute(statement, *arguments))

    @contextlib.asynccontextmanager
    async def transaction(self, isolation: str = "read_committed") -> AsyncIterator[Any]:
        """A connection with a transaction, committed at the end of the block."""
        with translated():
            async with self._pool.acquire() as connection, connection.transaction(isolation=isolation):  # type: ignore[arg-type]  # one of asyncpg's literals
                yield connection
