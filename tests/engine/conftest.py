"""Two servers over one real PostgreSQL: each test has a database of its own, copied from a migrated one."""

import contextlib
import itertools
from collections.abc import AsyncIterator

import pytest
from tests.engine.database import Database, Postgres
from tests.engine.servers import Roles, Start, starting


@pytest.fixture(scope="session")
async def postgres() -> AsyncIterator[Postgres]:
    """One PostgreSQL server for the session, with a migrated template."""
    async with Postgres.running() as postgres:
        yield postgres


_NUMBERS = itertools.count()


@pytest.fixture
async def database(postgres: Postgres) -> AsyncIterator[Database]:
    """A fresh, migrated database whose clock the test can move on."""
    async with postgres.database(f"engine_{next(_NUMBERS)}") as database:
        yield database


@pytest.fixture
async def start(database: Database) -> AsyncIterator[Start]:
    """Starts servers on the test's database; they are closed at its end."""
    async with contextlib.AsyncExitStack() as stack:
        yield starting(database, stack)


@pytest.fixture(params=["owner path", "locked path"])
def owner_path(request: pytest.FixtureRequest) -> bool:
    """Both ways through the committer must behave the same."""
    return bool(request.param == "owner path")


@pytest.fixture(params=["worker here", "worker there"])
async def roles(request: pytest.FixtureRequest, start: Start, owner_path: bool) -> Roles:
    """Publish and wait on the first server, work on it or on the other one; for the core of the suite."""
    first, second = await start(owner_path=owner_path)
    return Roles(first, first if request.param == "worker here" else second)


@pytest.fixture(params=["there, owner path", "here, locked path"])
async def spread(request: pytest.FixtureRequest, start: Start) -> Roles:
    """The two of the four ways that differ most, for the rest."""
    where, path = request.param.split(", ")
    first, second = await start(owner_path=path == "owner path")
    return Roles(first, first if where == "here" else second)
